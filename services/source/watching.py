"""Patterns of paths like those of `.gitignore`: whether a path matches, in time that grows with pattern times path.

`*` and `?` stay within one part of a path, `[…]` is one of some characters, `**` is any number of parts. A pattern
without a slash (but at its end) matches at any depth. A pattern that matches a folder matches all that is below. `!` at
its beginning takes away what an earlier pattern matched; the last one that matches counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Part = Sequence[str | frozenset[str] | None]
"""One part of a pattern: characters, sets of characters, `None` for `?`, and the text `*` for a star."""

_STAR = "*any*"
_DEEP: Part = ("**",)
P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pattern:
    parts: tuple[Part, ...]
    takes_away: bool
    folders_only: bool


class Watch:
    """The patterns of one app."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Take the patterns; empty ones are passed over."""
        self._patterns = [_pattern(each) for each in patterns if each.strip("/!")]

    def matches(self, path: str) -> bool:
        """Whether this path of a file matches."""
        parts = path.split("/")
        found = False
        for pattern in self._patterns:
            if pattern.takes_away is found and _matches(pattern, parts):
                found = not pattern.takes_away
        return found


def _pattern(text: str) -> _Pattern:
    takes_away = text.startswith("!")
    text = text.removeprefix("!")
    parts = [each for each in text.split("/") if each]
    anchored = "/" in text.rstrip("/")
    read = [_DEEP if each == "**" else _part(each) for each in parts]
    return _Pattern(tuple(read if anchored else [_DEEP, *read]), takes_away, text.endswith("/"))


def _part(text: str) -> Part:
    read: list[str | frozenset[str] | None] = []
    at = 0
    while at < len(text):
        char = text[at]
        close = text.find("]", at + 2) if char == "[" else -1
        if close > 0:
            read.append(_set(text[at + 1 : close]))
            at = close
        elif char == "\\" and at + 1 < len(text):
            at += 1
            read.append(text[at])
        elif char == "*":
            read.append(_STAR)
        else:
            read.append(None if char == "?" else char)
        at += 1
    return tuple(read)


def _set(text: str) -> frozenset[str]:
    """The characters of `a-z_`; a set that is negated is kept as its complement within one byte."""
    negated = text[:1] in {"!", "^"}
    text = text[1:] if negated else text
    found: set[str] = set()
    at = 0
    while at < len(text):
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            found |= {chr(code) for code in range(ord(text[at]), min(ord(text[at + 2]), ord(text[at]) + 255) + 1)}
            at += 3
        else:
            found.add(text[at])
            at += 1
    return frozenset(chr(code) for code in range(256) if chr(code) not in found) if negated else frozenset(found)


def _matches(pattern: _Pattern, parts: Sequence[str]) -> bool:
    """Whether it matches the file, or a folder above it."""
    last = len(parts) - 1 if pattern.folders_only else len(parts)
    return any(_walk(pattern.parts, parts[:count], is_star=_is_deep, same=_same_part) for count in range(1, last + 1))


def _is_deep(part: Part) -> bool:
    return part == _DEEP


def _same_part(pattern: Part, part: str) -> bool:
    return _walk(pattern, part, is_star=_is_star, same=_same_char)


def _is_star(token: str | frozenset[str] | None) -> bool:
    return token == _STAR


def _same_char(token: str | frozenset[str] | None, char: str) -> bool:
    return token is None or token == char or (isinstance(token, frozenset) and char in token)


def _walk(
    pattern: Sequence[P], items: Sequence[T], *, is_star: Callable[[P], bool], same: Callable[[P, T], bool]
) -> bool:
    """Match greedily: only the last star is ever tried again, so time is at most pattern times items."""
    at = item = 0
    star = tried = -1
    while item < len(items):
        if at < len(pattern) and is_star(pattern[at]):
            star, tried = at, item
            at += 1
        elif at < len(pattern) and same(pattern[at], items[item]):
            at += 1
            item += 1
        elif star >= 0:
            tried += 1
            at, item = star + 1, tried
        else:
            return False
    return all(is_star(each) for each in pattern[at:])
