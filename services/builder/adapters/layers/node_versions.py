"""Whether a node version fits a range as package.json writes it. Pure. Grammar: node-semver, "Ranges".

Understood: `20`, `20.x`, `20.11.1`, `>=18`, `>=18 <23`, `^20.1`, `~20.1`, `18 - 20`, `*`, and `||` between them.
Pre-releases are no versions that anybody deploys on, and are not told apart.
"""

import re

_PART = r"(?:\d+|[xX*])"
_VERSION = rf"v?({_PART})(?:\.({_PART}))?(?:\.({_PART}))?(?:[-+][0-9A-Za-z.+-]*)?"
_COMPARATOR = re.compile(rf"(>=|<=|>|<|=|\^|~>?)?\s*{_VERSION}")
_HYPHEN = re.compile(rf"\s*{_VERSION}\s+-\s+{_VERSION}\s*")

Version = tuple[int, int, int]
Bounds = tuple[Version, Version | None]
"""From, and up to but without."""
_ZERO: Version = (0, 0, 0)
_NOTHING: Bounds = (_ZERO, _ZERO)


def satisfies(version: str, wanted: str) -> bool | None:
    """Whether `version` (`20.11.1`) is in the range; None: the range is not understood."""
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    if len(numbers) != 3:
        return None
    have = (numbers[0], numbers[1], numbers[2])
    answers = [_all_of(have, alternative) for alternative in wanted.split("||")]
    if any(answers):
        return True
    return None if None in answers else False


def _all_of(have: Version, text: str) -> bool | None:
    bounds = _bounds(text)
    if bounds is None:
        return None
    return all(low <= have and (high is None or have < high) for low, high in bounds)


def _bounds(text: str) -> list[Bounds] | None:
    if match := _HYPHEN.fullmatch(text):
        first, last = _partial(match.groups()[:3]), _partial(match.groups()[3:])
        return [(_floor(first), None), (_ZERO, _next(last))]
    found: list[Bounds] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _COMPARATOR.match(text, at)
        if match is None:
            return None
        found.append(_comparator(match[1] or "=", _partial(match.groups()[1:])))
        at = match.end()
        if at < len(text) and not text[at].isspace():
            return None
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def _comparator(operator: str, partial: list[int]) -> Bounds:
    low, significant = _floor(partial), next((index for index, part in enumerate(partial) if part), len(partial) - 1)
    after: Version | None = _next(partial)
    bounds: dict[str, Bounds] = {
        ">=": (low, None),
        ">": (after, None) if after else _NOTHING,
        "<": (_ZERO, low),
        "<=": (_ZERO, after),
        "=": (low, after),
        "^": (low, _next(partial[: significant + 1])),
        "~": (low, _next(partial[:2])),
        "~>": (low, _next(partial[:2])),
    }
    return bounds[operator]


def _partial(parts: tuple[str | None, ...]) -> list[int]:
    """The numbers before the first wildcard."""
    numbers: list[int] = []
    for part in parts:
        if part is None or not part.isdigit():
            break
        numbers.append(int(part))
    return numbers


def _floor(partial: list[int]) -> Version:
    padded = [*partial, 0, 0, 0]
    return padded[0], padded[1], padded[2]


def _next(partial: list[int]) -> Version | None:
    """The first version that does not begin with these numbers; None: all do."""
    return _floor([*partial[:-1], partial[-1] + 1]) if partial else None
