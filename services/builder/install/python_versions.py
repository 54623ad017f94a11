"""Requests for a Python version as projects write them: `3.12`, `3.12.x`, `>=3.11,<3.14`, `^3.11`, `pypy3.10`. Pure.

Version specifiers follow PEP 440 for release numbers, with two exceptions that projects expect: `==3.11` and `<=3.11`
include every 3.11.x.
"""

import re
from dataclasses import dataclass

Numbers = tuple[int, ...]

_LONGEST = 200
"""Characters of a request; a longer one is not understood."""
_PLAIN = re.compile(r"v?(\d{1,4}(?:\.\d{1,4}){0,2})((?:\.[x*])*|-dev)?")
_CLAUSE = re.compile(r"(===|==|~=|!=|<=|>=|<|>|\^|~|=)?\s*v?(\d{1,4}(?:\.\d{1,4}){0,3})((?:\.[x*])*)")
_OPERATORS = {None: "==", "=": "==", "===": "=="}
_IMPLEMENTATION = re.compile(r"(cpython|python|pypy)[-@]?\s*(?=[\d<>=!~^*v])")
_PYPY_RELEASE = re.compile(r"-(?:v?7|v?\d+\.\d+\.\d+).*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One comparison of a specifier, such as `>= 3.11`."""

    operator: str
    numbers: Numbers
    wildcard: bool = False

    def fits(self, version: Numbers) -> bool:
        """Whether a release satisfies it."""
        least = _padded(version) >= _padded(self.numbers)
        fixed = {"~=": len(self.numbers) - 1, "^": 1, "~": 2}
        if (count := fixed.get(self.operator)) is not None:
            return least and _same(version, self.numbers[:count], prefix=True)
        rules = {
            "==": _same(version, self.numbers, prefix=self.wildcard or len(self.numbers) < 3),
            "!=": not _same(version, self.numbers, prefix=self.wildcard),
            ">=": least,
            ">": least and _padded(version) != _padded(self.numbers),
            "<=": version[: len(self.numbers)] <= self.numbers,
            "<": not least,
        }
        return rules[self.operator]

    def __str__(self) -> str:
        """As PEP 440 writes it."""
        text = ".".join(map(str, self.numbers))
        match self.operator:
            case "^":
                return f">={text},<{self.numbers[0] + 1}"
            case "~" if len(self.numbers) > 1:
                return f">={text},<{self.numbers[0]}.{self.numbers[1] + 1}"
            case "~":
                return f"=={text}.*"
            case operator:
                return f"{operator}{text}{'.*' if self.wildcard else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a project asks for."""

    implementation: str
    """`cpython` or `pypy`."""
    exact: Numbers | None = None
    """`3.11` or `3.11.7`: these numbers first."""
    ranges: tuple[tuple[Clause, ...], ...] = ()
    """Alternatives, each a list of comparisons that all hold."""

    def fits(self, version: Numbers) -> bool:
        """Whether a release is what the project asks for."""
        if self.exact is not None:
            return version[: len(self.exact)] == self.exact
        return any(all(clause.fits(version) for clause in each) for each in self.ranges)

    def nearly_fits(self, version: Numbers) -> bool:
        """Whether a release differs in its patch number only: patch releases hold fixes."""
        return self.exact is not None and len(self.exact) == 3 and version[:2] == self.exact[:2]

    def fits_minor(self, minor: Numbers) -> bool:
        """Whether the newest patch of a minor version, whatever it is, can be what the project asks for."""
        if self.exact is not None:
            return minor[: len(self.exact[:2])] == self.exact[:2]
        pinned = [clause.numbers for each in self.ranges for clause in each if clause.operator == "=="]
        return self.fits((*minor, 9999)) or any(numbers[:2] == minor and self.fits(numbers) for numbers in pinned)

    @property
    def request(self) -> str:
        """The request as `uv python install` takes it."""
        prefix = "pypy" if self.implementation == "pypy" else ""
        if self.exact is not None:
            return prefix + ".".join(map(str, self.exact))
        return prefix + ",".join(map(str, self.ranges[-1]))


def understood(text: str) -> Wanted | None:
    """Read a request; None if it is none of the known forms."""
    text = text.strip().lower()
    if len(text) > _LONGEST:
        return None
    implementation = "cpython"
    if match := _IMPLEMENTATION.match(text):
        implementation = "pypy" if match[1] == "pypy" else "cpython"
        text = text[match.end() :]
        if implementation == "pypy":
            text = _PYPY_RELEASE.sub("", text)
    if match := _PLAIN.fullmatch(text):
        return Wanted(implementation=implementation, exact=_numbers(match[1]))
    ranges = tuple(_clauses(each) for each in text.split("||"))
    if not all(each is not None for each in ranges):
        return None
    return Wanted(implementation=implementation, ranges=tuple(each for each in ranges if each is not None))


def satisfies(version: str, specifier: str) -> bool | None:
    """Whether a tool's release fits a specifier or an exact version; None: the specifier is not understood."""
    wanted = understood(specifier)
    if wanted is None or not re.fullmatch(r"\d+(\.\d+)*", version):
        return None
    numbers = _numbers(version)
    return _same(numbers, wanted.exact, prefix=False) if wanted.exact is not None else wanted.fits(numbers)


def _clauses(text: str) -> tuple[Clause, ...] | None:
    found: list[Clause] = []
    for part in re.sub(r"([<>=!~^])\s+", r"\1", text.strip()).replace(",", " ").split():
        if part == "*":
            found.append(Clause(operator=">=", numbers=(0,)))
            continue
        match = _CLAUSE.fullmatch(part)
        if match is None:
            return None
        operator, numbers, wildcard = (
            _OPERATORS.get(match[1], match[1]),
            _numbers(match[2]),
            bool(match[3]) or match[1] is None,
        )
        if operator == "~=" and len(numbers) < 2:
            return None
        found.append(Clause(operator=operator, numbers=numbers, wildcard=wildcard))
    return tuple(found) or None


def _numbers(text: str) -> Numbers:
    return tuple(int(part) for part in text.split("."))


def _padded(numbers: Numbers) -> Numbers:
    return (*numbers, 0, 0, 0, 0)[:4]


def _same(version: Numbers, numbers: Numbers, *, prefix: bool) -> bool:
    return version[: len(numbers)] == numbers if prefix else _padded(version) == _padded(numbers)
