"""Named points at which a test kills the process with SIGKILL; off, passing one is a call and a comparison.

`KNARR_CRASH_AT=<point>[/<label>][#<n>]` arms one: the n-th time (default 1) that the point is passed with that label
(any, if none is given), the process kills itself as `kill -9` would, after it has written the point's name into the
file `KNARR_CRASH_MARK`, so that a test knows that the point was really reached. `KNARR_CRASH_AT=@<file>` takes the same
from a file that may come later, so that a process can be armed while it runs; the crash removes the file.

Labels make "for each step, each undo" addressable: `job.after_effect/UnpublishImage` is one undo of one step.
"""

import os
import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from seedwork.errors import Misconfigured

POINTS: Mapping[str, str] = {
    "inbox.before_commit": "a participant took messages, their inbox rows are not committed; label: a message type",
    "inbox.after_commit": "committed, not acknowledged to the bus",
    "job.before_effect": "the job is claimed, the handler has not begun; label: the command type",
    "job.after_effect": "the handler has returned, its outcome is not committed",
    "job.after_commit": "outcome and answer are committed, the answer is not published",
    "outbox.before_publish": "messages are committed, none is published; label: a message type",
    "outbox.after_publish": "published, not acknowledged: still in the outbox",
    "coordinator.before_commit": "decided, not committed; label: the message's type, `timer <kind>` or a verb",
    "coordinator.after_commit": "decisions are committed, nothing is published or acknowledged",
    "webhook.before_commit": "a push was verified, or a deployment asked for otherwise; nothing is committed; label:"
    " the event (`push`), else the deployment's trigger (`api`, `upload`, `poll`)",
    "webhook.after_commit": "delivery and deployment are committed, the answer is not sent",
}
"""Every point, and what holds there."""


class Typed(Protocol):
    """An envelope, or whatever else is known by its type."""

    @property
    def type(self) -> str:
        """Its name."""


class _Armed:
    def __init__(self, spec: str, file: Path | None = None) -> None:
        match = re.fullmatch(r"(?P<point>[a-z_.]+)(?:/(?P<label>\w+(?: \w+)?))?(?:#(?P<count>\d+))?", spec)
        if match is None or match["point"] not in POINTS:
            raise Misconfigured(
                f"KNARR_CRASH_AT={spec!r} names no crash point", todo=f"Known points: {', '.join(POINTS)}."
            )
        self.point = match["point"]
        self.label = match["label"]
        self.left = int(match["count"] or 1)
        self._file = file

    def passed(self, point: str, labels: list[str]) -> None:
        if point != self.point or (self.label is not None and self.label not in labels):
            return
        self.left -= 1
        if self.left == 0:
            mark = os.environ.get("KNARR_CRASH_MARK")
            if self._file:
                self._file.unlink()
            if mark:
                Path(mark).write_text(f"{point}/{self.label or ' '.join(labels)}\n")
            os.kill(os.getpid(), signal.SIGKILL)


class _ArmedByFile:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._spec = ""
        self._armed: _Armed | None = None

    def passed(self, point: str, labels: list[str]) -> None:
        try:
            spec = self._file.read_text().strip()
        except FileNotFoundError:
            spec = ""
        if spec != self._spec:
            self._spec, self._armed = spec, _Armed(spec, self._file) if spec else None
        if self._armed is not None:
            self._armed.passed(point, labels)


_armed: _Armed | _ArmedByFile | None = None


def arm(spec: str) -> None:
    """Do as `KNARR_CRASH_AT` says; empty: nothing is armed any more.

    Raises:
        Misconfigured: It names no point.
    """
    global _armed  # noqa: PLW0603  a process is armed, not an object
    _armed = None
    if spec:
        _armed = _ArmedByFile(Path(spec[1:])) if spec.startswith("@") else _Armed(spec)


def point(name: str, passing: str | Iterable[str | Typed] = ()) -> None:
    """Pass a crash point.

    Args:
        name: Which one.
        passing: Its labels: a name, or the messages that pass it.
    """
    if _armed is not None:
        if isinstance(passing, str):
            passing = (passing,)
        _armed.passed(name, [each if isinstance(each, str) else each.type for each in passing])


arm(os.environ.get("KNARR_CRASH_AT", ""))
