"""Old sagas go, and nothing that anybody still needs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import SystemClock
from seedwork.messages import new_id
from seedwork.unit_of_work import Database
from services.builder.contract import ImageBuildFailed
from services.saga_coordinator.models import saga_log, sagas, timers
from services.saga_coordinator.retention import BATCH, Retention
from services.saga_coordinator.sagas import DEPLOY
from tests.services.saga_coordinator.conftest import Stage, eventually

AT_ONCE = 1 / 86_400_000
"""Days: what has ended is old a millisecond later."""


class Gate(SystemClock):
    """Sleeps until a test lets it go on."""

    def __init__(self) -> None:
        self.asleep = asyncio.Event()
        self.go_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asleep.set()
        await self.go_on.wait()


class Restless(SystemClock):
    """Never sleeps."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def database(stage: Stage) -> Database:
    found: Database = stage.app.state.service.db
    return found


async def undone(stage: Stage) -> str:
    """A saga that ended `COMPENSATED`, in a lane that remembers nothing."""
    stage.participants.answers["BuildImage"] = lambda _: ImageBuildFailed.example()
    saga_id = await stage.start(DEPLOY, app_id=new_id())
    await stage.until(saga_id, "COMPENSATED")
    del stage.participants.answers["BuildImage"]
    return saga_id


async def copies(stage: Stage, saga_id: str, count: int) -> list[str]:
    """More sagas like that one, with one entry of log each."""
    ids = [new_id() for _ in range(count)]

    async def copy(conn: AsyncConnection) -> None:
        row = dict((await conn.execute(select(sagas).where(sagas.c.id == saga_id))).mappings().one())
        entry = dict((await conn.execute(select(saga_log).where(saga_log.c.saga_id == saga_id))).mappings().all()[0])
        await conn.execute(insert(sagas), [{**row, "id": each} for each in ids])
        await conn.execute(insert(saga_log), [{**entry, "saga_id": each} for each in ids])

    await database(stage).write(copy)
    return ids


async def left(stage: Stage) -> tuple[set[str], set[str], set[str]]:
    """The ids in the three tables."""

    async def look(conn: AsyncConnection) -> tuple[set[str], ...]:
        columns = (sagas.c.id, saga_log.c.saga_id, timers.c.saga_id)
        return tuple([{row[0] for row in await conn.execute(select(column))} for column in columns])

    in_sagas, in_log, in_timers = await database(stage).read(look)
    return in_sagas, in_log, in_timers


async def notice_for(stage: Stage, saga_id: str) -> None:
    """A timer that came too late for its saga."""
    row = {"id": new_id(), "saga_id": saga_id, "due_ms": 2**52, "kind": "LaneAwaited", "attempt": 0, "epoch": 0}
    await database(stage).write(lambda conn: conn.execute(insert(timers), row))


async def test_an_old_saga_goes_with_its_log_and_its_timers(stage: Stage) -> None:
    """Those under way are carried on as if nothing had happened."""
    old = await undone(stage)
    await notice_for(stage, old)
    stage.participants.answers["BuildImage"] = lambda _: None
    running = await stage.start(DEPLOY, app_id=new_id())

    async def building() -> Any:
        return next((each for each in stage.participants.commands if each.correlationid == running
                     and each.type == "BuildImage"), None)  # fmt: skip

    command = await eventually(building)
    assert await Retention(database(stage), Restless(), keep_days=AT_ONCE).once() == 1
    assert await left(stage) == ({running}, {running}, {running})
    assert (await stage.client.get(f"/sagas/{old}")).status_code == 404
    del stage.participants.answers["BuildImage"]
    answer = stage.participants.answer(command)
    assert answer is not None
    await stage.participants.say([answer])
    await stage.until(running, "SUCCEEDED")
    assert await stage.app.state.audit.look() == []


async def test_what_an_app_can_go_back_to_is_kept(stage: Stage) -> None:
    """The live deployment can be compensated however old it is; the one before it is what that goes back to."""
    kept = []
    for number in (1, 2):
        kept.append(await stage.start(DEPLOY, number=number, commit=f"{number}" * 40))
        await stage.until(kept[-1], "SUCCEEDED")
    assert await Retention(database(stage), Restless(), keep_days=AT_ONCE).once() == 0
    assert (await left(stage))[0] == set(kept)


async def test_age_counts_from_the_end_and_not_from_the_start(stage: Stage) -> None:
    """A saga that waited a year for a person has just ended."""
    saga_id = await undone(stage)
    await database(stage).write(lambda conn: conn.execute(update(sagas).values(created_ms=1)))
    assert await Retention(database(stage), Restless(), keep_days=1).once() == 0
    assert (await left(stage))[0] == {saga_id}


async def test_all_that_is_old_goes_in_batches_past_what_is_kept(stage: Stage) -> None:
    """What is kept in between does not stop it, and no transaction removes more than a batch."""
    first = await undone(stage)
    many = await copies(stage, first, 2 * BATCH + 7)
    kept = set(sorted(many)[3:90])
    removed_at_once: list[int] = []

    async def end_late(conn: AsyncConnection) -> None:
        body = func.replace(sagas.c.body, '"updated_ms":', '"updated_ms":9')
        await conn.execute(update(sagas).where(sagas.c.id.in_(kept)).values(body=body))

    await database(stage).write(end_late)
    engine = database(stage).engine.sync_engine

    @event.listens_for(engine, "after_cursor_execute")
    def count(_conn: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("DELETE FROM sagas"):
            removed_at_once.append(cursor.rowcount)

    assert await Retention(database(stage), Restless(), keep_days=AT_ONCE).once() == 2 * BATCH + 8 - len(kept)
    in_sagas, in_log, _ = await left(stage)
    assert in_sagas == in_log == kept
    assert max(removed_at_once) <= BATCH
    assert len(removed_at_once) > 1


async def test_deployments_go_on_between_two_batches(stage: Stage) -> None:
    """A deployment begins and ends while the cleaning rests."""
    many = await copies(stage, await undone(stage), 2 * BATCH)
    gate = Gate()
    cleaning = asyncio.create_task(Retention(database(stage), gate, keep_days=AT_ONCE).once())
    await gate.asleep.wait()
    assert len((await left(stage))[0]) > BATCH
    deployed = await stage.start(DEPLOY, app_id=new_id())
    await stage.until(deployed, "SUCCEEDED")
    gate.go_on.set()
    assert await cleaning == len(many) + 1
    assert (await left(stage))[0] == {deployed}


async def test_nothing_goes_where_everything_is_kept_for_ever(stage: Stage) -> None:
    """0 days: the task ends at once."""
    saga_id = await undone(stage)
    await Retention(database(stage), Gate(), keep_days=0).run()
    assert (await left(stage))[0] == {saga_id}


async def test_the_service_cleans_by_itself(stage: Stage) -> None:
    """With the setting's days, in the background."""
    assert "retention" in stage.app.state.service._background
    assert stage.app.state.retention._keep_ms == 365 * 86_400_000


@pytest.mark.parametrize("days", [AT_ONCE, 365.0])
async def test_looking_for_old_sagas_reads_an_index(stage: Stage, days: float) -> None:
    """Also when none of a million is old."""
    await undone(stage)
    asked: list[str] = []
    engine = database(stage).engine.sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(_conn: Any, _cursor: Any, statement: str, parameters: Sequence[Any], *_rest: Any) -> None:
        if statement.startswith(("SELECT sagas.id, sagas.app_id", "DELETE FROM saga", "DELETE FROM timers")):
            plans.append((statement, tuple(parameters)))

    plans: list[tuple[str, tuple[Any, ...]]] = []
    await Retention(database(stage), Restless(), keep_days=days).once()
    assert plans

    async def explain(conn: AsyncConnection) -> None:
        for statement, parameters in plans:
            rows = await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            asked.append("; ".join(row[-1] for row in rows))

    await database(stage).read(explain)
    assert not [plan for plan in asked if "SCAN" in plan or "TEMP B-TREE" in plan], asked
    assert any("sagas USING INDEX ix_sagas_state" in plan for plan in asked), asked
