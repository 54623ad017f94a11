"""The rules of sagas once more, small and written apart from `decide`: what a log may say, and what a lane may be.

Fed with log entries in the order in which they were committed, each model keeps what has happened to one saga and says
what must not have. It knows tables, counts and sets; no retries, no timers, no lanes. Written from DESIGN §3, by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Flow = Sequence[tuple[str, str, str, str, str, str]]
"""Step, command, success, failure, undo, undone; the last two are empty where nothing is left to be undone."""

FLOWS: Mapping[str, Flow] = {
    "deploy": (
        ("source", "FetchSource", "SourceFetched", "SourceFetchFailed", "DiscardSource", "SourceDiscarded"),
        ("build", "BuildImage", "ImageBuilt", "ImageBuildFailed", "DiscardBuild", "BuildDiscarded"),
        ("publish", "PublishImage", "ImagePublished", "ImagePublishFailed", "UnpublishImage", "ImageUnpublished"),
        ("deploy", "DeployRelease", "ReleaseDeployed", "ReleaseDeployFailed", "RollBackRelease", "ReleaseRolledBack"),
        ("observe", "ObserveRelease", "ReleaseObserved", "ReleaseObserveFailed", "StopObserving", "ObservationStopped"),
    ),
    "release": (
        ("publish", "PublishImage", "ImagePublished", "ImagePublishFailed", "UnpublishImage", "ImageUnpublished"),
        ("deploy", "DeployRelease", "ReleaseDeployed", "ReleaseDeployFailed", "RollBackRelease", "ReleaseRolledBack"),
        ("observe", "ObserveRelease", "ReleaseObserved", "ReleaseObserveFailed", "StopObserving", "ObservationStopped"),
    ),
    "rebase": (
        ("rebase", "RebaseImage", "ImageRebased", "ImageBuildFailed", "DiscardBuild", "BuildDiscarded"),
        ("publish", "PublishImage", "ImagePublished", "ImagePublishFailed", "UnpublishImage", "ImageUnpublished"),
        ("deploy", "DeployRelease", "ReleaseDeployed", "ReleaseDeployFailed", "RollBackRelease", "ReleaseRolledBack"),
        ("observe", "ObserveRelease", "ReleaseObserved", "ReleaseObserveFailed", "StopObserving", "ObservationStopped"),
    ),
    "remove": (
        ("retire", "RetireApp", "AppRetired", "RetireAppFailed", "", ""),
        ("drop_images", "DropImages", "ImagesDropped", "DropImagesFailed", "", ""),
    ),
}

ENDS = {"SUCCEEDED", "COMPENSATED"}
NEXT: Mapping[str, set[str]] = {
    "": {"QUEUED", "RUNNING", "COMPENSATED"},
    "QUEUED": {"QUEUED", "RUNNING", "COMPENSATED"},
    "RUNNING": {"RUNNING", "PAUSED", "COMPENSATING", "STUCK", "SUCCEEDED", "COMPENSATED"},
    "PAUSED": {"PAUSED", "RUNNING", "COMPENSATING", "STUCK", "SUCCEEDED", "COMPENSATED"},
    "COMPENSATING": {"COMPENSATING", "PAUSED", "STUCK", "COMPENSATED"},
    "STUCK": {"STUCK", "COMPENSATING", "RUNNING", "SUCCEEDED", "COMPENSATED"},
    "SUCCEEDED": {"SUCCEEDED"},
    "COMPENSATED": {"COMPENSATED"},
}
"""Which state may follow which; STUCK goes forward only where nothing can be undone."""

MAY_PRESS: Mapping[str, set[str]] = {
    "QUEUED": {"cancel"},
    "RUNNING": {"pause", "cancel"},
    "COMPENSATING": {"pause"},
    "PAUSED": {"resume", "retry", "cancel", "pause"},
    "STUCK": {"retry", "skip"},
    "SUCCEEDED": {"compensate"},
    "COMPENSATED": {"retry"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A row of the saga log, as it was committed."""

    saga_id: str
    seq: int
    at_ms: int
    direction: str
    type: str
    step: str | None
    attempt: int | None
    state: str
    payload: Mapping[str, Any]


@dataclass(slots=True)
class SagaModel:
    """One saga. `note` takes an entry and gives back what is wrong with it."""

    flow: Flow
    state: str = ""
    seq: int = 0
    undoing: bool = False
    ended: str = ""
    """The event that told so."""
    sent: list[str] = field(default_factory=list)
    """Steps, in the order of their first command."""
    done: set[str] = field(default_factory=set)
    undo_sent: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)

    @property
    def holds_lane(self) -> bool:
        """Whether it is one that nobody else of the app may be beside."""
        return bool(self.sent) and not self.undoing and not self.ended

    @property
    def standing(self) -> list[str]:
        """Steps that are still to be undone, oldest first; one without an undo leaves nothing."""
        lasting = {name for name, _, _, _, undo, _ in self.flow if undo}
        return [each for each in self.sent if each in lasting and each not in self.undone and each not in self.skipped]

    def note(self, entry: LogEntry) -> list[str]:
        """Take it over."""
        wrong = []
        if entry.seq != self.seq + 1:
            wrong.append(f"entry {entry.seq} follows {self.seq}: the log has a gap or a double")
        if entry.state not in NEXT[self.state]:
            wrong.append(f"{self.state} became {entry.state} by {entry.type}")
        if entry.direction == "operator":
            wrong += self._pressed(entry)
        before, self.state, self.seq = self.state, entry.state, entry.seq
        self.undoing = self.undoing or entry.state == "COMPENSATING"
        match entry.direction:
            case "in":
                self._answered(entry)
            case "out":
                wrong += self._sent(entry)
            case "timer":
                wrong += self._fired(entry, before)
        return wrong

    def _pressed(self, entry: LogEntry) -> list[str]:
        wrong = []
        if entry.type not in MAY_PRESS[self.state]:
            wrong.append(f"{entry.type} was pressed in {self.state}")
        if not entry.payload.get("by"):
            wrong.append(f"nobody pressed {entry.type}")
        if entry.type == "skip" and entry.step:
            self.skipped.add(entry.step)
        return wrong

    def _answered(self, entry: LogEntry) -> None:
        for name, _, ok, _, _, undone in self.flow:
            if entry.step == name and entry.type == ok and name in self.sent and not self.undoing:
                self.done.add(name)
            # The undo of what comes last is the only one that can be under way.
            mine = bool(undone) and entry.step == name and entry.type == undone
            if mine and name in self.undo_sent and self.standing[-1:] == [name]:
                self.undone.add(name)

    def _fired(self, entry: LogEntry, before: str) -> list[str]:
        wrong = []
        if before in ENDS or before in {"QUEUED", "STUCK"}:
            wrong.append(f"a timer moved it while it was {before}")
        if entry.at_ms < entry.payload["due_ms"]:
            wrong.append(f"the timer of {entry.payload['due_ms']} fired at {entry.at_ms}")
        if entry.attempt != self.attempts.get(entry.step or "", 0):
            wrong.append(f"a timer of attempt {entry.attempt} of {entry.step} fired in another one")
        return wrong

    def _sent(self, entry: LogEntry) -> list[str]:
        if entry.step is None:
            return self._end(entry)
        for i, (name, command, _, _, undo, _) in enumerate(self.flow):
            if entry.step == name and entry.type in {command, undo}:
                wrong = self._attempt(name, entry)
                earlier = [each[0] for each in self.flow[:i]]
                return wrong + (self._undo(name) if entry.type == undo else self._forward(name, earlier))
        return [f"{entry.type} for step {entry.step} is none of its commands"]

    def _attempt(self, name: str, entry: LogEntry) -> list[str]:
        before, self.attempts[name] = self.attempts.get(name, 0), entry.attempt or 0
        wrong = [] if self.attempts[name] == before + 1 else [f"attempt {entry.attempt} of {name} follows {before}"]
        if self.ended:
            wrong.append(f"{entry.type} was sent after {self.ended}")
        return wrong

    def _forward(self, name: str, earlier: list[str]) -> list[str]:
        wrong = []
        if self.undoing:
            wrong.append(f"{name} was sent forward during the undo")
        if name in self.done:
            wrong.append(f"{name} was sent again though it was done")
        if missing := [each for each in earlier if each not in self.done and each not in self.skipped]:
            wrong.append(f"{name} was sent before {', '.join(missing)} was done")
        if name not in self.sent:
            self.sent.append(name)
        return wrong

    def _undo(self, name: str) -> list[str]:
        wrong = []
        if not self.undoing:
            wrong.append(f"the undo of {name} was sent while going forward")
        if self.standing[-1:] != [name]:
            wrong.append(f"the undo of {name} was sent, but {self.standing[-1:]} comes first")
        self.undo_sent.add(name)
        return wrong

    def _end(self, entry: LogEntry) -> list[str]:
        """What goes out without a step tells everybody how it ended."""
        wrong = [f"{entry.type} after {self.ended}"] if self.ended else []
        if entry.state == "SUCCEEDED":
            if self.undoing or self.skipped or {each[0] for each in self.flow} != self.done:
                wrong.append(f"it succeeded with {sorted(self.done)} done, undoing: {self.undoing}")
        else:
            if self.standing:
                wrong.append(f"it was called undone with {self.standing} still to be undone")
            if entry.state != "COMPENSATED":
                wrong.append(f"{entry.type} in {entry.state}")
        self.ended = entry.type
        return wrong


@dataclass(slots=True)
class LaneModel:
    """One app's lane."""

    fence: int = 0
    holder: str | None = None

    def note(self, body: Mapping[str, Any]) -> list[str]:
        """Take its new row over; what is wrong with it."""
        holder, fence = body["holder"], body["fence"]
        waiting = [each[0] for each in body["waiting"]]
        wrong = []
        if fence < self.fence:
            wrong.append(f"the fence went from {self.fence} to {fence}")
        if holder != self.holder and holder is not None and fence == self.fence:
            wrong.append(f"{holder} got the lane under the fence of {self.holder}")
        if holder is None and waiting:
            wrong.append(f"nobody has the lane, and {waiting} wait for it")
        if len(set(waiting)) != len(waiting) or holder in waiting:
            wrong.append(f"somebody waits twice: {holder}, {waiting}")
        self.fence, self.holder = fence, holder
        return wrong
