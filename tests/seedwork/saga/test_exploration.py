"""Every state that two sagas in one lane can reach, breadth first: all legal, and none of them a dead end.

What may happen in a state: any answer that a sent attempt could give, late and repeated ones included; a timer; a
notice that is under way, once or twice; an operator's verb. Times and numbers that only count are left out of a state.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from seedwork.decide import allowed, decide
from seedwork.lanes import Lane, Place
from seedwork.messages import UndoFailed
from seedwork.saga import (
    Answered,
    Decision,
    Input,
    Notice,
    Origin,
    Pressed,
    Retry,
    Saga,
    SagaState,
    Started,
    Step,
    TimerFired,
    VerbName,
    timer_of,
)
from seedwork.testing.saga import notice_input
from tests.seedwork.saga.trips import (
    Land,
    Landed,
    LandFailed,
    Sail,
    SailBack,
    Sailed,
    SailedBack,
    SailFailed,
    TripEnded,
    TripGivenUp,
    TripRequested,
)

TWICE = Retry(attempts=2, first_s=0)
HOP = Saga(
    name="hop",
    starts_on=TripRequested,
    steps=(
        Step(
            "sail",
            send=lambda _: Sail(crates=1),
            ok=Sailed,
            failed=SailFailed,
            undo=lambda _: SailBack(),
            undone=SailedBack,
            retry=TWICE,
            undo_retry=TWICE,
        ),
        Step("land", send=lambda _: Land(), ok=Landed, failed=LandFailed, retry=Retry(attempts=1)),
    ),
    succeeded=lambda _: TripEnded(),
    compensated=lambda view: TripGivenUp(reason=view.saga.reason or ""),
    place=lambda data: Place(group="hop", order=data["number"]),
    replaces_after="sail",
)
ONCE = Retry(attempts=1)
SHORT = replace(HOP, steps=tuple(replace(step, retry=ONCE, undo_retry=ONCE) for step in HOP.steps))
VERBS: tuple[VerbName, ...] = ("pause", "resume", "retry", "cancel", "skip")
MOST_ATTEMPTS = 3
"""Forward, and as many of the undo: each more is the same again under a higher number."""


@dataclass(frozen=True)
class World:
    """Two sagas, their lane, and what one still has to be told by the other."""

    sagas: tuple[SagaState | None, ...]
    lane: Lane
    notices: frozenset[Notice]
    definition: Saga = HOP

    def key(self) -> Any:
        """What makes two worlds the same."""
        lane = (self.lane.holder, tuple(each.saga_id for each in self.lane.waiting), self.lane.fence)
        return tuple(_essence(each) for each in self.sagas), lane, self.notices


def _essence(saga: SagaState | None) -> Any:
    if saga is None:
        return None
    steps = tuple((step.state, step.attempt, step.undo_attempts, step.tries) for step in saga.steps)
    wait = (saga.wait.kind, saga.wait.due_ms is None) if saga.wait else None
    return saga.state, saga.direction, saga.held, saga.pause is not None, saga.reason, steps, wait, saga.fence


def starts(world: World) -> Iterator[World]:
    """The sagas that have not begun."""
    for i, saga in enumerate(world.sagas):
        if saga is None:
            origin = Origin(
                saga_id=f"s{i}",
                definition=world.definition.key,
                app_id="app",
                data={"number": i},
                hold_ms=1000,
                created_ms=0,
            )
            given = Started(at_ms=0, type="TripRequested", origin=origin)
            yield after(world, i, decide(world.definition, None, world.lane, given))


def inputs(saga: SagaState, *, verbs: bool) -> Iterator[Input]:
    """Whatever could happen to this saga now."""
    timer = timer_of(saga)
    if timer is not None:
        yield TimerFired(at_ms=timer.due_ms, step=timer.step, attempt=timer.attempt, epoch=timer.epoch, kind=timer.kind)
    for definition, step in zip(HOP.steps, saga.steps, strict=True):
        for attempt in {max(1, step.attempt - 1), step.attempt} if step.attempt else ():
            answers: list[tuple[str, dict[str, Any]]] = [
                (definition.ok.__name__, {}),
                (definition.failed.__name__, {"retryable": False}),
                (definition.failed.__name__, {"retryable": True}),
            ]
            if definition.undone is not None and step.undo_attempts:
                answers += [(definition.undone.__name__, {}), (UndoFailed.__name__, {"retryable": True})]
            for kind, data in answers:
                yield Answered(at_ms=0, type=kind, data=data, step=step.name, attempt=attempt)
    if verbs:
        for verb in allowed(saga) & set(VERBS):
            if not saga.ended:
                yield Pressed(at_ms=0, verb=verb, who="x")


def following(world: World, *, verbs: bool) -> Iterator[World]:
    """Every world that one event leads to."""
    yield from starts(world)
    for i, saga in enumerate(world.sagas):
        if saga is None:
            continue
        for given in inputs(saga, verbs=verbs):
            yield after(world, i, decide(world.definition, saga, world.lane, given))
        for notice in world.notices:
            if notice.saga_id == saga.id:
                told = after(world, i, decide(world.definition, saga, world.lane, notice_input(notice, 0)))
                yield told  # delivered, and to be delivered again
                yield replace(told, notices=told.notices - {notice})


def after(world: World, i: int, decision: Decision) -> World:
    """The world with a decision written; times do not count."""
    sagas = list(world.sagas)
    sagas[i] = decision.saga
    return replace(world, sagas=tuple(sagas), lane=decision.lane, notices=world.notices | set(decision.notices))


def explore(definition: Saga, *, count: int, verbs: bool) -> tuple[dict[Any, World], dict[Any, set[Any]]]:
    """All worlds by key, and from which ones each is reached."""
    first = World((None,) * count, Lane(app_id="app"), frozenset(), definition)
    worlds = {first.key(): first}
    reached_from: dict[Any, set[Any]] = {first.key(): set()}
    todo = deque([first])
    while todo:
        world = todo.popleft()
        here = world.key()
        for each in following(world, verbs=verbs):
            if too_far(each):
                continue
            key = each.key()
            reached_from.setdefault(key, set()).add(here)
            if key not in worlds:
                worlds[key] = each
                todo.append(each)
    return worlds, reached_from


def too_far(world: World) -> bool:
    """Whether a step was tried more often than is looked at."""
    steps = [step for saga in world.sagas if saga is not None for step in saga.steps]
    return any(max(step.attempt - step.undo_attempts, step.undo_attempts) > MOST_ATTEMPTS for step in steps)


def illegal(world: World) -> list[str]:
    """What must not be."""
    lane = world.lane
    problems = [problem for saga in world.sagas if saga is not None for problem in illegal_saga(saga, world)]
    holder = next((saga for saga in world.sagas if saga is not None and saga.id == lane.holder), None)
    if lane.holder is not None and (holder is None or holder.ended):
        problems.append("the lane is held by nobody who lives")
    if lane.holder is None and lane.waiting:
        problems.append("a free lane in which somebody waits")
    return problems


def illegal_saga(saga: SagaState, world: World) -> Iterator[str]:
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


def dead_ends(worlds: dict[Any, World], reached_from: dict[Any, set[Any]]) -> int:
    """How many worlds there are from which not all sagas can come to their end."""
    ends = [key for key, world in worlds.items() if all(saga is not None and saga.ended for saga in world.sagas)]
    alive, todo = set(ends), deque(ends)
    while todo:
        for before in reached_from[todo.popleft()]:
            if before not in alive:
                alive.add(before)
                todo.append(before)
    return len(worlds) - len(alive)


def test_every_state_of_one_saga_with_an_operator_is_legal_and_leads_to_an_end() -> None:
    """Every verb in every state, at any moment."""
    worlds, reached_from = explore(HOP, count=1, verbs=True)
    print(f"{len(worlds)} states")  # noqa: T201  how much was seen is part of the result
    assert [problem for world in worlds.values() for problem in illegal(world)] == []
    assert dead_ends(worlds, reached_from) == 0
    assert len(worlds) > 200


def test_every_state_of_two_sagas_in_one_lane_is_legal_and_leads_to_an_end() -> None:
    """Waiting, superseded, granted twice; without an operator."""
    worlds, reached_from = explore(SHORT, count=2, verbs=False)
    print(f"{len(worlds)} states")  # noqa: T201  likewise
    assert [problem for world in worlds.values() for problem in illegal(world)] == []
    assert dead_ends(worlds, reached_from) == 0
    assert len(worlds) > 500
