"""Named points at which a test kills the process with SIGKILL; off, they cost one comparison.

`KNARR_CRASH_AT=<point>[/<label>][#<n>]` arms one: the n-th time (default 1) that the point is passed with that label
(any, if none is given), the process kills itself as `kill -9` would, after it has written the point's name into the
file `KNARR_CRASH_MARK`, so that a test knows that the point was really reached.
"""

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from seedwork.errors import Misconfigured

POINTS: Mapping[str, str] = {
    "inbox.before_commit": "a message was taken, its inbox row is not committed; label: the message type",
    "inbox.after_commit": "committed, not acknowledged to the bus",
    "job.before_effect": "the job is claimed, the handler has not begun; label: the command type",
    "job.after_effect": "the handler has returned, its outcome is not committed",
    "job.after_commit": "outcome and answer are committed, the answer is not published",
    "outbox.before_publish": "messages are committed, none is published; label: the first message's type",
    "outbox.after_publish": "published, not yet deleted from the outbox",
    "coordinator.before_commit": "inputs are decided, nothing is committed; label: the first input's type",
    "coordinator.after_commit": "decisions are committed, nothing is published or acknowledged",
    "webhook.before_commit": "a push was verified, its delivery is not committed",
    "webhook.after_commit": "the delivery is committed, the answer is not sent",
}
"""Every point, and what holds there."""


class _Armed:
    def __init__(self, spec: str) -> None:
        match = re.fullmatch(r"(?P<point>[a-z_.]+)(?:/(?P<label>\w+))?(?:#(?P<count>\d+))?", spec)
        if match is None or match["point"] not in POINTS:
            raise Misconfigured(
                f"KNARR_CRASH_AT={spec!r} names no crash point", todo=f"Known points: {', '.join(POINTS)}."
            )
        self.point = match["point"]
        self.label = match["label"]
        self.left = int(match["count"] or 1)

    def passed(self, point: str, label: str) -> None:
        if point != self.point or (self.label is not None and label != self.label):
            return
        self.left -= 1
        if self.left == 0:
            mark = os.environ.get("KNARR_CRASH_MARK")
            if mark:
                Path(mark).write_text(f"{point}/{label}\n")
            os.kill(os.getpid(), signal.SIGKILL)


_armed = _Armed(os.environ["KNARR_CRASH_AT"]) if os.environ.get("KNARR_CRASH_AT") else None


def point(name: str, label: str = "") -> None:
    """Pass a crash point."""
    if _armed is not None:
        _armed.passed(name, label)
