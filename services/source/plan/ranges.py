"""Version ranges, as far as detection compares them: PEP 440 specifiers and npm's ranges, on plain release numbers.

Everything else (pre-releases, tags, URLs) is "not understood", which is None: then nothing is concluded from it.
"""

import re
from itertools import zip_longest

Release = tuple[int, ...]

_SPECIFIER = re.compile(r"(===|==|!=|>=|<=|~=|>|<)\s*v?(\d{1,9}(?:\.\d{1,9}){0,5})(\.\*)?", re.ASCII)
_PARTIAL = re.compile(r"[v=\s]*(\d{1,9}|[xX*])(?:\.(\d{1,9}|[xX*]))?(?:\.(\d{1,9}|[xX*]))?", re.ASCII)
_COMPARATOR = re.compile(r"(?:(>=|<=|>|<|\^|~>?|=)\s*+)?v?([0-9xX*]{1,9}(?:\.[0-9xX*]{1,9}){0,2})", re.ASCII)
_HYPHEN = re.compile(r"(\S{1,30})\s+-\s+(\S{1,30})", re.ASCII)
_MAX_TEXT = 300
_END = 10**9
"""Greater than every part of a release."""


def release(version: str) -> Release | None:
    """Return the numbers of `1.2.3`, or None for anything with more than numbers."""
    text = version.strip().removeprefix("v")
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9}){0,5}", text, re.ASCII):
        return None
    return tuple(int(part) for part in text.split("."))


def satisfies_pep440(version: str, specifiers: str) -> bool | None:
    """Whether a release is in the specifier set (`>=3.11,<4`); None: not understood."""
    found = release(version)
    if found is None or len(specifiers) > _MAX_TEXT:
        return None
    for part in filter(None, (each.strip() for each in specifiers.split(","))):
        match = _SPECIFIER.fullmatch(part)
        if match is None:
            return None
        if not _holds(found, match[1], tuple(int(each) for each in match[2].split(".")), bool(match[3])):
            return False
    return True


def allows_pep440(version: str, specifiers: str) -> bool | None:
    """Whether some release that begins with `version` (`3.11`: any 3.11.x) is in the set; None: not understood."""
    found = release(version)
    if found is None:
        return None
    if len(found) > 2:
        return satisfies_pep440(version, specifiers)
    answers = [satisfies_pep440(f"{version}.{patch}", specifiers) for patch in (*range(40), 99)]
    return None if None in answers else any(answers)


def _holds(version: Release, operator: str, wanted: Release, wild: bool) -> bool:
    if wild or operator == "~=":
        same = wanted if wild else wanted[:-1]
        starts = _padded(version, same)[: len(same)] == same
        if operator == "~=":
            return starts and _compare(version, wanted) >= 0
        return starts if operator == "==" else not starts
    order = _compare(version, wanted)
    return {
        "==": order == 0,
        "===": order == 0,
        "!=": order != 0,
        ">=": order >= 0,
        "<=": order <= 0,
        ">": order > 0,
        "<": order < 0,
    }[operator]


def _compare(one: Release, other: Release) -> int:
    for left, right in zip_longest(one, other, fillvalue=0):
        if left != right:
            return 1 if left > right else -1
    return 0


def _padded(version: Release, like: Release) -> Release:
    return version + (0,) * (len(like) - len(version))


def satisfies_npm(version: str, wanted: str) -> bool | None:
    """Whether a full release is in npm's range (`^1.2 || 2.x`); None: not understood."""
    found = release(version)
    if found is None or len(found) != 3 or len(wanted) > _MAX_TEXT:
        return None
    answers = [_in_set(found, each.strip()) for each in wanted.split("||")]
    if True in answers:
        return True
    return None if None in answers else False


def _in_set(version: Release, text: str) -> bool | None:
    if text in {"", "*", "x", "latest"}:
        return None if text == "latest" else True
    if hyphen := _HYPHEN.fullmatch(text):
        low, high = _bounds("", hyphen[1]), _bounds("", hyphen[2])
        return None if low is None or high is None else low[0] <= version < high[1]
    at = 0
    for match in _COMPARATOR.finditer(text):
        if text[at : match.start()].strip():
            return None
        bounds = _bounds(match[1] or "", match[2])
        if bounds is None:
            return None
        if not bounds[0] <= version < bounds[1]:
            return False
        at = match.end()
    return None if text[at:].strip() else True


def _bounds(operator: str, partial: str) -> tuple[Release, Release] | None:
    """The half-open interval of one comparator."""
    match = _PARTIAL.fullmatch(partial)
    if match is None:
        return None
    numbers = [int(part) for part in match.groups() if part is not None and part.isdecimal()]
    if not numbers:
        return (0, 0, 0), (_END, 0, 0)
    low = (*numbers, 0, 0)[:3]
    after = _next(tuple(numbers))
    if operator == "^":
        leading = next((at for at, number in enumerate(numbers) if number), len(numbers) - 1)
        return low, _next(tuple(numbers[: leading + 1]))
    least, most = (0, 0, 0), (_END, 0, 0)
    return {
        "~": (low, _next(tuple(numbers[:2]))),
        "~>": (low, _next(tuple(numbers[:2]))),
        ">=": (low, most),
        ">": (after, most),
        "<": (least, low),
        "<=": (least, after),
    }.get(operator, (low, after))


def _next(numbers: Release) -> Release:
    """The first release after all that begin with these numbers."""
    return (*numbers[:-1], numbers[-1] + 1, 0, 0)[:3]
