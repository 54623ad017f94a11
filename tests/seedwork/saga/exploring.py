"""Breadth first through every state that sagas in one lane can reach, with one or two coordinators.

What may happen in a state: a saga begins; any answer that a sent attempt could give, late and repeated ones included; a
timer, also one that is out of date; a notice that is under way, once or twice; an operator's verb. Without `desks` that
is decided and written at once. With them it is taken by one of two coordinators, which decides on what it has read and
writes later, if nothing has moved since, or dies before: then it is as if it had not been taken, and comes again.

Each step through the graph is also told to the reference model, which knows nothing of `decide`. Times, and numbers
that only count, are left out of a state.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from seedwork.decide import allowed, decide
from seedwork.lanes import Lane
from seedwork.messages import UndoFailed
from seedwork.saga import (
    Answered,
    Decision,
    Input,
    Notice,
    Origin,
    Pressed,
    Saga,
    SagaState,
    Started,
    TimerFired,
    VerbName,
    timer_of,
)
from seedwork.testing.saga import notice_input
from tests.simulation.reference_model import Flow, LogEntry, SagaModel

VERBS: tuple[VerbName, ...] = ("pause", "resume", "retry", "cancel", "skip")


@dataclass(frozen=True)
class Desk:
    """What one coordinator has taken and decided, and not written yet."""

    saga: int
    given: Input
    decision: Decision
    seen_notice: Notice | None = None

    def key(self) -> Any:
        """Two desks with the same input will write the same."""
        return self.saga, _what(self.given)


@dataclass(frozen=True)
class World:
    """Some sagas, their lane, what one still has to be told by another, and what lies on desks."""

    sagas: tuple[SagaState | None, ...]
    lane: Lane
    notices: frozenset[Notice]
    definition: Saga
    models: tuple[SagaModel, ...]
    desks: tuple[Desk, ...] = ()
    wrong: tuple[str, ...] = ()
    """What the reference model said on the way here."""

    def key(self) -> Any:
        """What makes two worlds the same."""
        lane = (self.lane.holder, tuple(each.saga_id for each in self.lane.waiting), self.lane.fence)
        desks = tuple(sorted(repr(each.key()) for each in self.desks))
        return tuple(_essence(each) for each in self.sagas), lane, self.notices, desks, self.wrong


@dataclass
class Explored:
    """All worlds by key, and from which ones each is reached."""

    worlds: dict[Any, World] = field(default_factory=dict)
    reached_from: dict[Any, set[Any]] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What is illegal in any of them."""
        return [problem for world in self.worlds.values() for problem in illegal(world)]

    def dead_ends(self) -> int:
        """How many worlds there are from which not all sagas can come to their end."""
        ends = [
            key for key, world in self.worlds.items() if all(each is not None and each.ended for each in world.sagas)
        ]
        alive, todo = set(ends), deque(ends)
        while todo:
            for before in self.reached_from[todo.popleft()]:
                if before not in alive:
                    alive.add(before)
                    todo.append(before)
        return len(self.worlds) - len(alive)


def explore(
    definition: Saga,
    *,
    sagas: int = 1,
    verbs: Sequence[VerbName] = (),
    desks: bool = False,
    most_attempts: int = 3,
    until_wrong: bool = False,
) -> Explored:
    """All that can be reached.

    Args:
        definition: Of every saga.
        sagas: How many there are in the lane; they begin in any order and at any time.
        verbs: Those that an operator may press.
        desks: Whether two coordinators take, decide, die and write.
        most_attempts: Forward, and as many of an undo: each more is the same again under a higher number.
        until_wrong: Stop at the first world that is illegal.
    """
    flow = _flow(definition)
    first = World((None,) * sagas, Lane(app_id="app"), frozenset(), definition, (SagaModel(flow),) * sagas)
    explored = Explored({first.key(): first}, {first.key(): set()})
    todo = deque([first])
    while todo:
        world = todo.popleft()
        here = world.key()
        for each in _following(world, verbs, desks=desks):
            if _too_far(each, most_attempts):
                continue
            key = each.key()
            explored.reached_from.setdefault(key, set()).add(here)
            if key not in explored.worlds:
                explored.worlds[key] = each
                if until_wrong and illegal(each):
                    return explored
                todo.append(each)
    return explored


# ------------------------------------------------------------------------------------------------ what may happen


def _following(world: World, verbs: Sequence[VerbName], *, desks: bool) -> Iterator[World]:
    """Every world that one event leads to."""
    for i, given, notice in _events(world, verbs):
        if not desks:
            decision = decide(world.definition, world.sagas[i], world.lane, given)
            yield from _told(_written(world, i, given, decision), notice)
        elif len(world.desks) < 2:
            decision = decide(world.definition, world.sagas[i], world.lane, given)
            yield replace(world, desks=(*world.desks, Desk(i, given, decision, notice)))
    for desk in world.desks:
        others = tuple(each for each in world.desks if each is not desk)
        yield replace(world, desks=others)  # it died, or lost
        after = _written(replace(world, desks=others), desk.saga, desk.given, desk.decision)
        moved_lane = after.lane != world.lane
        fresh = tuple(each for each in others if each.saga != desk.saga and not moved_lane)
        yield from _told(replace(after, desks=fresh), desk.seen_notice)


def _told(world: World, notice: Notice | None) -> Iterator[World]:
    """A notice that was delivered may come once more."""
    yield world
    if notice is not None:
        yield replace(world, notices=world.notices - {notice})


def _events(world: World, verbs: Sequence[VerbName]) -> Iterator[tuple[int, Input, Notice | None]]:
    for i, saga in enumerate(world.sagas):
        if saga is None:
            origin = Origin(
                saga_id=f"s{i}", definition=world.definition.key, app_id="app", data={"number": i}, hold_ms=1000
            )
            yield i, Started(at_ms=0, type=world.definition.starts_on.__name__, origin=origin), None
            continue
        for given in _inputs(world.definition, saga, verbs):
            yield i, given, None
        for notice in sorted(world.notices, key=repr):
            if notice.saga_id == saga.id:
                yield i, notice_input(notice, 0), notice


def _inputs(definition: Saga, saga: SagaState, verbs: Sequence[VerbName]) -> Iterator[Input]:
    """Whatever could happen to this saga now."""
    timer = timer_of(saga)
    if timer is not None:
        fired = TimerFired(
            at_ms=timer.due_ms, step=timer.step, attempt=timer.attempt, epoch=timer.epoch, kind=timer.kind
        )
        yield fired
        yield structs.replace(fired, epoch=timer.epoch - 1)
    for known, step in zip(definition.steps, saga.steps, strict=True):
        for attempt in {max(1, step.attempt - 1), step.attempt} if step.attempt else ():
            answers: list[tuple[str, dict[str, Any]]] = [
                (known.ok.__name__, {}),
                (known.failed.__name__, {"retryable": False}),
                (known.failed.__name__, {"retryable": True}),
            ]
            if known.undone is not None and step.undo_attempts:
                answers += [(known.undone.__name__, {}), (UndoFailed.__name__, {"retryable": True})]
            for kind, data in answers:
                yield Answered(at_ms=0, type=kind, data=data, step=step.name, attempt=attempt)
    if not saga.ended:
        for verb in verbs:
            if verb in allowed(saga):
                yield Pressed(at_ms=0, verb=verb, who="x")


def _written(world: World, i: int, given: Input, decision: Decision) -> World:
    """The world with a decision written, and the reference model told of it."""
    sagas = list(world.sagas)
    before, sagas[i] = sagas[i], decision.saga
    wrong = list(world.wrong)
    if isinstance(given, TimerFired) and before is not None:
        timer = timer_of(before)
        if (timer is None or timer.epoch != given.epoch) and decision.saga != before:
            wrong.append(f"a timer of epoch {given.epoch} moved {before.state}, whose epoch is {before.epoch}")
    models = list(world.models)
    models[i] = copy.deepcopy(models[i]) if decision.entry or decision.messages else models[i]
    for entry in _log(decision):
        wrong += models[i].note(entry)
    return replace(
        world,
        sagas=tuple(sagas),
        models=tuple(models),
        lane=decision.lane,
        notices=world.notices | set(decision.notices),
        wrong=tuple(wrong),
    )


def _log(decision: Decision) -> Iterator[LogEntry]:
    """The rows that the coordinator writes."""
    saga, entry = decision.saga, decision.entry
    if entry is not None:
        yield LogEntry(
            saga_id=saga.id, seq=entry.seq, at_ms=entry.at_ms, direction=entry.direction, type=entry.type,
            step=entry.step, attempt=entry.attempt, state=entry.state, payload=entry.payload,
        )  # fmt: skip
    for each in decision.messages:
        yield LogEntry(
            saga_id=saga.id, seq=each.seq, at_ms=0, direction="out", type=type(each.message).__name__, step=each.step,
            attempt=each.attempt, state=saga.state, payload={},
        )  # fmt: skip


def _flow(definition: Saga) -> Flow:
    """The definition in the model's words: what each step sends is known once it has sent it."""
    return tuple(
        (
            step.name,
            _command(step.send),
            step.ok.__name__,
            step.failed.__name__,
            _command(step.undo) if step.undo else "",
            step.undone.__name__ if step.undone else "",
        )
        for step in definition.steps
    )


def _command(make: Any) -> str:
    return type(make(None)).__name__


# ------------------------------------------------------------------------------------------------ when two are the same


def _what(given: Input) -> Any:
    match given:
        case Answered():
            return given.type, given.step, given.attempt, given.data.get("retryable")
        case Pressed():
            return given.verb
        case TimerFired():
            return "timer", given.kind, given.epoch
    return type(given).__name__, getattr(given, "by", None)


def _essence(saga: SagaState | None) -> Any:
    if saga is None:
        return None
    steps = tuple((step.state, step.attempt, step.undo_attempts, step.tries) for step in saga.steps)
    wait = (saga.wait.kind, saga.wait.due_ms is None) if saga.wait else None
    return saga.state, saga.direction, saga.held, saga.pause is not None, saga.reason, steps, wait, saga.fence


def _too_far(world: World, most_attempts: int) -> bool:
    """Whether a step was tried more often than is looked at."""
    steps = [step for saga in world.sagas if saga is not None for step in saga.steps]
    return any(max(step.attempt - step.undo_attempts, step.undo_attempts) > most_attempts for step in steps)


# ------------------------------------------------------------------------------------------------ what must not be


def illegal(world: World) -> list[str]:
    """What must not be in this world, or on the way to it."""
    lane = world.lane
    problems = list(world.wrong)
    for saga in world.sagas:
        if saga is not None:
            problems += _illegal_saga(saga, world)
    holder = next((saga for saga in world.sagas if saga is not None and saga.id == lane.holder), None)
    if lane.holder is not None and (holder is None or holder.ended):
        problems.append("the lane is held by nobody who lives")
    if lane.holder is None and lane.waiting:
        problems.append("a free lane in which somebody waits")
    return problems


def _illegal_saga(saga: SagaState, world: World) -> Iterator[str]:
    """What must not be with one saga."""
    told = any(notice.saga_id == saga.id for notice in world.notices)
    person = saga.state == "STUCK" or saga.pause is not None
    moves = timer_of(saga) is not None or person or world.lane.is_waiting(saga.id) or told
    if not saga.ended and not moves:
        yield f"{saga.id} waits for nothing"
    if saga.state in ("RUNNING", "PAUSED") and saga.direction == "forward" and world.lane.holder != saga.id:
        yield f"{saga.id} goes forward without the lane"
    if saga.state == "SUCCEEDED" and any(step.state != "DONE" for step in saga.steps):
        yield f"{saga.id} has succeeded without all of its steps"
    standing = any(step.attempt and step.state not in ("UNDONE", "SKIPPED") for step in saga.steps)
    if saga.state == "COMPENSATED" and standing:
        yield f"{saga.id} left a step standing"
