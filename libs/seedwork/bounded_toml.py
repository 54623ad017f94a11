"""TOML from a stranger's repository: text in, plain values out, in time and memory that grow with the size alone.

The standard parser makes one dictionary a part of a dotted key, and remembers every prefix of it: 26 kB of dots take
gigabytes. So the number of parts in a key and the depth of brackets are counted first, in one pass.
"""

import re
import tomllib
from typing import Any

_MAX_PARTS = 16
"""Parts of one key; `tool.setuptools.packages.find.include` has five."""
_MAX_DEEP = 5_000
"""Parts of keys beyond the third, in the whole file: the parser keeps about 1 kB for each."""
_MAX_DEPTH = 24
"""Of nested arrays and inline tables."""
_MAX_KEYS = 20_000
"""Keys of one file."""
_MARKS = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+(?:""")?'
    r"|'''(?:[^']|'{1,2}(?!'))*+(?:''')?"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+|[.\n=,{}\[\]]",
    re.DOTALL,
)
"""Strings, comments and what stands between keys; an open string ends the file, so that no text is read twice."""


class TooComplex(ValueError):
    """The text may be TOML, and costs more than a file of this size should.

    Args:
        what: What there is too much of.
        allowed: How much is allowed.
    """

    def __init__(self, what: str, allowed: str) -> None:
        super().__init__(f"it {what}: {allowed}")
        self.what = what
        self.allowed = allowed


def loads(text: str) -> dict[str, Any]:
    """Read TOML; the caller bounds the size of the text.

    Raises:
        TooComplex: Keys have too many parts, there are too many, or values are nested too deeply.
        ValueError: It is no TOML.
    """
    _check(text)
    try:
        return tomllib.loads(text)
    except (RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _check(text: str) -> None:
    """Count dots between delimiters, brackets, and keys; strings and comments are skipped."""
    parts = deep = depth = keys = 0
    for match in _MARKS.finditer(text):
        mark = match[0]
        if mark == ".":
            parts += 1
            deep += parts >= 3
            if parts >= _MAX_PARTS or deep > _MAX_DEEP:
                raise TooComplex("has keys of too many parts", f"a key has at most {_MAX_PARTS}")
        elif mark in "\n=,{}[]":
            parts = 0
            keys += mark == "="
            depth = max(0, depth + (mark in "[{") - (mark in "]}"))
            if depth > _MAX_DEPTH or keys > _MAX_KEYS:
                raise TooComplex(
                    "is nested too deeply, or has too many keys",
                    f"allowed are {_MAX_DEPTH} levels and {_MAX_KEYS} keys",
                )
