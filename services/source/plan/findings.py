"""What a detection says besides its result: what was found and where, what is passed over, and every refusal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

from services.source.errors import AppInvalid

MAX_LINES = 100
"""Lines of a kind that are kept; they are part of an event."""
MAX_LINE = 500
"""Characters of one line."""
MAX_REFUSALS = 40
"""Reasons that are listed."""


@dataclass(slots=True)
class Findings:
    """Lines for people, in the order in which they were found."""

    detected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusals: list[AppInvalid] = field(default_factory=list)

    def found(self, line: str) -> None:
        """Keep what was detected, and from which file."""
        _add(self.detected, line)

    def note(self, line: str) -> None:
        """Keep what is passed over, not honoured, or worth a look."""
        _add(self.notes, line)

    def refuse(self, what: str, *, why: str = "", todo: str = "") -> None:
        """Keep a reason why the app cannot be deployed; the detection goes on."""
        self.add(AppInvalid(what, why=why, todo=todo))

    def add(self, error: AppInvalid) -> None:
        """Keep a reason once."""
        if len(self.refusals) < MAX_REFUSALS and error.message not in {each.message for each in self.refusals}:
            self.refusals.append(error)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep an `AppInvalid` of the block as one more reason."""
        try:
            yield
        except AppInvalid as error:
            self.add(error)

    def raise_refusals(self) -> None:
        """Raise one error with all reasons, if there is one.

        Raises:
            AppInvalid: There is a reason.
        """
        if self.refusals:
            raise AppInvalid.of(self.refusals)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A question for an error: ` Is `env` meant?`, empty where no known word is near."""
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    return f" Is `{near[0]}` meant?" if near else ""


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Join names: `a, b and c`."""
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _add(lines: list[str], line: str) -> None:
    if len(lines) == MAX_LINES:
        lines.append("and more, which are not listed")
    elif len(lines) < MAX_LINES and line not in lines:
        lines.append(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…")
