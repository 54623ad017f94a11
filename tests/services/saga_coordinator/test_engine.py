"""The loop around `decide`: once each, in one transaction, through restarts, conflicts and what cannot be decided."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import structs
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import EVERY_TEAM
from seedwork.adapters.sqlite import OneVisitConnection
from seedwork.decide import decide
from seedwork.errors import Misconfigured
from seedwork.lanes import Lane
from seedwork.messages import envelope, new_id
from seedwork.saga import Definitions, Pressed, Retry, VerbName, View
from seedwork.saga_records import from_json, replay
from seedwork.testing.migrations import assert_migrations_match
from seedwork.testing.saga import without_reports
from services.builder.contract import ImageBuilt
from services.saga_coordinator import models
from services.saga_coordinator.app import MIGRATIONS
from services.saga_coordinator.queries import log_page
from services.saga_coordinator.sagas import DEFINITIONS, DEPLOY
from services.saga_coordinator.store import Cache, Moved, Sheet, find
from services.source.contract import SourceFetched, SourceFetchFailed
from tests.seedwork.saga.trips import (
    TRIP,
    CastOff,
    Land,
    Pack,
    PackFailed,
    Sail,
    SailBack,
    SailFailed,
    Unpack,
)
from tests.services.saga_coordinator.conftest import APP_ID, Stage, Staging, eventually, reply


async def test_a_saga_of_another_file_runs_without_any_change(stage_at: Staging) -> None:
    """Steps, undo and retries are data."""
    commands = [Pack, Sail, Land, Unpack, SailBack, CastOff]
    async with stage_at(Definitions([TRIP]), keys=["trip@1"], commands=commands) as stage:
        stage.participants.answers["Pack"] = lambda _: TRIP.steps[0].ok.model_validate({"crates": 3})
        for undo, step in (("Unpack", 0), ("SailBack", 1), ("CastOff", 2)):
            undone = TRIP.steps[step].undone
            assert undone is not None
            stage.participants.answers[undo] = lambda _, undone=undone: undone.example()
        first = await stage.start(TRIP)
        assert (await stage.until(first, "SUCCEEDED"))["saga"] == "trip"
        assert stage.participants.commands[1].data == {"crates": 3}
        stage.participants.answers["Sail"] = lambda _: SailFailed.example()
        second = await stage.start(TRIP, number=2)
        await stage.until(second, "COMPENSATED")
        sent = [each.type for each in stage.participants.commands if each.correlationid == second]
        assert sent == ["Pack", "Sail", "SailBack", "Unpack"]


async def test_a_message_that_comes_twice_is_decided_once(stage: Stage) -> None:
    """By its id."""
    message = DEPLOY.starts_on.example()
    made = envelope(message, source="test", saga_id=new_id(), app_id=APP_ID, app="shop")
    await stage.bus.publish([made, made])
    await stage.bus.publish([made])
    await stage.until(made.correlationid, "SUCCEEDED")
    assert len(stage.participants.commands) == 5
    log = (await stage.get(f"/sagas/{made.correlationid}/log"))["items"]
    assert [each["type"] for each in log].count("DeploymentRequested") == 1


async def test_what_arrives_while_the_database_is_busy_is_decided_together(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty messages that come one by one are no fifty transactions."""
    db = stage.app.state.service.db
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_conn: AsyncConnection) -> None:
        busy.set()
        await go_on.wait()

    holding = asyncio.create_task(db.write(hold))
    await busy.wait()
    stage.participants.answers["FetchSource"] = lambda _: None
    log_entries: list[int] = []
    later = OneVisitConnection.later

    def count(connection: OneVisitConnection, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        if sql.startswith("INSERT INTO saga_log"):
            log_entries.append(len(rows))
        later(connection, sql, rows)

    monkeypatch.setattr(OneVisitConnection, "later", count)
    starting = [asyncio.create_task(stage.start(DEPLOY, app_id=new_id())) for _ in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)  # nothing on the way to the engine waits for anything but its turn
    go_on.set()
    await asyncio.gather(holding, *starting)
    assert len(log_entries) <= 2  # the first, which found nobody before it, and all the others
    assert sum(log_entries) == 2 * len(starting)  # each start came in, and its first command went out


async def test_what_was_under_way_goes_on_after_a_restart(stage_at: Staging) -> None:
    """Timers are in the table: the attempt whose answer was lost is sent again when its time is over."""
    async with stage_at() as stage:
        stage.participants.answers["FetchSource"] = lambda _: None
        saga_id = await stage.start(DEPLOY)
        await _make_due(stage, saga_id)
    async with stage_at() as stage:
        saga = await stage.until(saga_id, "SUCCEEDED")
        assert saga["steps"][0]["attempts"] == 2


async def _make_due(stage: Stage, saga_id: str) -> None:
    """As if the wait had been long: the row's time, and the saga's own word for it."""

    async def backdate(conn: AsyncConnection) -> None:
        sheet = Sheet(conn, stage.app.state.service.outbox, 0)
        await sheet.load([saga_id])
        saga = sheet.saga(saga_id)
        assert saga is not None
        assert saga.wait is not None
        body = (await conn.execute(select(models.sagas.c.body).where(models.sagas.c.id == saga_id))).scalar_one()
        earlier = body.replace(str(saga.wait.due_ms), "1")
        await conn.execute(update(models.sagas).where(models.sagas.c.id == saga_id).values(body=earlier))
        await conn.execute(update(models.timers).where(models.timers.c.saga_id == saga_id).values(due_ms=1))

    await stage.app.state.service.db.write(backdate)


async def _timer_of(stage: Stage, saga_id: str) -> tuple[int, str, int, int]:
    """When the saga's row of `timers` is due and for which step; when its wait is over; the version of its row."""

    async def look(conn: AsyncConnection) -> tuple[int, str, int, int]:
        timer, row = models.timers.c, models.sagas.c
        due_ms, step = (await conn.execute(select(timer.due_ms, timer.step).where(timer.id == saga_id))).one()
        query = select(row.origin, row.body, row.version).where(row.id == saga_id)
        origin, body, version = (await conn.execute(query)).one()
        wait = from_json(origin, body).wait
        assert wait is not None
        assert wait.due_ms is not None
        return due_ms, step, wait.due_ms, version

    found: tuple[int, str, int, int] = await stage.app.state.service.db.read(look)
    return found


async def test_a_row_of_timers_that_is_due_earlier_stays_and_is_put_right_when_it_is_due(stage_at: Staging) -> None:
    """Most waits end long before their time; what was set for an earlier one changes nothing, and is not forgotten."""
    async with stage_at() as stage:
        stage.participants.answers["BuildImage"] = lambda _: None
        saga_id = await stage.start(DEPLOY)

        async def building() -> bool:
            return any(each.type == "BuildImage" for each in stage.participants.commands)

        await eventually(building)
        due_ms, step, until_ms, version = await _timer_of(stage, saga_id)
        assert step == "source"
        assert due_ms < until_ms
        entries = len((await stage.get(f"/sagas/{saga_id}/log"))["items"])
        past = update(models.timers).where(models.timers.c.id == saga_id).values(due_ms=1)
        await stage.app.state.service.db.write(lambda conn: conn.execute(past))
    async with stage_at() as stage:

        async def moved() -> bool:
            return (await _timer_of(stage, saga_id))[:3] == (until_ms, "build", until_ms)

        await eventually(moved)
        assert (await _timer_of(stage, saga_id))[3] > version  # whoever knows the version knows when the row is due
        assert len((await stage.get(f"/sagas/{saga_id}/log"))["items"]) == entries


async def test_a_wait_that_is_over_before_the_row_of_timers_is_due_makes_the_row_earlier(stage: Stage) -> None:
    """The second before another attempt is shorter than the minutes of the step's answer."""
    stage.participants.answers["FetchSource"] = lambda _: SourceFetchFailed(
        retryable=True, code="unavailable", message="The host does not answer."
    )
    saga_id = await stage.start(DEPLOY)

    async def waits() -> bool:
        saga = await stage.get(f"/sagas/{saga_id}")
        return (saga["waiting_for"] or {}).get("what") == "timer"

    await eventually(waits)
    due_ms, _, until_ms, _ = await _timer_of(stage, saga_id)
    assert due_ms == until_ms


async def test_a_message_for_an_unknown_saga_becomes_a_dead_letter(stage: Stage) -> None:
    """The others of its batch are decided; it can be sent again."""
    stray = envelope(SourceFetched.example(), source="test", saga_id=new_id(), app_id=APP_ID, step="source")
    start = envelope(DEPLOY.starts_on.example(), source="test", saga_id=new_id(), app_id=APP_ID, app="shop")
    await stage.bus.publish([stray, start])
    await stage.until(start.correlationid, "SUCCEEDED")
    (letter,) = (await stage.get("/dead-letters"))["items"]
    assert (letter["type"], letter["saga_id"]) == ("SourceFetched", stray.correlationid)
    assert "There is no saga" in letter["error"]


async def test_a_message_that_cannot_be_decided_becomes_a_dead_letter_and_harms_nothing(stage: Stage) -> None:
    """The saga goes on with the right answer."""
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY)

    async def built() -> Any:
        return next((each for each in stage.participants.commands if each.type == "BuildImage"), None)

    command = await eventually(built)
    wrong = structs.replace(reply(ImageBuilt.example(), command), data={"repository": 7})
    await stage.bus.publish([wrong])
    (letter,) = (await stage.get("/dead-letters"))["items"]
    assert (
        letter["error"] == "The data does not fit: repository: Input should be a valid string; digest: Field required"
    )
    await stage.bus.publish([reply(ImageBuilt.example(), command)])
    await stage.until(saga_id, "SUCCEEDED")


async def test_a_timer_that_cannot_be_decided_is_kept_and_comes_again_later(stage_at: Staging) -> None:
    """Neither a loop that burns the processor nor a saga that is forgotten."""

    def once(view: View) -> Pack:
        if view.saga.step("pack").attempt:
            raise RuntimeError("a fault in a definition")
        return Pack()

    pack = replace(TRIP.steps[0], send=once, retry=Retry(attempts=2, first_s=0))
    clumsy = replace(TRIP, steps=(pack, *TRIP.steps[1:]))
    async with stage_at(Definitions([clumsy]), keys=["trip@1"], commands=[Pack]) as stage:
        stage.participants.answers["Pack"] = lambda _: PackFailed.model_validate(
            {**PackFailed.EXAMPLE, "retryable": True}
        )
        saga_id = await stage.start(clumsy)

        async def letters() -> Any:
            return (await stage.get("/dead-letters"))["items"]

        (letter,) = await eventually(letters)
        assert (letter["type"], letter["saga_id"]) == ("TimerFired", saga_id)
        assert "a fault in a definition" in letter["error"]
        assert await stage.app.state.audit.look() == []
        waiting = (await stage.get(f"/sagas/{saga_id}"))["waiting_for"]
        assert (waiting["what"], waiting["note"]) == ("timer", "attempt 2 of 2 after: It did not work.")


async def test_the_log_in_the_database_replays_to_the_row(stage: Stage) -> None:
    """Through a failure, an undo and an operator."""
    stage.participants.answers["FetchSource"] = lambda command: (
        SourceFetchFailed.model_validate({**SourceFetchFailed.EXAMPLE, "retryable": True})
        if command.sagaattempt == 1
        else SourceFetched.example()
    )
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY)

    async def built() -> Any:
        return next((each for each in stage.participants.commands if each.type == "BuildImage"), None)

    await eventually(built)
    await stage.client.post(f"/sagas/{saga_id}/cancel", json={"reason": "no"})
    await stage.until(saga_id, "COMPENSATED")

    async def read(conn: AsyncConnection) -> Any:
        columns = select(models.sagas.c.origin, models.sagas.c.body)
        row = (await conn.execute(columns.where(models.sagas.c.id == saga_id))).one()
        return from_json(row.origin, row.body), await log_page(conn, saga_id, 0, 1000, EVERY_TEAM)

    row, log = await stage.app.state.service.db.read(read)

    entries = [
        {**each, "payload": orjson.loads(each["payload"]), "context": orjson.loads(each["context"] or "{}")}
        for each in log
    ]
    assert without_reports(replay(DEFINITIONS, saga_id, entries)[-1]) == without_reports(row)


async def test_a_row_that_was_moved_meanwhile_is_not_overwritten(stage: Stage) -> None:
    """The version check: nothing of the transaction is written."""
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "RUNNING")
    db = stage.app.state.service.db

    async def turn(conn: AsyncConnection) -> None:
        sheet = Sheet(conn, stage.app.state.service.outbox, 0)
        await sheet.load([saga_id])
        await conn.execute(
            update(models.sagas).where(models.sagas.c.id == saga_id).values(version=models.sagas.c.version + 1)
        )
        saga = sheet.saga(saga_id)
        assert saga is not None
        sheet.decided(decide(DEPLOY, saga, sheet.lane(APP_ID), Pressed(at_ms=1, verb="pause", who="x")), None)
        await sheet.write()

    with pytest.raises(Moved):
        await db.write(turn)
    assert (await stage.get(f"/sagas/{saga_id}"))["state"] == "RUNNING"


@pytest.mark.parametrize("verb", ["pause", None])
async def test_what_was_known_of_a_saga_is_not_trusted_where_others_write(stage: Stage, verb: VerbName | None) -> None:
    """Another coordinator has moved it since: a change meets the version, and where nothing changes it must be read."""
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "RUNNING")
    service = stage.app.state.service
    cache = Cache(alone=False)
    known = await service.db.read(lambda conn: find(conn, [saga_id]))
    cache.put(saga_id, known[saga_id], 1)

    async def turn(conn: AsyncConnection) -> None:
        sheet = Sheet(conn, service.outbox, 0, cache)
        await sheet.load([saga_id])
        saga = sheet.saga(saga_id)
        assert saga is known[saga_id]
        if verb is not None:
            sheet.decided(decide(DEPLOY, saga, sheet.lane(APP_ID), Pressed(at_ms=1, verb=verb, who="x")), None)
        await sheet.write()

    with pytest.raises(Moved):
        await service.db.write(turn)
    assert (await stage.get(f"/sagas/{saga_id}"))["state"] == "RUNNING"


async def test_lanes_are_not_remembered_where_others_write(stage: Stage) -> None:
    """Most decisions only look at the lane, so that no version would tell that it is an old one."""
    stage.participants.answers["BuildImage"] = lambda _: None
    saga_id = await stage.start(DEPLOY)
    await stage.until(saga_id, "RUNNING")
    service = stage.app.state.service
    cache = Cache(alone=False)
    cache.put(APP_ID, Lane(app_id=APP_ID), 1)

    async def turn(conn: AsyncConnection) -> None:
        sheet = Sheet(conn, service.outbox, 0, cache)
        await sheet.load([saga_id])
        assert sheet.lane(APP_ID).holder == saga_id
        sheet.committed(cache)

    await service.db.write(turn)
    assert cache.get(APP_ID) == (Lane(app_id=APP_ID), 1, None)


async def test_two_coordinators_on_one_database_decide_each_input_once(stage_at: Staging) -> None:
    """Whoever is second finds the row moved, and decides again."""
    async with stage_at() as one, stage_at() as two:
        message = DEPLOY.starts_on.example()
        made = [envelope(message, source="test", saga_id=new_id(), app_id=new_id(), app="shop") for _ in range(20)]
        await one.bus.publish(made)
        await two.bus.publish(made)
        for each in made:
            await one.until(each.correlationid, "SUCCEEDED")
        sent = one.participants.commands + two.participants.commands
        assert len({each.id for each in sent}) == 100  # the same message may come twice, but none is made twice
        log = (await one.get(f"/sagas/{made[0].correlationid}/log"))["items"]
        assert [each["seq"] for each in log] == list(range(1, len(log) + 1))


async def test_start_up_is_refused_when_a_running_saga_needs_a_definition_that_is_gone(stage_at: Staging) -> None:
    """It says which one."""
    async with stage_at() as stage:
        stage.participants.answers["FetchSource"] = lambda _: None
        await stage.until(await stage.start(DEPLOY), "RUNNING")
    with pytest.raises(Misconfigured, match="deploy@4"):
        async with stage_at(Definitions([TRIP]), keys=["trip@1"], commands=[Pack]):
            pass


async def test_the_migrations_make_the_tables_of_the_code() -> None:
    """Column by column."""
    await assert_migrations_match(models.metadata, MIGRATIONS)


async def test_the_database_is_in_the_services_own_folder(stage: Stage, tmp_path: Path) -> None:
    """Everything that the service keeps is there."""
    assert (tmp_path / "saga_coordinator" / "saga_coordinator.db").is_file()
    assert (await stage.client.get("/readyz")).status_code == 200
