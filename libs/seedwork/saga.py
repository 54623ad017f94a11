"""What a saga is: its definition (data, written once), its state, what moves it and what a move decides. No rules here.

A definition reads downward as the flow and upward as the undo:

    DEPLOY = Saga(
        name="deploy",
        starts_on=DeploymentRequested,
        steps=(
            Step("source", send=fetch_source, ok=SourceFetched, failed=SourceFetchFailed,
                 undo=discard_source, undone=SourceDiscarded, timeout_s=120),
            ...
        ),
        succeeded=deployment_succeeded,
        compensated=deployment_failed,
    )

The rules are in `seedwork.decide`, the lane in `seedwork.lanes`. Everything here is frozen, holds JSON values only, and
can be compared, so that a saga's log can be replayed and the outcome compared with its row.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from msgspec import Struct

from seedwork.errors import Conflict, Misconfigured
from seedwork.lanes import Lane, Place
from seedwork.messages import Command, Event, FailureEvent, Message, UndoFailed, WorkReported

M = TypeVar("M", bound=Message)

State = Literal["QUEUED", "RUNNING", "COMPENSATING", "PAUSED", "STUCK", "SUCCEEDED", "COMPENSATED"]
StepStatus = Literal["PENDING", "SENT", "DONE", "FAILED", "UNKNOWN", "UNDOING", "UNDONE", "STUCK", "SKIPPED"]
Way = Literal["forward", "undo"]
Reason = Literal["failed", "timed_out", "cancelled", "superseded", "unchanged"]
"""Why a saga ended as it did; `unchanged` is the reason of a success."""
VerbName = Literal["pause", "resume", "retry", "cancel", "skip", "compensate"]
Meaning = Literal["ok", "failed", "undone", "undo_failed", "reported"]
WaitKind = Literal["answer", "retry", "hold"]

ENDED: frozenset[State] = frozenset({"SUCCEEDED", "COMPENSATED"})
_OVER = frozenset({"DONE", "SKIPPED"})
_UNDONE = frozenset({"UNDONE", "SKIPPED"})
OPEN: tuple[State, ...] = ("QUEUED", "RUNNING", "COMPENSATING", "PAUSED", "STUCK")


# ---------------------------------------------------------------------------------------------------- definitions


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how long to wait in between: exponential with full jitter (anything from 0 to the whole wait).

    Full jitter keeps the sagas that one outage stopped from coming back all at once (AWS Architecture Blog,
    "Exponential Backoff And Jitter").
    """

    attempts: int = 5
    first_s: float = 1.0
    factor: float = 2.0
    longest_s: float = 60.0

    def wait_ms(self, tries: int, jitter: float) -> int:
        """How long to wait after that many attempts; `jitter` is from 0 to 1."""
        return int(min(self.longest_s, self.first_s * self.factor ** (tries - 1)) * 1000 * jitter)


FORWARD = Retry(attempts=9, first_s=1.0, longest_s=60.0)
"""Three minutes at most, half of it on average: a server that restarts, or is away for a minute, needs nobody; after
that a person is asked."""
UNDO = Retry(attempts=12, first_s=1.0, longest_s=120.0)
"""Some ten minutes at most, half of it on average: more than forward, since nobody wants to clean up by hand because a
server was away."""


def in_turn(_data: Mapping[str, Any]) -> Place:
    """First come, first served."""
    return Place()


def as_told(data: Mapping[str, Any]) -> str:
    """The starting event's own `trigger`."""
    return str(data.get("trigger") or "api")


@dataclass(frozen=True)
class Step:
    """One service's part, and how it is undone.

    `send` and `undo` make the command from what the saga knows; they must not look anywhere else. A step without an
    `undo` leaves nothing that could be undone.
    """

    name: str
    send: "Callable[[View], Command]"
    ok: type[Event]
    failed: type[FailureEvent]
    undo: "Callable[[View], Command] | None" = None
    undone: type[Event] | None = None
    timeout_s: float = 60.0
    """Silence for so long is a failed attempt; each `WorkReported` begins it anew."""
    retry: Retry = FORWARD
    undo_timeout_s: float = 60.0
    undo_retry: Retry = UNDO
    leaves: "Callable[[View], tuple[str, str]] | None" = None
    """(what, where) stays behind if a person skips its undo."""

    @property
    def participant(self) -> str:
        """Who answers: the service in whose contract the answer is written."""
        module = self.ok.__module__.split(".")
        return module[-2] if len(module) > 1 and module[-1] == "contract" else module[-1]


@dataclass(frozen=True, kw_only=True)
class Saga:
    """A definition. A saga remembers the one that it began with by `key`; steps are addressed by name."""

    name: str
    starts_on: type[Event]
    steps: tuple[Step, ...]
    succeeded: "Callable[[View], Event]"
    compensated: "Callable[[View], Event]"
    version: int = 1
    forward_only: bool = False
    """Nothing can be undone: what fails is tried again, and waits for a person (`STUCK`) in the end."""
    place: Callable[[Mapping[str, Any]], Place] = in_turn
    trigger: Callable[[Mapping[str, Any]], str] = as_told
    replaces_after: str | None = None
    """Those of its group that wait and are older end as `superseded` once this step is done; None: when it joins."""
    gives_way_before: str | None = None
    """Until this step is sent, a saga that goes first cancels it."""
    remember: "Callable[[View], Mapping[str, Any]] | None" = None
    """What the lane keeps of a saga that succeeded."""
    success_reason: "Callable[[View], Reason | None] | None" = None
    """What a success is marked with; None: nothing."""
    again: "Callable[[View], Mapping[str, Any]] | None" = None
    """What a `retry` of an undone saga starts with; None: the same data."""
    compensation: "Callable[[View], Link] | None" = None
    """What `compensate` starts; raises `VerbRefused` with a sentence where it cannot."""
    commit_of: str | None = None
    """The step whose answer has the saga's commit, also where another id was asked for (a tag's); None: the first
    answer that has one, where no commit was asked for."""
    positions: Mapping[str, int] = field(init=False, compare=False)
    meanings: Mapping[str, tuple[Meaning, int | None]] = field(init=False, compare=False)
    """By message type: what it means, and for which step where only one can send it."""

    def __post_init__(self) -> None:
        """Index steps and answers; say what is contradictory."""
        positions = {step.name: i for i, step in enumerate(self.steps)}
        if len(positions) != len(self.steps) or not self.steps:
            raise Misconfigured(f"Saga {self.name} needs steps, each with a name of its own")
        for named in (self.replaces_after, self.gives_way_before, self.commit_of):
            if named is not None and named not in positions:
                raise Misconfigured(f"Saga {self.name} has no step {named!r}")
        meanings: dict[str, tuple[Meaning, int | None]] = {
            WorkReported.__name__: ("reported", None),
            UndoFailed.__name__: ("undo_failed", None),
        }
        for i, step in enumerate(self.steps):
            if (step.undo is None) != (step.undone is None):
                raise Misconfigured(f"Step {step.name} of saga {self.name} needs both undo and undone, or neither")
            answers: Sequence[tuple[Meaning, type[Event] | None]] = (
                ("ok", step.ok),
                ("failed", step.failed),
                ("undone", step.undone),
            )
            for meaning, answer in answers:
                if answer is not None:
                    known = meanings.get(answer.__name__)
                    if known is not None and known[0] != meaning:
                        raise Misconfigured(f"{answer.__name__} means two things in saga {self.name}")
                    meanings[answer.__name__] = (meaning, i if known is None else None)
        object.__setattr__(self, "positions", MappingProxyType(positions))
        object.__setattr__(self, "meanings", MappingProxyType(meanings))

    @property
    def key(self) -> str:
        """`deploy@1`."""
        return f"{self.name}@{self.version}"

    @property
    def answers(self) -> set[type[Message]]:
        """The types of message that move it."""
        types: set[type[Message]] = {WorkReported, UndoFailed}
        for step in self.steps:
            types |= {step.ok, step.failed} | ({step.undone} if step.undone else set())
        return types


class Definitions:
    """Every definition in the code, old ones included while a saga uses them."""

    def __init__(self, definitions: Iterable[Saga]) -> None:
        self._by_key: dict[str, Saga] = {}
        self._by_start: dict[str, Saga] = {}
        self._latest: dict[str, Saga] = {}
        for each in definitions:
            if each.key in self._by_key:
                raise Misconfigured(f"There are two definitions {each.key}")
            self._by_key[each.key] = each
            known = self._latest.get(each.name)
            if known is None or known.version < each.version:
                self._latest[each.name] = each
        for each in self._latest.values():
            if each.starts_on.__name__ in self._by_start:
                raise Misconfigured(f"Two sagas start on {each.starts_on.__name__}")
            self._by_start[each.starts_on.__name__] = each

    def __getitem__(self, key: str) -> Saga:
        """By `deploy@1`.

        Raises:
            Misconfigured: It is not in the code (any more).
        """
        try:
            return self._by_key[key]
        except KeyError:
            raise Misconfigured(
                f"The saga definition {key} is not in the code",
                why="a saga that has not ended began with it",
                todo="Start the version of knarr that has it, and let those sagas end first.",
            ) from None

    def __contains__(self, key: object) -> bool:
        """Whether there is one of that key."""
        return key in self._by_key

    def named(self, name: str) -> Saga:
        """The latest of that name."""
        return self._latest[name]

    def started_by(self, message_type: str) -> Saga | None:
        """The latest one that starts on this type of message."""
        return self._by_start.get(message_type)

    def messages(self) -> list[type[Message]]:
        """Every type that starts or moves one, by name."""
        types: set[type[Message]] = {each.starts_on for each in self._latest.values()}
        for each in self._by_key.values():
            types |= each.answers
        return sorted(types, key=lambda each: each.__name__)

    def commands(self) -> list[type[Message]]:
        """Every type that a step may send, by name: the commands in the contracts of those who answer."""
        contracts = {step.ok.__module__ for saga in self._by_key.values() for step in saga.steps}
        found = [each for name in contracts for each in vars(sys.modules[name]).values() if isinstance(each, type)]
        types = {each for each in found if issubclass(each, Command) and each is not Command}
        return sorted(types, key=lambda each: each.__name__)


# ---------------------------------------------------------------------------------------------------- state


class Origin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a saga was started with; it never changes."""

    saga_id: str
    definition: str
    """`deploy@1`."""
    app_id: str
    app: str = ""
    team: str = "default"
    data: Mapping[str, Any] = {}
    """The starting event's payload."""
    trigger: str = "api"
    parent_id: str | None = None
    created_ms: int = 0
    hold_ms: int = 0
    """How long a hold lasts; 0: no hold. Kept here so that a replay does not depend on a setting."""
    traceparent: str | None = None

    @property
    def saga(self) -> str:
        """The definition's name."""
        return self.definition.partition("@")[0]

    @property
    def number(self) -> int | None:
        """The order of deployments, per app."""
        number = self.data.get("number")
        return number if isinstance(number, int) else None


class StepState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of one saga."""

    name: str
    state: StepStatus = "PENDING"
    attempt: int = 0
    """Number of the latest attempt, forward or undo; never begins anew."""
    undo_attempts: int = 0
    """How many of them were undos."""
    tries: int = 0
    """Attempts of the present allowance."""
    started_ms: int | None = None
    ended_ms: int | None = None
    error: Mapping[str, Any] | None = None
    """Of the latest failure: `code, message, retryable, log_tail, attempt, at_ms`."""
    result: Mapping[str, Any] | None = None
    """The success event's data."""


class Wait(Struct, frozen=True, kw_only=True, array_like=True):
    """What the saga waits for by itself."""

    kind: WaitKind
    since_ms: int
    due_ms: int | None
    """None: an operator stopped the clock."""
    note: str = ""
    """The latest report of whoever works on it."""


class Pause(Struct, frozen=True, kw_only=True, array_like=True):
    """An operator's pause."""

    by: str
    since_ms: int
    why: str = ""


class SagaState(Struct, frozen=True, kw_only=True):
    """One saga as it stands; its row, without the version of the row."""

    origin: Origin
    steps: tuple[StepState, ...]
    state: State = "QUEUED"
    direction: Way = "forward"
    held: bool = False
    pause: Pause | None = None
    reason: Reason | None = None
    superseded_by: str | None = None
    linked_id: str | None = None
    """The latest saga that was started from this one by `retry` or `compensate`."""
    commit: str | None = None
    fence: int | None = None
    wait: Wait | None = None
    epoch: int = 0
    """Of the timer: whatever sets or stops it raises this."""
    seq: int = 0
    """Of the last log entry."""
    left_over: tuple[Mapping[str, str], ...] = ()
    updated_ms: int = 0

    @property
    def id(self) -> str:
        """The saga's id."""
        return self.origin.saga_id

    @property
    def ended(self) -> bool:
        """Whether nothing will move it any more."""
        return self.state in ENDED

    @property
    def needs_attention(self) -> bool:
        """Whether a person is asked for."""
        return self.held or self.state == "STUCK"

    @property
    def current(self) -> StepState | None:
        """The step that is worked on: going forward the first that is not done, in an undo the last that was sent."""
        if self.direction == "forward":  # plain loops: they take a third of the time, and every rule asks
            for step in self.steps:
                if step.state not in _OVER:
                    return step
            return None
        for step in reversed(self.steps):
            if step.attempt and step.state not in _UNDONE:
                return step
        return None

    @property
    def failed_step(self) -> StepState | None:
        """The first step with an error, where the saga is undone because of one."""
        return next((step for step in self.steps if step.error is not None), None)

    def step(self, name: str) -> StepState:
        """The step of that name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise LookupError(f"saga {self.id} has no step {name}")


class View(Struct, frozen=True):
    """What a definition's functions see: the saga and its lane, as models."""

    saga: SagaState
    lane: Lane

    def started(self, model: type[M]) -> M:
        """The starting event's payload."""
        return model.model_validate(self.saga.origin.data)

    def result(self, step: str, model: type[M]) -> M:
        """What that step answered.

        Raises:
            LookupError: It did not succeed (yet).
        """
        result = self.saga.step(step).result
        if result is None:
            raise LookupError(f"step {step} of saga {self.saga.id} has no result")
        return model.model_validate(result)

    @property
    def known_commits(self) -> dict[str, str]:
        """Commit by saga: those that are live or wait in the lane."""
        return self.lane.known_commits(but=self.saga.id)


# ---------------------------------------------------------------------------------------------------- inputs


class Input(Struct, frozen=True, kw_only=True):
    """Something happened. Time, jitter and ids come in here, so that `decide` needs none of its own."""

    at_ms: int
    jitter: float = 1.0
    """From 0 to 1."""
    message_id: str | None = None


class Started(Input, frozen=True, kw_only=True):
    """A starting event, or a linked saga's beginning."""

    type: str
    origin: Origin
    causation_id: str | None = None


class Answered(Input, frozen=True, kw_only=True):
    """A message of a participant."""

    type: str
    data: Mapping[str, Any]
    step: str | None = None
    attempt: int | None = None
    causation_id: str | None = None


class TimerFired(Input, frozen=True, kw_only=True):
    """A wait is over."""

    step: str | None
    attempt: int
    epoch: int
    kind: WaitKind


class Pressed(Input, frozen=True, kw_only=True):
    """An operator's verb."""

    verb: VerbName
    who: str
    why: str = ""
    force: bool = False
    new_id: str = ""
    """The id of the linked saga, should there be one."""
    open_link: str | None = None
    """A linked saga of this one that has not ended."""


class LaneGranted(Input, frozen=True, kw_only=True):
    """The lane is this saga's."""


class LaneAwaited(Input, frozen=True, kw_only=True):
    """Another saga waits for the lane that this one has."""

    by: str


class Superseded(Input, frozen=True, kw_only=True):
    """A newer saga took this one's place in the queue."""

    by: str


# ---------------------------------------------------------------------------------------------------- decisions


class Entry(Struct, frozen=True, kw_only=True):
    """A log entry for what came in."""

    seq: int
    at_ms: int
    direction: Literal["in", "timer", "operator"]
    type: str
    message_id: str | None
    causation_id: str | None
    step: str | None
    attempt: int | None
    payload: Mapping[str, Any]
    context: Mapping[str, Any]
    """What `decide` received besides the payload; with it the log can be replayed."""
    state: State


class Outgoing(Struct, frozen=True, kw_only=True):
    """A command or an event that goes out; it is a log entry, too (`out`)."""

    seq: int
    message: Message
    step: str | None = None
    attempt: int | None = None
    fence: int | None = None


class Timer(Struct, frozen=True, kw_only=True):
    """What has to be fed back as `TimerFired`, and when. A saga has at most one."""

    due_ms: int
    kind: WaitKind
    step: str | None
    attempt: int
    epoch: int


class Notice(Struct, frozen=True, kw_only=True):
    """What another saga has to be told, stored in the same transaction."""

    saga_id: str
    kind: Literal["LaneGranted", "LaneAwaited", "Superseded"]
    by: str


class Link(Struct, frozen=True, kw_only=True):
    """A saga to be started from this one, in the same transaction."""

    definition: str
    """A name, not a version: a new saga takes the latest."""
    data: Mapping[str, Any]
    trigger: str
    saga_id: str = ""


class Decision(Struct, frozen=True, kw_only=True):
    """What is to be written, all of it or nothing."""

    saga: SagaState
    lane: Lane
    entry: Entry | None = None
    """None: nothing worth a log entry happened (a report, a stale timer)."""
    messages: tuple[Outgoing, ...] = ()
    notices: tuple[Notice, ...] = ()
    link: Link | None = None

    @property
    def timer(self) -> Timer | None:
        """The one timer that stands after this decision."""
        return timer_of(self.saga)


def timer_of(saga: SagaState) -> Timer | None:
    """The timer that a saga in this state has."""
    wait = saga.wait
    if wait is None or wait.due_ms is None:
        return None
    step = saga.current
    return Timer(
        due_ms=wait.due_ms,
        kind=wait.kind,
        step=step.name if step else None,
        attempt=step.attempt if step else 0,
        epoch=saga.epoch,
    )


class VerbRefused(Conflict):
    """The saga is not in a state that allows this verb; the answer names the state."""

    def __init__(self, saga: SagaState, what: str, *, why: str = "", todo: str = "") -> None:
        super().__init__(what, why=why, todo=todo)
        self.extensions = MappingProxyType({"saga_id": saga.id, "state": saga.state, "direction": saga.direction})
