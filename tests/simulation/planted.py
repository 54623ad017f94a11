"""Bugs, each behind a patch that only tests apply: what a tired programmer might have written.

Nothing in the simulation or the exploration knows of them; the invariants that hold for everything have to notice.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from msgspec import structs
from sqlalchemy import ColumnElement, and_, bindparam, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.decide import _Turn
from seedwork.jobs import Job
from seedwork.messages import Envelope
from seedwork.saga import Answered, SagaState, StepState, TimerFired
from seedwork.set_wise import Many
from seedwork.unit_of_work import database_now_ms
from services.deployer import releases
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.models import routes
from services.registry import references
from services.registry.models import image_references
from services.saga_coordinator import store
from services.saga_coordinator.engine import Engine
from services.saga_coordinator.models import lanes, saga_log, sagas
from tests.simulation.plans import Outage, PauseProcess, Plan, Press, Push, Storm, Weather, plan_of


@contextmanager
def whoever_writes_last_wins() -> Iterator[None]:
    """No version is compared, and an entry of the log replaces another one: either alone would keep the second out."""

    def unchecked(table: Any, key: str) -> Many:
        columns: dict[str, Any] = {
            each.name: bindparam(each.name) for each in table.columns if each.name not in store._NEVER_CHANGE
        }
        return Many(update(table).where(table.c[key] == bindparam("key_id")).values(columns))

    with (
        patch.object(store, "_UPDATE_SAGA", unchecked(sagas, "id")),
        patch.object(store, "_UPDATE_LANE", unchecked(lanes, "app_id")),
        patch.object(store, "_INSERT_LOG", Many(insert(saga_log).prefix_with("OR REPLACE"))),
    ):
        yield


@contextmanager
def acknowledged_before_commit() -> Iterator[None]:
    """The broker forgets what the coordinator has only begun to decide."""
    decide = Engine.handle
    under_way: set[asyncio.Task[None]] = set()

    async def handle(engine: Engine, envelopes: Sequence[Envelope]) -> None:
        task = asyncio.ensure_future(decide(engine, envelopes))
        under_way.add(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    with patch.object(Engine, "handle", handle):
        yield
    under_way.clear()


@contextmanager
def undo_in_the_wrong_order() -> Iterator[None]:
    """First in, first out."""

    def current(saga: SagaState) -> StepState | None:
        if saga.direction == "forward":
            return next((step for step in saga.steps if step.state not in ("DONE", "SKIPPED")), None)
        return next((step for step in saga.steps if step.attempt and step.state not in ("UNDONE", "SKIPPED")), None)

    with patch.object(SagaState, "current", property(current)):
        yield


@contextmanager
def an_undo_skipped() -> Iterator[None]:
    """A step that has failed is taken for one that has done nothing."""
    begin_undo = _Turn.begin_undo

    def begin(turn: _Turn, *args: Any, **options: Any) -> None:
        for each in turn.saga.steps:
            if each.state == "FAILED":
                turn.set_step(each.name, state="UNDONE")
        begin_undo(turn, *args, **options)

    with patch.object(_Turn, "begin_undo", begin):
        yield


@contextmanager
def an_undo_that_overtakes_its_work() -> Iterator[None]:
    """It does not wait until the worker has let go."""
    free = Job.free

    with patch.object(Job, "free", lambda job, now_ms: job.undoing or free(job, now_ms)):
        yield


@contextmanager
def a_lane_left_without_waking_the_next() -> Iterator[None]:
    """It has the lane, and nobody tells it."""

    def leave(turn: _Turn) -> None:
        turn.lane, _ = turn.lane.left_by(turn.saga.id)

    with patch.object(_Turn, "leave_lane", leave):
        yield


@contextmanager
def a_late_success_taken_during_the_undo() -> Iterator[None]:
    """The step is done after all, so it goes on."""
    answered = _Turn.answered

    def take(turn: _Turn, given: Answered) -> None:
        meaning, current = turn.meaning_of(given)
        undoing = turn.saga.direction == "undo" and not turn.saga.ended
        if meaning == "ok" and undoing and current is not None and current.state == "UNDOING":
            turn.log("in", given.type, payload=given.data, step=current.name, attempt=given.attempt)
            turn.done(current, given.data)
        else:
            answered(turn, given)

    with patch.object(_Turn, "answered", take):
        yield


@contextmanager
def an_epoch_ignored() -> Iterator[None]:
    """A timer that is out of date counts."""
    fired = _Turn.timer_fired

    def take(turn: _Turn, given: TimerFired) -> None:
        fired(turn, structs.replace(given, epoch=turn.saga.epoch))

    with patch.object(_Turn, "timer_fired", take):
        yield


@contextmanager
def a_reference_dropped_twice() -> Iterator[None]:
    """Once for the one that lets go, and once for another one that holds the same bytes."""

    def is_it(reference: references.Reference) -> ColumnElement[bool]:
        columns = image_references.c
        return and_(columns.app_id == reference.app_id, columns.digest == reference.digest)

    with patch.object(references, "_is", is_it):
        yield


@contextmanager
def an_old_fence_accepted() -> Iterator[None]:
    """Traffic goes to whoever asks last, in the row and in what runs."""

    async def write_route(conn: AsyncConnection, app_id: str, saga_id: str | None, *, fence: int) -> None:
        moved = {"fence": fence, "saga_id": saga_id, "moved_ms": await database_now_ms(conn)}
        await conn.execute(update(routes).where(routes.c.app_id == app_id).values(moved))

    async def switch(runtime: MemoryRuntime, app_id: str, saga_id: str | None, *, fence: int) -> None:
        runtime._fences[app_id] = 0
        await compared(runtime, app_id, saga_id, fence=fence)

    compared = MemoryRuntime.switch
    with patch.object(releases, "_write_route", write_route), patch.object(MemoryRuntime, "switch", switch):
        yield


def _some(plan: Plan, *known: int) -> tuple[Plan, ...]:
    return tuple(replace(plan, seed=seed) for seed in dict.fromkeys((*known, *range(60))))


def _seeds(*known: int) -> tuple[Plan, ...]:
    """First those in which it was seen, then others: a change elsewhere makes other histories of the same seeds."""
    return tuple(plan_of(seed) for seed in dict.fromkeys((*known, *range(120))))


@dataclass(frozen=True)
class Bug:
    """One of them, and histories in which it may show; none: it shows in the exploration of `decide`."""

    plant: Callable[[], AbstractContextManager[None]]
    plans: tuple[Plan, ...] = _seeds()

    @property
    def name(self) -> str:
        """In words."""
        return self.plant.__name__.replace("_", " ")


CANCELS = tuple(Press("cancel", 4 * back + 1, gap_s=0.3) for back in range(6))
CANCELLED = Plan((Storm(12), replace(CANCELS[0], gap_s=1.0), *CANCELS), Weather(messages=20))
"""Sagas that are cancelled while answers are late."""


STANDS_STILL = Plan(
    (
        Storm(36),
        Outage("slow", 120.0, gap_s=2.0),
        PauseProcess(5, 300.0, gap_s=60.0),
        Storm(36, gap_s=1.0),
        Push(0, gap_s=240.0),
    )
)
"""A deployer stands still for minutes after it has moved traffic in the row, and before it does in what runs.

Every sixth seed has it there just then: many apps' deployments are about to, and each call takes long.
"""


BUGS = (
    Bug(whoever_writes_last_wins),
    Bug(acknowledged_before_commit),
    Bug(undo_in_the_wrong_order, _seeds(1)),
    Bug(an_undo_skipped, _seeds(1)),
    Bug(an_undo_that_overtakes_its_work, _seeds(18, 33)),
    Bug(a_lane_left_without_waking_the_next),
    Bug(a_late_success_taken_during_the_undo, _some(CANCELLED)),
    Bug(an_epoch_ignored, plans=()),
    Bug(a_reference_dropped_twice, _seeds(3, 2)),
    Bug(an_old_fence_accepted, _some(STANDS_STILL)),
)
