"""What buildx prints (`--progress=rawjson`) in; lines for people, and what went wrong in which step, out.

The stream is JSON records of BuildKit's solve status (steps, their output, their transfers), one after the other and
indented or not, with lines of buildx itself between them. A step is shown when it begins, with its output under its
number, and when it ends; BuildKit's own steps (`[internal] …`) only when they fail. Specification: moby/buildkit,
`client.SolveStatus`.

Steps run side by side, and the log has one line at a time. A line without an end is shown by `show_unfinished`, and
goes on where it is; when another step prints, the line ends there, and its rest becomes a line of its own.
"""

import base64
import binascii
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from services.builder.ports import BuildOutput

_LINES = 400
_RECORD_BYTES = 4 * 1024 * 1024
"""A larger record is no progress any more; it is shown as text."""
_PARTIAL_BYTES = 64 * 1024
UNFINISHED_S = 0.5
"""Seconds that a line may be without its end before its beginning is shown: most ends come within milliseconds."""
LOOK_S = 0.25
"""Seconds between two calls of `show_unfinished`."""
_WORTH_SHOWING = re.compile(r"pushing|extracting|exporting layers|writing image|sha256:")
_CACHE = re.compile(r"importing cache|exporting cache")
"""Without its cache in the registry a build takes longer, and goes on: the first one of an app finds none."""
_STEP = re.compile(r"^\[(?:[^\]]* )?\d+/\d+\] ")


@dataclass(slots=True)
class Step:
    """One step of the build."""

    number: int
    name: str
    started: bool = False
    ended: bool = False
    cached: bool = False
    error: str = ""
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=_LINES))
    """The last ones that it printed."""
    partial: bytes = b""
    since_s: float = 0.0
    """When the first byte of `partial` came."""
    shown_bytes: int = 0
    """How much of `partial` is in the log."""

    @property
    def internal(self) -> bool:
        """BuildKit's own."""
        return self.name.startswith("[internal]")

    @property
    def optional(self) -> bool:
        """A build does not fail with it."""
        return bool(_CACHE.match(self.name))


class Progress:
    """A `BuildOutput` in front of the build's log: takes what buildx prints, passes on what people read.

    Its methods may be called by several threads.

    Args:
        output: The log.
        note: Told which step is being done.
        monotonic: Seconds of a clock.
    """

    def __init__(
        self, output: BuildOutput, note: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._output = output
        self._note = note
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._open: Step | None = None
        """The step whose unfinished line is the last one of the log."""
        self._partial = b""
        self._record = b""
        self._transfers: set[str] = set()
        self.steps: dict[str, Step] = {}
        self.said: deque[str] = deque(maxlen=_LINES)
        """The last lines of buildx itself."""
        self.began: datetime | None = None
        """When the first step began, by the engine's clock."""

    @property
    def failed(self) -> Step | None:
        """The step that failed first, of those with which the build fails."""
        failed = (step for step in self.steps.values() if step.error and not step.optional)
        return next((step for step in failed if "context canceled" not in step.error), None)

    # --- BuildOutput --------------------------------------------------------------------------------------------------

    def write(self, text: bytes) -> None:
        """What buildx printed, in pieces of any size."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split(b"\n")
            for line in lines:
                self._line(line)

    def say(self, line: str) -> None:
        """A line of our own."""
        with self._lock:
            self._end_open_line()
            self._output.say(line)

    def write_unfinished(self, text: bytes) -> int:
        """Take it like complete output: what buildx prints is complete records."""
        self.write(text)
        return len(text)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return self._output.tail(lines)

    def show_unfinished(self) -> None:
        """Show lines that have been without their end for `UNFINISHED_S`."""
        with self._lock:
            before_s = self._monotonic() - UNFINISHED_S
            for step in self.steps.values():
                if len(step.partial) > step.shown_bytes and step.since_s <= before_s:
                    head = self._begin_or_go_on(step)
                    taken = self._output.write_unfinished(head + step.partial[step.shown_bytes :])
                    step.shown_bytes += max(0, taken - len(head))

    def finish(self) -> None:
        """What came without a line's end."""
        with self._lock:
            lines, self._partial = [self._record, self._partial], b""
            self._record = b""
            for line in lines:
                self._plain(line)
            for step in self.steps.values():
                self._end_line(step)

    # --- records ------------------------------------------------------------------------------------------------------

    def _line(self, line: bytes) -> None:
        """A record is complete at the line that closes its first brace, which stands at the line's beginning."""
        if not self._record and not line.startswith(b"{"):
            self._plain(line)
            return
        self._record += line + b"\n"
        if line.rstrip().endswith(b"}") and (line.startswith(b"}") or self._record == line + b"\n"):
            self._take()
        elif len(self._record) > _RECORD_BYTES:
            self._give_up()

    def _take(self) -> None:
        try:
            record = orjson.loads(self._record)
        except orjson.JSONDecodeError:
            self._give_up()
            return
        self._record = b""
        if isinstance(record, dict):
            for vertex in record.get("vertexes") or ():
                self._vertex(vertex)
            for log in record.get("logs") or ():
                self._log(log)
            for status in record.get("statuses") or ():
                self._status(status)
            for warning in record.get("warnings") or ():
                self.say(f"Warning: {_decoded(warning.get('short')).decode(errors='replace')}")

    def _give_up(self) -> None:
        text, self._record = self._record, b""
        for line in text.splitlines():
            self._plain(line)

    def _plain(self, line: bytes) -> None:
        if text := line.decode(errors="replace").strip():
            self.said.append(text)
            self._end_open_line()
            self._output.write(line + b"\n")

    def _vertex(self, vertex: Mapping[str, Any]) -> None:
        digest = str(vertex.get("digest"))
        step = self.steps.get(digest)
        if step is None:
            step = self.steps[digest] = Step(number=len(self.steps) + 1, name=str(vertex.get("name", "")))
        if vertex.get("cached"):
            step.cached = True
        if vertex.get("started") and not step.started:
            self._began(vertex["started"])
        if vertex.get("started") and not step.started and not step.internal:
            step.started = True
            self._note(_STEP.sub("", step.name)[:100])
            self.say(f"#{step.number} {step.name}")
        if vertex.get("error") and not step.error:
            step.error = str(vertex["error"])
            what = "goes on without" if step.optional else "FAILED"
            self.say(f"#{step.number} {step.name if step.internal else ''} {what}: {step.error}")
        elif vertex.get("completed") and step.started and not step.ended:
            step.ended = True
            self._end_line(step)
            self.say(f"#{step.number} {'from the cache' if step.cached else 'done'}")

    def _began(self, started: str) -> None:
        try:
            at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", started))
        except ValueError:
            return
        self.began = at if self.began is None else min(at, self.began)

    def _log(self, log: Mapping[str, Any]) -> None:
        step = self.steps.get(str(log.get("vertex")))
        if step is None:
            return
        had = bool(step.partial)
        *lines, step.partial = (step.partial + _decoded(log.get("data"))).split(b"\n")
        if len(step.partial) > _PARTIAL_BYTES:
            lines, step.partial = [*lines, step.partial], b""
        if lines or not had:
            step.since_s = self._monotonic()
        self._print(step, lines)

    def _print(self, step: Step, lines: list[bytes]) -> None:
        """Write complete lines; of the first one the beginning may be shown already."""
        if not lines:
            return
        clean = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]
        step.lines.extend(clean)
        if step.shown_bytes:
            self._output.write(self._begin_or_go_on(step) + lines[0][step.shown_bytes :] + b"\n")
            step.shown_bytes, self._open = 0, None
            del clean[0]
        if clean:
            self._end_open_line()
            self._output.write(b"".join(b"#%d %s\n" % (step.number, line) for line in clean))

    def _begin_or_go_on(self, step: Step) -> bytes:
        """Make the step's unfinished line the last one of the log; what stands before its next piece."""
        if self._open is step:
            return b""
        self._end_open_line()
        self._open = step
        return b"#%d " % step.number

    def _end_open_line(self) -> None:
        if self._open is not None:
            self._open = None
            self._output.write(b"\n")

    def _end_line(self, step: Step) -> None:
        """Write what the step printed without a line's end."""
        if step.partial:
            rest, step.partial = step.partial, b""
            self._print(step, [rest])

    def _status(self, status: Mapping[str, Any]) -> None:
        """A transfer, when it is over."""
        name = str(status.get("id", ""))
        step = self.steps.get(str(status.get("vertex")))
        if step is None or not status.get("completed") or not _WORTH_SHOWING.search(name):
            return
        if (key := f"{step.number} {name}") not in self._transfers:
            self._transfers.add(key)
            self.say(f"#{step.number} {name}")


def _decoded(data: Any) -> bytes:
    try:
        return base64.b64decode(data or "")
    except (binascii.Error, TypeError, ValueError):
        return b""
