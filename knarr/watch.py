"""A saga as it happens: its log over server-sent events, the build's output beside it, one line per finished step.

The stream is taken up again where it broke (`Last-Event-ID`, and by byte offset for the build log), so that a restart
of the platform in the middle costs the reader nothing. What is shown comes from the coordinator's own record, read
again after each entry: the view cannot say more than the saga does.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx2
import orjson

from knarr import wording
from knarr.client import Platform
from knarr.exit_codes import Exit
from knarr.terminal import Terminal, escape
from seedwork.errors import KnarrError, NotFound, RetryableError

if TYPE_CHECKING:
    from rich.status import Status

Saga = Mapping[str, Any]

ENDED = frozenset({"SUCCEEDED", "COMPENSATED"})
RECONNECT_S = 60.0
"""How long a platform may be away before watching gives up: longer than a restart takes."""
_LOGGED = frozenset({"build", "rebase"})
"""Steps with a log of their own at the builder."""
_FAILED = frozenset({"FAILED", "UNDOING", "UNDONE", "SKIPPED"})
_TICK_S = 0.1
_LOOK_AGAIN_S = 2.0
_CATCH_UP_S = 3.0
_TAIL_LINES = 200
"""Lines of output that are remembered: more than the tail of a failure has."""


@dataclass(frozen=True, slots=True)
class _Item:
    kind: Literal["entry", "end", "line", "log_end", "lost"]
    value: Any = None


class StillRunning(KnarrError):
    """Waiting was given up; the saga goes on."""

    code = "still_running"


def needs_a_person(saga: Saga) -> bool:
    """Whether the saga waits for somebody's decision."""
    return bool(saga.get("needs_attention")) or saga["state"] == "STUCK"


def verdict(saga: Saga) -> Exit:
    """The exit code that a saga's state stands for."""
    if saga["state"] == "SUCCEEDED":
        return Exit.DONE
    if saga["state"] == "COMPENSATED":
        return Exit.UNDONE
    return Exit.NEEDS_A_PERSON if needs_a_person(saga) else Exit.STILL_RUNNING


def watch(platform: Platform, terminal: Terminal, saga_id: str, *, timeout_s: float | None = None) -> Saga:
    """Show a saga until it ends or needs a person.

    Args:
        platform: Where it runs.
        terminal: Where it is shown (standard error).
        saga_id: Which.
        timeout_s: How long to wait; none: as long as it takes.

    Raises:
        StillRunning: The time is over.
        Unavailable: The platform was away for longer than `RECONNECT_S`.
        NotFound: There is no such saga.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    view = _View(terminal)
    with _Feed(platform, saga_id) as feed, view:
        saga = _first_look(platform, saga_id)
        looked = time.monotonic()
        while True:
            view.show(saga, feed)
            if saga["state"] in ENDED or needs_a_person(saga):
                return saga
            if deadline is not None and time.monotonic() >= deadline:
                raise StillRunning(
                    f"The saga still runs after {timeout_s:g} s",
                    todo=f"See it with `knarr deployments {saga_id}`, or undo it with `knarr sagas cancel {saga_id}`",
                )
            item = feed.next(_TICK_S)
            if item is not None and item.kind == "line":
                view.output(item.value)
            elif item is not None and item.kind == "lost":
                raise item.value
            elif item is not None or time.monotonic() - looked > _LOOK_AGAIN_S:
                if item is not None and item.kind == "entry":
                    view.remember(item.value)
                saga = _look(platform, saga_id) or saga
                looked = time.monotonic()


def _first_look(platform: Platform, saga_id: str) -> Saga:
    """The saga; its event may still be on the way to the coordinator."""
    until = time.monotonic() + 10
    while True:
        try:
            saga: Saga = platform.get("saga_coordinator", f"/sagas/{saga_id}")
        except (NotFound, RetryableError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return saga


def _look(platform: Platform, saga_id: str) -> Saga | None:
    """The saga; none while the platform is away (the feed decides how long that may last)."""
    try:
        saga: Saga = platform.get("saga_coordinator", f"/sagas/{saga_id}")
    except RetryableError:
        return None
    return saga


class _Feed(AbstractContextManager["_Feed"]):
    """Two streams into one queue; both are daemon threads, and stop when the feed is left."""

    def __init__(self, platform: Platform, saga_id: str) -> None:
        self._platform = platform
        self._saga_id = saga_id
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._left = threading.Event()
        self._log_started = False
        self.log_open = False
        self.saga_open = True

    def __enter__(self) -> Self:
        self._start(self._saga)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def next(self, timeout_s: float) -> _Item | None:
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if item.kind == "log_end":
            self.log_open = False
        elif item.kind in {"end", "lost"}:
            self.saga_open = False
        return item

    def follow_build(self) -> None:
        """Begin with the build's log, once."""
        if not self._log_started:
            self._log_started = self.log_open = True
            self._start(self._log)

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def _saga(self) -> None:
        """Entries until the end; reconnects after the last one seen."""
        last_id: str | None = None
        away_since: float | None = None
        while not self._left.is_set():
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            try:
                with self._platform.stream(
                    "saga_coordinator", f"/sagas/{self._saga_id}/stream", headers=headers
                ) as answer:
                    for event in httpx2.EventSource(answer):
                        away_since = None
                        last_id = event.id or last_id
                        if event.event == "end":
                            self._items.put(_Item("end"))
                            return
                        if event.event == "log":
                            self._items.put(_Item("entry", orjson.loads(event.data)))
            except (RetryableError, NotFound) as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > RECONNECT_S:
                    self._items.put(_Item("lost", error))
                    return
            except KnarrError as error:
                self._items.put(_Item("lost", error))
                return
            self._left.wait(0.3)

    def _log(self) -> None:
        """Lines of the build log until it ends; goes on at the byte where it broke."""
        offset = 0
        rest = b""
        tries = 0
        while not self._left.is_set() and tries < 60:
            try:
                path = f"/builds/{self._saga_id}/log"
                with self._platform.stream("builder", path, offset=offset, follow=1) as answer:
                    for piece in answer.iter_bytes():
                        offset += len(piece)
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            self._items.put(_Item("line", line.decode(errors="replace")))
                tries = 0
                if not self._build_goes_on():
                    break
            except KnarrError:  # not there yet, or the platform restarts: the saga's stream says which
                tries += 1
            self._left.wait(0.3)
        if rest:
            self._items.put(_Item("line", rest.decode(errors="replace")))
        self._items.put(_Item("log_end"))

    def _build_goes_on(self) -> bool:
        """A log that ended while its build has not: the platform stops, and takes both up again at its next start."""
        try:
            build = self._platform.get("builder", f"/builds/{self._saga_id}")
        except RetryableError:
            return True
        except NotFound:
            return False
        return bool(build["state"] == "running")


@dataclass
class _View(AbstractContextManager["_View"]):
    """Lines that stay for what happened, one that changes for what happens."""

    terminal: Terminal
    _shown: dict[str, str] = field(default_factory=dict)
    _answers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _succeeded: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What steps answered before any undo began."""
    _ticked: set[str] = field(default_factory=set)
    _printed: deque[str] = field(default_factory=partial(deque, maxlen=_TAIL_LINES))
    """Lines of output that were shown last."""
    _undo_begun: bool = False
    _waited: str = ""
    """When the latest wait for another attempt began."""
    _why: str = ""
    """What it was for."""
    _status: "Status | None" = None

    def __enter__(self) -> Self:
        if self.terminal.err.is_terminal:
            self._status = self.terminal.err.status("waiting for its turn", spinner="dots", spinner_style="cyan")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Keep a step's last answer for its line; a command that follows makes it old."""
        step = entry.get("step")
        self._undo_begun = self._undo_begun or entry.get("state") == "COMPENSATING"
        if step and entry.get("direction") == "in":
            payload = entry.get("payload") or {}
            answer = self._answers[step] = payload.get("data", payload)
            if "retryable" not in answer and not self._undo_begun:
                self._succeeded[step] = answer
        elif step and entry.get("direction") == "out":
            self._answers.pop(step, None)

    def output(self, line: str) -> None:
        """A line of the build or of the app. The tail of a failure leaves out those that were shown before it."""
        self._printed.append(line.rstrip())
        self.terminal.output(line)

    def show(self, saga: Saga, feed: _Feed) -> None:
        """Say what is new: first what succeeded, in its turn, then the rest."""
        for step in saga["steps"]:
            if step["name"] in _LOGGED and step["state"] != "PENDING":
                feed.follow_build()
            if step["state"] == "DONE":
                self._show_step(step, feed)
            elif step["state"] in _FAILED and not step.get("error"):
                self._show_success_before_undo(step, feed)
        for step in _in_order(saga["steps"]):
            self._show_step(step, feed)
        self._show_wait(saga.get("waiting_for") or {})
        if self._status is not None:
            self._status.update(wording.now(saga))

    def _show_step(self, step: Mapping[str, Any], feed: _Feed) -> None:
        """Its state, if it is another one than the last time."""
        if step["state"] == self._shown.get(step["name"]):
            return
        self._catch_up(feed, partial(self._is_behind, step, feed))
        self._shown[step["name"]] = step["state"]
        self._show_failure(step)
        self._show_state(step)

    def _show_failure(self, step: Mapping[str, Any]) -> None:
        """Why the step failed, once; the undo may have begun before anybody looked."""
        name, error = step["name"], step.get("error")
        if not error or name in self._failed or step["state"] not in _FAILED:
            return
        self._failed.add(name)
        self.terminal.step("✗", "bad", name, escape(wording.why(step)))
        for line in error.get("log_tail") or ():
            if str(line).rstrip() not in self._printed:
                self.output(str(line))

    def _show_wait(self, waiting: Mapping[str, Any]) -> None:
        """A fault of the platform is tried again after a while, up to minutes: nobody has to guess what goes on."""
        if waiting.get("what") == "timer" and waiting["since"] != self._waited:
            attempt, _, why = waiting["note"].partition(" after: ")
            note = f"{attempt}, for the same reason" if why == self._why else waiting["note"]
            self._waited, self._why = waiting["since"], why
            self.terminal.step("↻", "undo", waiting["from"], escape(note))

    def _show_success_before_undo(self, step: Mapping[str, Any], feed: _Feed) -> None:
        """A quick step may be undone before anybody looked: that it was done is shown all the same, in its turn."""
        name = step["name"]
        if name in self._ticked or self._shown.get(name) in _FAILED:
            return
        self._catch_up(feed, lambda: feed.saga_open and not self._undo_begun and name not in self._succeeded)
        if name in self._succeeded:
            self._catch_up(feed, partial(self._log_is_behind, step, feed))
            self._tick(name, escape(wording.gist(name, self._succeeded[name])))

    def _tick(self, name: str, text: str) -> None:
        self._ticked.add(name)
        self.terminal.step("✓", "good", name, text)

    def _catch_up(self, feed: _Feed, is_behind: Callable[[], bool]) -> None:
        """The streams may be a little behind the state: a step's answer, and the build's last lines, come first."""
        until = time.monotonic() + _CATCH_UP_S
        while is_behind() and time.monotonic() < until:
            item = feed.next(_TICK_S)
            if item is not None and item.kind == "line":
                self.output(item.value)
            elif item is not None and item.kind == "entry":
                self.remember(item.value)

    def _is_behind(self, step: Mapping[str, Any], feed: _Feed) -> bool:
        answer = self._answers.get(step["name"], {})
        match step["state"]:
            case "PENDING" | "SENT" | "UNDOING":
                return False
            case "DONE":
                return (feed.saga_open and (not answer or "retryable" in answer)) or self._log_is_behind(step, feed)
            case "UNDONE":
                return feed.saga_open and "found" not in answer
        return self._log_is_behind(step, feed)

    def _log_is_behind(self, step: Mapping[str, Any], feed: _Feed) -> bool:
        return bool(step["name"] in _LOGGED and feed.log_open)

    def _show_state(self, step: Mapping[str, Any]) -> None:
        name = step["name"]
        answer = self._answers.get(name, {})
        match step["state"]:
            case "DONE":
                self._tick(name, f"{escape(wording.gist(name, answer))}  [quiet]{wording.took(step)}[/]")
            case "UNKNOWN":
                self.terminal.step("?", "bad", name, escape(wording.why(step)))
            case "UNDONE":
                self.terminal.step("↶", "undo", name, escape(wording.undone(answer)))
            case "SKIPPED":
                self.terminal.step("-", "undo", name, "undo skipped by a person")
            case "STUCK":
                self.terminal.step("!", "bad", name, f"the undo did not succeed: {escape(wording.why(step))}")


def _in_order(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As things happened: what went forward from first to last, then what was undone, from last to first."""
    undone = [each for each in steps if each["state"] in _FAILED]
    return [*(each for each in steps if each not in undone), *reversed(undone)]


def follow_to_the_end(
    platform: Platform, terminal: Terminal, saga_id: str, *, wait: bool, timeout_s: float | None
) -> Saga | None:
    """What a command does with the saga that it started: watch it, or say how to.

    Returns:
        The saga as it ended; none where nobody waits.

    Raises:
        Detached: Ctrl-C: it goes on without a watcher.
    """
    if not wait:
        terminal.say(f"[quiet]It goes on by itself. `knarr deployments {saga_id} --follow` shows its steps.[/]")
        return None
    try:
        return watch(platform, terminal, saga_id, timeout_s=timeout_s)
    except KeyboardInterrupt:
        raise Detached(saga_id) from None


class Detached(KnarrError):
    """Ctrl-C while watching."""

    code = "detached"

    def __init__(self, saga_id: str) -> None:
        """Say how to look again, and how to undo."""
        super().__init__(
            "Not watching any more; the deployment goes on",
            todo=f"See it with `knarr deployments {saga_id} --follow`, or undo it with `knarr sagas cancel {saga_id}`",
        )
        self.saga_id = saga_id
