"""Failures in a row: whether every job of a service fails for a reason that is not the app's.

A final failure is an answer about the app, and ends the row as a success does. A retryable one is a fault of the
platform or of a system that it needs.
"""

from dataclasses import dataclass

SHOWN_FROM = 2
"""Failures in a row from which on they are shown: one may pass by itself."""


@dataclass(slots=True)
class Streak:
    """Counts retryable failures since the last other outcome."""

    count: int = 0
    kind: str = ""
    message: str = ""
    """Of the latest failure."""

    def note(self, kind: str, *, retryable: bool, message: str) -> None:
        """Count an outcome."""
        self.count = self.count + 1 if retryable else 0
        self.kind, self.message = kind, message

    @property
    def trouble(self) -> str:
        """What fails, how often and why; empty: nothing that is shown."""
        if self.count < SHOWN_FROM:
            return ""
        return f"the last {self.count} attempts failed, the latest of {self.kind}: {self.message}"
