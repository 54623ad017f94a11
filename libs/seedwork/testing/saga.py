"""Given, when, then for sagas: one lane, any number of sagas in it, a clock that tests move, and no I/O.

    scene = Scene(DEPLOY)
    scene.start("a")
    scene.ok("source")
    scene.fail("build")
    assert scene.sent("a")[-1] == "DiscardBuild"

What one saga has to tell another (`LaneGranted` …) is fed at once, as the coordinator does. Every decision is checked:
the row's JSON reads back as the same state, log numbers have no gaps, and `Scene.replayed` repeats the log.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import asdict, replace

from seedwork.decide import decide
from seedwork.lanes import Lane
from seedwork.messages import Message
from seedwork.saga import (
    Answered,
    Decision,
    Definitions,
    Input,
    LaneAwaited,
    LaneGranted,
    Notice,
    Origin,
    Outgoing,
    Pressed,
    Saga,
    SagaState,
    Started,
    StepState,
    Superseded,
    Timer,
    TimerFired,
    VerbName,
    timer_of,
)
from seedwork.saga_records import from_json, replay, to_json

APP_ID = "0192f0c1-2345-7abc-8def-0123456789ab"
HOUR_MS = 3_600_000


class Scene:
    """The coordinator's part, played by hand.

    Args:
        definitions: What can be started; the first one is meant where none is named.
        hold_s: How long a hold lasts.
    """

    def __init__(self, *definitions: Saga, hold_s: float = 3600.0) -> None:
        self.definitions = Definitions(definitions)
        self.default = definitions[0]
        self.hold_s = hold_s
        self.lane = Lane(app_id=APP_ID)
        self.sagas: dict[str, SagaState] = {}
        self.entries: dict[str, list[dict[str, Any]]] = {}
        self.out: dict[str, list[Outgoing]] = {}
        self.now_ms = 1_000_000
        self.jitter = 1.0
        self._links = 0
        self._latest = ""

    # ------------------------------------------------------------------------------------------ what happens

    def start(self, saga_id: str = "a", definition: Saga | None = None, **data: Any) -> SagaState:
        """A starting event with its example's data, but for what is given."""
        definition = definition or self.default
        payload = {**definition.starts_on.example().model_dump(mode="json"), **data}
        self._start(saga_id, definition, payload, definition.trigger(payload), payload.get("parent_id"))
        return self.sagas[saga_id]

    def ok(self, step: str, saga_id: str | None = None, *, attempt: int | None = None, **data: Any) -> SagaState:
        """The step's success event."""
        definition, at = self._step(step, saga_id)
        return self.answer(definition.ok, step, at, attempt=attempt, **data)

    def fail(
        self, step: str, saga_id: str | None = None, *, attempt: int | None = None, retryable: bool = False, **data: Any
    ) -> SagaState:
        """The step's failure event; final, if not said otherwise."""
        definition, at = self._step(step, saga_id)
        return self.answer(definition.failed, step, at, attempt=attempt, retryable=retryable, **data)

    def undone(self, step: str, saga_id: str | None = None, *, attempt: int | None = None) -> SagaState:
        """The answer to its undo."""
        definition, at = self._step(step, saga_id)
        if definition.undone is None:
            raise ValueError(f"step {step} has no undo")
        return self.answer(definition.undone, step, at, attempt=attempt)

    def answer(
        self,
        kind: type[Message],
        step: str | None,
        saga_id: str | None = None,
        *,
        attempt: int | None = None,
        **data: Any,
    ) -> SagaState:
        """Any message of a participant; of the step's latest attempt, if not said otherwise."""
        at = saga_id or self._latest
        latest = self.sagas[at].step(step).attempt if step else None
        given = Answered(
            at_ms=self.now_ms,
            jitter=self.jitter,
            message_id="m",
            type=kind.__name__,
            data={**kind.example().model_dump(mode="json"), **data},
            step=step,
            attempt=attempt if attempt is not None else latest,
        )
        return self.feed(at, given)

    def press(
        self,
        verb: VerbName,
        saga_id: str | None = None,
        *,
        why: str = "",
        force: bool = False,
        open_link: str | None = None,
    ) -> SagaState:
        """An operator's verb."""
        self._links += 1
        given = Pressed(
            at_ms=self.now_ms,
            jitter=self.jitter,
            verb=verb,
            who="ingrid",
            why=why,
            force=force,
            new_id=f"{saga_id or self._latest}-{verb}-{self._links}",
            open_link=open_link,
        )
        return self.feed(saga_id or self._latest, given)

    def wait(self, seconds: float) -> None:
        """Let time pass; timers fire when they are due, the earliest first."""
        until_ms = self.now_ms + int(seconds * 1000)
        while due := min(self._timers(), key=lambda each: each[1].due_ms, default=None):
            saga_id, timer = due
            if timer.due_ms > until_ms:
                break
            self.now_ms = max(self.now_ms, timer.due_ms)
            self.fire(saga_id, timer)
        self.now_ms = until_ms

    def fire(self, saga_id: str, timer: Timer) -> SagaState:
        """A timer, whether it still stands or not."""
        given = TimerFired(
            at_ms=self.now_ms,
            jitter=self.jitter,
            step=timer.step,
            attempt=timer.attempt,
            epoch=timer.epoch,
            kind=timer.kind,
        )
        return self.feed(saga_id, given)

    def feed(self, saga_id: str, given: Input) -> SagaState:
        """Any input; then whatever it makes others do."""
        definition = self.definitions[self.sagas[saga_id].origin.definition]
        self._write(saga_id, decide(definition, self.sagas[saga_id], self.lane, given))
        return self.sagas[saga_id]

    # ------------------------------------------------------------------------------------------ what there is

    def __getitem__(self, saga_id: str) -> SagaState:
        """A saga as it stands."""
        return self.sagas[saga_id]

    def step(self, name: str, saga_id: str | None = None) -> StepState:
        """A step as it stands."""
        return self.sagas[saga_id or self._latest].step(name)

    def steps(self, saga_id: str | None = None) -> dict[str, str]:
        """The state of each step."""
        return {each.name: each.state for each in self.sagas[saga_id or self._latest].steps}

    def timer(self, saga_id: str | None = None) -> Timer | None:
        """The saga's timer."""
        return timer_of(self.sagas[saga_id or self._latest])

    def sent(self, saga_id: str | None = None) -> list[str]:
        """The types of all messages that went out, oldest first."""
        return [type(each.message).__name__ for each in self.out[saga_id or self._latest]]

    def last(self, saga_id: str | None = None) -> Outgoing:
        """The message that went out last."""
        return self.out[saga_id or self._latest][-1]

    def replayed(self, saga_id: str) -> SagaState:
        """The state to which the log leads."""
        return replay(self.definitions, saga_id, self.entries[saga_id])[-1]

    # ------------------------------------------------------------------------------------------ the loop

    def _timers(self) -> Iterable[tuple[str, Timer]]:
        for saga_id, saga in self.sagas.items():
            timer = timer_of(saga)
            if timer is not None:
                yield saga_id, timer

    def _step(self, step: str, saga_id: str | None) -> tuple[Any, str]:
        at = saga_id or self._latest
        definition = self.definitions[self.sagas[at].origin.definition]
        return definition.steps[definition.positions[step]], at

    def _start(
        self, saga_id: str, definition: Saga, data: Mapping[str, Any], trigger: str, parent_id: str | None
    ) -> None:
        origin = Origin(
            saga_id=saga_id,
            definition=definition.key,
            app_id=APP_ID,
            app="shop",
            data=data,
            trigger=trigger,
            parent_id=parent_id,
            created_ms=self.now_ms,
            hold_ms=int(self.hold_s * 1000),
        )
        self.entries[saga_id], self.out[saga_id] = [], []
        self._latest = saga_id
        given = Started(at_ms=self.now_ms, message_id="m", type=definition.starts_on.__name__, origin=origin)
        self._write(saga_id, decide(definition, None, self.lane, given))

    def _write(self, saga_id: str, decision: Decision) -> None:
        before = self.sagas[saga_id].seq if saga_id in self.sagas else 0
        seqs = ([decision.entry.seq] if decision.entry else []) + [each.seq for each in decision.messages]
        if seqs != list(range(before + 1, decision.saga.seq + 1)):
            raise AssertionError(f"log numbers {seqs} after {before}")
        if from_json(*to_json(decision.saga)) != decision.saga:
            raise AssertionError(f"does not read back: {to_json(decision.saga)}")
        if Lane.from_record(decision.lane.to_record()) != decision.lane:
            raise AssertionError(f"does not read back: {decision.lane.to_record()}")
        self.sagas[saga_id], self.lane = decision.saga, decision.lane
        if decision.entry:
            self.entries[saga_id].append(asdict(decision.entry))
        self.out[saga_id] += decision.messages
        if decision.link:
            link = decision.link
            latest = self._latest
            self._start(link.saga_id, self.definitions.named(link.definition), link.data, link.trigger, saga_id)
            self._latest = latest
        for notice in decision.notices:
            self.feed(notice.saga_id, notice_input(notice, self.now_ms))


def notice_input(notice: Notice, at_ms: int) -> Input:
    """A notice as what the other saga receives."""
    if notice.kind == "LaneGranted":
        return LaneGranted(at_ms=at_ms, message_id="n")
    if notice.kind == "LaneAwaited":
        return LaneAwaited(at_ms=at_ms, message_id="n", by=notice.by)
    return Superseded(at_ms=at_ms, message_id="n", by=notice.by)


def without_reports(saga: SagaState) -> SagaState:
    """The state without what `WorkReported` changes: reports are not in the log."""
    wait = replace(saga.wait, due_ms=None, note="") if saga.wait else None
    return replace(saga, wait=wait, updated_ms=0)
