"""The rules of a saga (DESIGN §3.2, §3.3) as one pure function: a saga, its lane and what happened in; a decision out.

No input, output, clock or randomness; what is random or a time comes in with the input. Whoever calls it writes the
decision in one transaction, under version checks on the saga and on the lane, or not at all. Then any number of
coordinators, duplicates and restarts give the same histories as one coordinator that never fails.

    going forward   send a step ── ok ──► the next one … ──► SUCCEEDED
                         ├── retryable failure or silence ──► wait, send again … ──► held (PAUSED) ──► undo
                         └── final failure ──► undo
    undo            the last step ever sent first ── undone ──► the one before … ──► COMPENSATED
                         └── failure or silence ──► wait, send again … ──► STUCK

`state` follows from the rest (`_state_of`), so that it cannot contradict it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from seedwork.errors import NotFound
from seedwork.lanes import Lane, Waiting
from seedwork.messages import Message
from seedwork.saga import (
    Answered,
    Decision,
    Entry,
    Input,
    LaneAwaited,
    LaneGranted,
    Link,
    Meaning,
    Notice,
    Origin,
    Outgoing,
    Pause,
    Pressed,
    Reason,
    Saga,
    SagaState,
    Started,
    State,
    Step,
    StepState,
    Superseded,
    TimerFired,
    VerbName,
    VerbRefused,
    View,
    Wait,
    WaitKind,
    Way,
)

ALLOWED: Mapping[tuple[State, Way], frozenset[VerbName]] = {
    ("QUEUED", "forward"): frozenset({"cancel"}),
    ("RUNNING", "forward"): frozenset({"pause", "cancel"}),
    ("COMPENSATING", "undo"): frozenset({"pause"}),
    ("PAUSED", "forward"): frozenset({"resume", "retry", "cancel", "pause"}),
    ("PAUSED", "undo"): frozenset({"resume"}),
    ("STUCK", "forward"): frozenset({"retry", "skip"}),
    ("STUCK", "undo"): frozenset({"retry", "skip"}),
    ("SUCCEEDED", "forward"): frozenset({"compensate"}),
    ("COMPENSATED", "forward"): frozenset({"retry"}),
    ("COMPENSATED", "undo"): frozenset({"retry"}),
}
"""What an operator may press, by state and direction (`pause` of a hold removes its deadline)."""

_OVERDUE: Mapping[WaitKind, str] = {"answer": "AnswerOverdue", "retry": "RetryDue", "hold": "HoldOver"}


class UnknownSaga(NotFound):
    """A message for a saga that never started here."""


def decide(definition: Saga, saga: SagaState | None, lane: Lane, given: Input) -> Decision:
    """What is to be written because of one input.

    Args:
        definition: The one that the saga began with.
        saga: None where it is to start.
        lane: Of the saga's app; a new `Lane` where there is none.
        given: What happened.

    Raises:
        UnknownSaga: There is no saga, and the input does not start one.
        VerbRefused: The state does not allow the verb.
        Exception: Whatever the definition's functions raise, such as a payload that does not fit; nothing is decided.
    """
    if saga is None:
        if not isinstance(given, Started):
            raise UnknownSaga("No saga of that id ever started here", why=f"the input is a {type(given).__name__}")
        turn = _Turn(definition, _newborn(definition, given.origin), lane, given)
        turn.start(given)
        return turn.decision()
    turn = _Turn(definition, saga, lane, given)
    match given:
        case Answered():
            turn.answered(given)
        case TimerFired():
            turn.timer_fired(given)
        case LaneGranted():
            turn.lane_granted()
        case LaneAwaited():
            turn.lane_awaited(given)
        case Superseded():
            turn.superseded(given)
        case Pressed():
            turn.pressed(given)
        case Started():  # a second starting event for the same id
            turn.log("in", given.type, payload=given.origin.data, causation_id=given.causation_id)
        case _:
            raise TypeError(f"no rule for {type(given).__name__}")
    return turn.decision()


def allowed(saga: SagaState) -> frozenset[VerbName]:
    """The verbs of this state."""
    return ALLOWED.get((saga.state, saga.direction), frozenset())


def _newborn(definition: Saga, origin: Origin) -> SagaState:
    commit = origin.data.get("commit")
    return SagaState(
        origin=origin,
        steps=tuple(StepState(name=step.name) for step in definition.steps),
        commit=commit if isinstance(commit, str) else None,
    )


def _state_of(saga: SagaState) -> State:
    """The state as it follows from everything else, for a saga that has not ended."""
    current = saga.current
    if saga.fence is None:
        return "QUEUED"
    if current is not None and current.state == "STUCK":
        return "STUCK"
    if saga.held or saga.pause is not None:
        return "PAUSED"
    return "RUNNING" if saga.direction == "forward" else "COMPENSATING"


def _reason_of(step: StepState | None) -> Reason:
    """Why a saga ends that is undone because of this step."""
    code = step.error["code"] if step is not None and step.error is not None else "failed"
    if code in ("silent", "timed_out"):
        return "timed_out"
    return "superseded" if code == "superseded" else "failed"


class _Turn:
    """One call of `decide`: the saga and lane as they change, and what is to be written besides."""

    __slots__ = (
        "at_ms",
        "before",
        "context",
        "definition",
        "entry",
        "given",
        "lane",
        "link",
        "messages",
        "notices",
        "saga",
    )

    def __init__(self, definition: Saga, saga: SagaState, lane: Lane, given: Input) -> None:
        self.definition = definition
        self.before = saga
        self.saga = saga
        self.lane = lane
        self.given = given
        self.at_ms = given.at_ms
        self.entry: dict[str, Any] | None = None
        self.context: dict[str, Any] = {}
        self.messages: list[tuple[Message, str | None, int | None]] = []
        self.notices: list[Notice] = []
        self.link: Link | None = None

    # ------------------------------------------------------------------------------------------ the frame

    def log(
        self,
        direction: str,
        kind: str,
        *,
        payload: Mapping[str, Any],
        step: str | None = None,
        attempt: int | None = None,
        causation_id: str | None = None,
        whole_lane: bool = False,
    ) -> None:
        """Make the input a log entry, with what `decide` saw of the lane where that is not just the usual."""
        self.entry = {
            "direction": direction,
            "type": kind,
            "payload": payload,
            "step": step,
            "attempt": attempt,
            "causation_id": causation_id,
        }
        if whole_lane:
            self.context["lane"] = self.lane.to_record()
        elif self.lane.holder != self.saga.id or self.lane.waiting or self.lane.fence != self.saga.fence:
            self.context["lane"] = self.lane.seen_by(self.me).to_record()

    def decision(self) -> Decision:
        """What has come of it."""
        saga = self.saga
        if self.entry is None and not self.messages and self.link is None:
            return Decision(saga=saga, lane=self.lane, notices=tuple(self.notices))
        state = saga.state if saga.ended else _state_of(saga)
        first = saga.seq + (self.entry is not None)
        self.set(state=state, seq=first + len(self.messages), updated_ms=self.at_ms)
        entry = None
        if self.entry is not None:
            entry = Entry(
                seq=first,
                at_ms=self.at_ms,
                message_id=self.given.message_id,
                context=self.context,
                state=state,
                **self.entry,
            )
        messages = tuple(
            Outgoing(seq=first + i, message=message, step=step, attempt=attempt, fence=saga.fence)
            for i, (message, step, attempt) in enumerate(self.messages, 1)
        )
        return Decision(
            saga=self.saga,
            lane=self.lane,
            entry=entry,
            messages=messages,
            notices=tuple(self.notices),
            link=self.link,
        )

    def set(self, **changes: Any) -> None:
        """Change the saga: this turn's own copy of it, which nobody else sees before the decision is made."""
        self.saga = replace(self.saga, **changes)

    def set_step(self, name: str, **changes: Any) -> StepState:
        """Change one step."""
        i = self.definition.positions[name]
        steps = self.saga.steps
        step = replace(steps[i], **changes)
        self.set(steps=(*steps[:i], step, *steps[i + 1 :]))
        return step

    def set_wait(self, wait: Wait | None) -> None:
        """Set or stop the saga's timer; an earlier one is of another epoch from now on."""
        self.set(wait=wait, epoch=self.saga.epoch + 1)

    def wait_for(self, kind: WaitKind, duration_ms: int) -> None:
        """Wait so long, or, while an operator pauses, until it goes on."""
        due_ms = self.at_ms + duration_ms if self.saga.pause is None else None
        self.set_wait(Wait(kind=kind, since_ms=self.at_ms, due_ms=due_ms))

    def backoff_ms(self, wait_ms: Callable[[int, float], int], tries: int) -> int:
        """The wait before another attempt; the jitter that it took is part of the log."""
        self.context["jitter"] = self.given.jitter
        return wait_ms(tries, self.given.jitter)

    @property
    def me(self) -> Waiting:
        """This saga as it stands in the queue."""
        origin = self.saga.origin
        return Waiting(saga_id=origin.saga_id, place=self.definition.place(origin.data), commit=self.saga.commit)

    @property
    def view(self) -> View:
        """For the definition's functions."""
        return View(self.saga, self.lane)

    # ------------------------------------------------------------------------------------------ the lane

    def start(self, given: Started) -> None:
        """Take the lane if it is free; else wait in it."""
        origin = given.origin
        born = {name: getattr(origin, name) for name in origin.__struct_fields__ if name not in ("saga_id", "data")}
        self.context["origin"] = born
        self.log("in", given.type, payload=origin.data, causation_id=given.causation_id)
        if self.lane.holder is None:
            self.lane = self.lane.taken_by(origin.saga_id)
            self.granted()
            return
        me = self.me
        at_once = self.definition.replaces_after is None
        newest = max(self.lane.in_group(me.place.group), key=lambda each: each.age, default=me)
        if at_once and newest.age > me.age:
            self.end_superseded(newest.saga_id)
            return
        self.notices.append(Notice(saga_id=self.lane.holder, kind="LaneAwaited", by=origin.saga_id))
        self.lane, replaced = self.lane.joined_by(me, replaces=at_once)
        self.supersede(replaced)

    def lane_granted(self) -> None:
        """The lane is ours: begin. Not if we left while the word was under way, or have begun already.

        A saga that goes first may have come in between: then it goes, and we are next.
        """
        if self.saga.state != "QUEUED" or self.lane.holder != self.saga.id:
            return
        self.log("in", "LaneGranted", payload={"fence": self.lane.fence})
        self.lane, ahead = self.lane.stood_back_from(self.me)
        if ahead is None:
            self.granted()
        else:
            self.notices.append(Notice(saga_id=ahead, kind="LaneGranted", by=self.saga.id))

    def granted(self) -> None:
        """Begin with the first step, under the new fence."""
        self.set(fence=self.lane.fence)
        self.forward()

    def lane_awaited(self, given: LaneAwaited) -> None:
        """Somebody waits behind us: a hold is over, and a rollback is let past."""
        saga = self.saga
        if saga.state == "QUEUED" or self.lane.holder != saga.id or not self.lane.waiting:
            return
        hold_ends = saga.held and saga.pause is None and saga.direction == "forward"
        if hold_ends or self.gives_way():
            self.log("in", "LaneAwaited", payload={"by": given.by})
            self.begin_undo(_reason_of(saga.current) if hold_ends else "cancelled")

    def gives_way(self) -> bool:
        """Whether a saga that goes first waits, and this one has not come too far for it."""
        before, saga = self.definition.gives_way_before, self.saga
        return (
            before is not None
            and saga.direction == "forward"
            and not saga.ended
            and saga.pause is None
            and saga.step(before).attempt == 0
            and any(each.place.first for each in self.lane.waiting)
        )

    def superseded(self, given: Superseded) -> None:
        """A newer one took our place in the queue."""
        saga = self.saga
        if saga.state == "QUEUED" and self.lane.holder != saga.id and not self.lane.is_waiting(saga.id):
            self.log("in", "Superseded", payload={"by": given.by})
            self.end_superseded(given.by)

    def supersede(self, saga_ids: tuple[str, ...]) -> None:
        """Tell those whose place this saga took."""
        self.notices += [Notice(saga_id=each, kind="Superseded", by=self.saga.id) for each in saga_ids]

    def end_superseded(self, by: str) -> None:
        """End before anything was sent."""
        self.set(reason="superseded", superseded_by=by)
        self.end("COMPENSATED")

    def leave_lane(self) -> None:
        """Let the next one in."""
        self.lane, following = self.lane.left_by(self.saga.id)
        if following is not None:
            self.notices.append(Notice(saga_id=following, kind="LaneGranted", by=self.saga.id))

    # ------------------------------------------------------------------------------------------ going forward

    def forward(self) -> None:
        """Send the next step; or it was the last one. An operator's pause or a rollback comes first."""
        current = self.saga.current
        if current is None:
            self.succeed()
        elif self.gives_way():
            self.begin_undo("cancelled")
        elif self.saga.pause is None:
            self.send(current)

    def send(self, current: StepState) -> None:
        """One more attempt of this step."""
        step = self.definition.steps[self.definition.positions[current.name]]
        command = step.send(self.view)
        sent = self.set_step(
            current.name,
            state="SENT",
            attempt=current.attempt + 1,
            tries=current.tries + 1,
            started_ms=current.started_ms if current.started_ms is not None else self.at_ms,
            ended_ms=None,
        )
        self.messages.append((command, step.name, sent.attempt))
        self.wait_for("answer", _ms(step.timeout_s))

    def succeed(self) -> None:
        """Every step is done; or a person skipped one that cannot be undone, and then something is left over."""
        if self.saga.left_over:
            self.set(reason="failed")
            self.end("COMPENSATED")
            return
        if self.definition.remember is not None:
            entry = {"number": self.saga.origin.number, **self.definition.remember(self.view)}
            self.lane = self.lane.with_live({**entry, "saga_id": self.saga.id})
        if self.definition.success_reason is not None:
            self.set(reason=self.definition.success_reason(self.view))
        self.end("SUCCEEDED")

    def done(self, current: StepState, data: Mapping[str, Any]) -> None:
        """The step succeeded, in whatever attempt; a hold is over, a pause is not."""
        self.set_step(current.name, state="DONE", ended_ms=self.at_ms, error=None, result=data)
        commit = data.get("commit")
        learns = self.saga.commit is None or self.definition.commit_of == current.name
        self.set(held=False, commit=commit if learns and isinstance(commit, str) else self.saga.commit)
        self.set_wait(None)
        if self.definition.replaces_after == current.name:
            self.lane, replaced = self.lane.without_older_than(self.me)
            self.supersede(replaced)
        self.forward()

    def attempt_failed(self, current: StepState, error: Mapping[str, Any], *, silent: bool) -> None:
        """Another attempt after a wait; after the last one the saga is held for a specialist."""
        step = self.definition.steps[self.definition.positions[current.name]]
        if current.state == "SENT" and current.tries < step.retry.attempts:
            self.set_step(current.name, error=error)
            self.wait_for("retry", self.backoff_ms(step.retry.wait_ms, current.tries))
            return
        self.set_step(current.name, state="UNKNOWN" if silent else "FAILED", error=error, ended_ms=self.at_ms)
        if not self.saga.held:
            self.hold(current.name)

    def hold(self, name: str) -> None:
        """Wait for a specialist; not where nobody is to wait, or others of the app do."""
        if self.definition.forward_only:
            self.set_step(name, state="STUCK")
            self.stop_for_a_person()
        elif self.saga.pause is None and (self.saga.origin.hold_ms == 0 or self.lane.waiting):
            self.begin_undo(_reason_of(self.saga.current))
        else:
            self.set(held=True)
            self.wait_for("hold", self.saga.origin.hold_ms)

    # ------------------------------------------------------------------------------------------ the undo

    def begin_undo(self, reason: Reason, superseded_by: str | None = None) -> None:
        """Turn round. A step whose answer is not known may have had its effect."""
        for each in self.saga.steps:
            if each.state == "SENT":
                self.set_step(each.name, state="UNKNOWN", ended_ms=self.at_ms)
        self.set(
            direction="undo",
            held=False,
            reason=reason,
            superseded_by=superseded_by or self.saga.superseded_by,
        )
        self.set_wait(None)
        self.undo_next()

    def undo_next(self) -> None:
        """Undo the last step that was ever sent and still stands; or it is all undone."""
        current = self.saga.current
        while current is not None and self.definition.steps[self.definition.positions[current.name]].undo is None:
            self.set_step(current.name, state="UNDONE", ended_ms=self.at_ms)
            current = self.saga.current
        if current is None:
            self.end("COMPENSATED")
        elif self.saga.pause is None:
            self.send_undo(current if current.state == "UNDOING" else replace(current, tries=0))

    def send_undo(self, current: StepState) -> None:
        """One more attempt to undo this step."""
        step = self.definition.steps[self.definition.positions[current.name]]
        if step.undo is None:
            raise TypeError(f"step {step.name} has no undo")
        command = step.undo(self.view)
        sent = self.set_step(
            current.name,
            state="UNDOING",
            attempt=current.attempt + 1,
            undo_attempts=current.undo_attempts + 1,
            tries=current.tries + 1,
            ended_ms=None,
        )
        self.messages.append((command, step.name, sent.attempt))
        self.wait_for("answer", _ms(step.undo_timeout_s))

    def undo_attempt_failed(self, current: StepState, error: Mapping[str, Any]) -> None:
        """Another attempt after a wait; after the last one only a person can help."""
        step = self.definition.steps[self.definition.positions[current.name]]
        if current.tries < step.undo_retry.attempts:
            self.set_step(current.name, error=error)
            self.wait_for("retry", self.backoff_ms(step.undo_retry.wait_ms, current.tries))
            return
        self.set_step(current.name, state="STUCK", error=error, ended_ms=self.at_ms)
        self.stop_for_a_person()
        self.leave_lane()  # what is left to undo touches only this saga's own things

    def stop_for_a_person(self) -> None:
        """STUCK: no timer, no pause; `retry` or `skip` goes on."""
        self.set(pause=None)
        self.set_wait(None)

    # ------------------------------------------------------------------------------------------ the end

    def end(self, state: State) -> None:
        """Tell everybody, and let the next one in."""
        self.set(state=state, held=False, pause=None)
        self.set_wait(None)
        tell = self.definition.succeeded if state == "SUCCEEDED" else self.definition.compensated
        self.messages.append((tell(self.view), None, None))
        self.leave_lane()

    # ------------------------------------------------------------------------------------------ answers

    def answered(self, given: Answered) -> None:
        """A participant's message; what it means depends on which way the saga goes."""
        meaning, current = self.meaning_of(given)
        if meaning == "reported":
            if current is not None:
                self.reported(current, given)
            return
        self.log(
            "in",
            given.type,
            payload=given.data,
            step=current.name if current else given.step,
            attempt=given.attempt,
            causation_id=given.causation_id,
        )
        if current is None or self.saga.ended:
            return
        latest = given.attempt is None or given.attempt == current.attempt
        forward = self.saga.direction == "forward"
        if meaning == "ok" and forward and current.state in ("SENT", "UNKNOWN", "FAILED", "STUCK"):
            self.done(current, given.data)
        elif meaning == "failed" and forward and latest and current.state in ("SENT", "UNKNOWN"):
            self.failed(current, given.data)
        elif meaning == "undone" and not forward and current.state in ("UNDOING", "STUCK"):
            self.set_step(current.name, state="UNDONE", ended_ms=self.at_ms)
            self.set_wait(None)
            self.undo_next()
        elif meaning == "undo_failed" and latest and current.state == "UNDOING" and self.awaits_answer():
            self.undo_attempt_failed(current, self.error(given.data, current))

    def meaning_of(self, given: Answered) -> tuple[Meaning | None, StepState | None]:
        """What the message says, and of which step; none where it fits no step."""
        meaning, only = self.definition.meanings.get(given.type, (None, None))
        if given.step is not None:
            at = self.definition.positions.get(given.step)
        elif only is None and self.saga.current is not None:
            at = self.definition.positions[self.saga.current.name]
        else:
            at = only
        if at is None:
            return meaning, None
        step = self.definition.steps[at]
        expected: Mapping[Meaning | None, type[Message] | None] = {
            "ok": step.ok,
            "failed": step.failed,
            "undone": step.undone,
        }
        kind = expected.get(meaning)
        fits = meaning in ("reported", "undo_failed") or (kind is not None and kind.__name__ == given.type)
        return meaning, self.saga.steps[at] if fits else None

    def awaits_answer(self) -> bool:
        """Whether an answer is outstanding (and not already counted as a failure)."""
        return self.saga.wait is not None and self.saga.wait.kind == "answer"

    def error(self, data: Mapping[str, Any], current: StepState) -> Mapping[str, Any]:
        """What a specialist needs to know of a failure."""
        return {
            "code": data.get("code", "failed"),
            "message": data.get("message", ""),
            "retryable": bool(data.get("retryable", False)),
            "log_tail": list(data.get("log_tail", ())),
            "attempt": current.attempt,
            "at_ms": self.at_ms,
        }

    def failed(self, current: StepState, data: Mapping[str, Any]) -> None:
        """The latest attempt failed: for good, or worth another one."""
        error = self.error(data, current)
        if error["retryable"] or self.definition.forward_only:
            if self.awaits_answer() or current.state == "UNKNOWN":
                self.attempt_failed(current, error, silent=False)
            return
        failed = self.set_step(current.name, state="FAILED", error=error, ended_ms=self.at_ms)
        self.begin_undo(_reason_of(failed), superseded_by=data.get("superseded_by"))

    def reported(self, current: StepState, given: Answered) -> None:
        """Somebody works on it: the wait for the answer begins anew. Not in the log."""
        saga, wait = self.saga, self.saga.wait
        mine = current.state == "SENT" or (current.state == "UNDOING" and given.attempt in (None, current.attempt))
        if wait is None or wait.kind != "answer" or not mine or saga.current != current:
            return
        step = self.definition.steps[self.definition.positions[current.name]]
        timeout_s = step.timeout_s if saga.direction == "forward" else step.undo_timeout_s
        due_ms = None if wait.due_ms is None else self.at_ms + _ms(timeout_s)
        self.set(wait=replace(wait, due_ms=due_ms, note=_note(given.data)), updated_ms=self.at_ms)

    # ------------------------------------------------------------------------------------------ timers

    def timer_fired(self, given: TimerFired) -> None:
        """A wait is over; a timer of another epoch, or one that was moved, changes nothing."""
        saga, wait = self.saga, self.saga.wait
        if wait is None or wait.due_ms is None or given.epoch != saga.epoch or given.at_ms < wait.due_ms:
            return
        current = saga.current
        if current is None:
            return
        self.context["epoch"] = given.epoch
        payload = {"kind": wait.kind, "due_ms": wait.due_ms, "last_report": wait.note}
        self.log("timer", _OVERDUE[wait.kind], payload=payload, step=current.name, attempt=current.attempt)
        if wait.kind == "hold":
            self.begin_undo(_reason_of(current))
        elif wait.kind == "retry":
            self.again(current)
        else:
            self.silence(current)

    def again(self, current: StepState) -> None:
        """One more attempt, whichever way the saga goes."""
        if self.saga.direction == "undo":
            self.send_undo(current)
        elif self.gives_way():
            self.begin_undo("cancelled")
        else:
            self.send(current)

    def silence(self, current: StepState) -> None:
        """No answer in time. The last report stays out of the error: reports are not in the log, and it replays."""
        step = self.definition.steps[self.definition.positions[current.name]]
        timeout_s = step.timeout_s if self.saga.direction == "forward" else step.undo_timeout_s
        data = {
            "code": "silent",
            "message": f"{step.participant} did not answer within {timeout_s:g} s. Its log says why.",
            "retryable": True,
        }
        error = self.error(data, current)
        if self.saga.direction == "undo":
            self.undo_attempt_failed(current, error)
        else:
            self.attempt_failed(current, error, silent=True)

    # ------------------------------------------------------------------------------------------ verbs

    def pressed(self, given: Pressed) -> None:
        """An operator's verb, where the state allows it; one that is in force already changes nothing."""
        if self.in_force(given):
            return
        if given.verb not in allowed(self.saga):
            raise VerbRefused(
                self.saga,
                f"A saga that is {self.saga.state} cannot {given.verb}",
                todo=f"Possible now: {', '.join(sorted(allowed(self.saga))) or 'nothing'}.",
            )
        self.context["new_id"] = given.new_id
        payload: dict[str, Any] = {"by": given.who, "reason": given.why}
        if given.force:
            payload["force"] = True
        current = self.saga.current
        worked_on = None if self.saga.ended or self.saga.state == "QUEUED" or current is None else current.name
        self.log("operator", given.verb, payload=payload, step=worked_on, whole_lane=self.saga.ended)
        press: Mapping[VerbName, Callable[[Pressed], None]] = {
            "pause": self.press_pause,
            "resume": self.press_resume,
            "retry": self.press_retry,
            "cancel": self.press_cancel,
            "skip": self.press_skip,
            "compensate": self.press_compensate,
        }
        press[given.verb](given)

    def in_force(self, given: Pressed) -> bool:
        """Whether the saga already does what is asked for."""
        saga = self.saga
        if given.verb == "pause":
            return saga.pause is not None
        if given.verb == "cancel":
            return saga.reason == "cancelled"
        linked = (given.verb, saga.state) in (("retry", "COMPENSATED"), ("compensate", "SUCCEEDED"))
        return linked and given.open_link is not None

    def press_pause(self, given: Pressed) -> None:
        """Send nothing more; what runs may end. The lane stays ours, and a hold has no deadline."""
        self.set(pause=Pause(by=given.who, since_ms=self.at_ms, why=given.why))
        if self.saga.wait is not None:
            self.set_wait(replace(self.saga.wait, due_ms=None))

    def press_resume(self, given: Pressed) -> None:
        """Go on where the pause began; a hold goes on as with `retry`."""
        if self.saga.held:
            self.press_retry(given)
            return
        self.set(pause=None)
        current, wait = self.saga.current, self.saga.wait
        if current is not None and wait is not None and wait.kind == "answer":
            step = self.definition.steps[self.definition.positions[current.name]]
            timeout_s = step.timeout_s if self.saga.direction == "forward" else step.undo_timeout_s
            self.set_wait(replace(wait, due_ms=self.at_ms + _ms(timeout_s)))
            if self.gives_way():
                self.begin_undo("cancelled")
        elif self.saga.direction == "forward":
            self.forward()
        else:
            self.undo_next()

    def press_retry(self, given: Pressed) -> None:
        """Exactly this step again, with a fresh allowance; an undone saga again as a new one."""
        if self.saga.state == "COMPENSATED":
            self.start_again(given)
            return
        current = self.saga.current
        if current is None or (not self.saga.held and current.state != "STUCK"):
            if current is not None:
                self.set_step(current.name, tries=0)
            self.press_resume(given)
            return
        self.set(held=False, pause=None)
        self.set_wait(None)
        self.again(self.set_step(current.name, tries=0))

    def press_cancel(self, _given: Pressed) -> None:
        """End before the beginning, or turn round."""
        if self.saga.state == "QUEUED":
            self.set(reason="cancelled")
            self.end("COMPENSATED")
            return
        if self.definition.forward_only:
            raise VerbRefused(
                self.saga,
                f"A {self.definition.name} saga cannot be cancelled once it has begun",
                why="what it removes cannot be brought back",
                todo="Let it end, or pause it.",
            )
        self.set(pause=None)
        self.begin_undo("cancelled")

    def press_skip(self, _given: Pressed) -> None:
        """Leave what this step cannot get rid of, and say so in the end."""
        current = self.saga.current
        if current is None:
            return
        step = self.definition.steps[self.definition.positions[current.name]]
        what, where = step.leaves(self.view) if step.leaves else (f"whatever {step.name} made", step.participant)
        self.set_step(current.name, state="SKIPPED", ended_ms=self.at_ms)
        self.set(left_over=(*self.saga.left_over, {"what": what, "where": where}))
        if self.saga.direction == "undo":
            self.undo_next()
        else:
            self.forward()

    def start_again(self, given: Pressed) -> None:
        """A new linked saga for the same thing; older than what is live only by force."""
        live = self.lane.live.get("number") if self.lane.live else None
        number = self.saga.origin.number
        if number is not None and live is not None and live > number and not given.force:
            raise VerbRefused(
                self.saga,
                f"Deployment {number} is older than what is live",
                why=f"deployment {live} came after it",
                todo=f"Run `knarr sagas retry {self.saga.id} --force` to put the older one in its place.",
            )
        data = dict(self.definition.again(self.view)) if self.definition.again else dict(self.saga.origin.data)
        if given.force:
            data["force"] = True
        self.start_link(Link(definition=self.definition.name, data=data, trigger="retry", saga_id=given.new_id))

    def press_compensate(self, given: Pressed) -> None:
        """A new linked saga that puts back what this one replaced."""
        if self.definition.compensation is None:
            raise VerbRefused(self.saga, f"A {self.definition.name} saga leaves nothing that could be put back")
        self.start_link(replace(self.definition.compensation(self.view), saga_id=given.new_id))

    def start_link(self, link: Link) -> None:
        """Ask for the new saga, and remember it."""
        self.link = link
        self.set(linked_id=link.saga_id)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _note(data: Mapping[str, Any]) -> str:
    """A report on one line: `queued, position 3`, `running: installing 12 packages`."""
    status = str(data.get("status", "running"))
    position = data.get("position")
    text = f"{status}, position {position}" if position is not None else status
    note = str(data.get("note", ""))
    return f"{text}: {note}" if note else text


__all__ = ["ALLOWED", "Step", "UnknownSaga", "allowed", "decide"]
