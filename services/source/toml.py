"""TOML from a stranger's repository: bytes in, plain values out, in time and memory that grow with the size alone.

The standard parser makes one dictionary a part of a dotted key, and remembers every prefix of it: 26 kB of dots take
gigabytes. So the number of parts in a key and the depth of brackets are counted first, in one pass.
"""

import re
import tomllib
from typing import Any

from services.source.errors import AppInvalid
from services.source.manifests import JsonObject, read_text

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


def read_toml(file: str, data: bytes, max_bytes: int) -> JsonObject:
    """Read a TOML file.

    Raises:
        AppInvalid: It is no TOML, too large, or nested too deeply.
    """
    text = read_text(file, data, max_bytes)
    _check(file, text)
    try:
        value: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError, OverflowError) as error:
        raise AppInvalid(
            f"{file} cannot be read", why=f"it is no TOML: {str(error)[:300]}", todo="Correct it."
        ) from error
    return JsonObject(file, "", value)


def _check(file: str, text: str) -> None:
    """Count dots between delimiters, brackets, and keys; strings and comments are skipped."""
    parts = deep = depth = keys = 0
    for match in _MARKS.finditer(text):
        mark = match[0]
        if mark == ".":
            parts += 1
            deep += parts >= 3
            if parts >= _MAX_PARTS or deep > _MAX_DEEP:
                raise AppInvalid(
                    f"{file} has keys of too many parts", todo=f"A key has at most {_MAX_PARTS}: write shorter keys."
                )
        elif mark in "\n=,{}[]":
            parts = 0
            keys += mark == "="
            depth = max(0, depth + (mark in "[{") - (mark in "]}"))
            if depth > _MAX_DEPTH or keys > _MAX_KEYS:
                raise AppInvalid(
                    f"{file} is nested too deeply, or has too many keys",
                    todo=f"Allowed are {_MAX_DEPTH} levels and {_MAX_KEYS} keys.",
                )
