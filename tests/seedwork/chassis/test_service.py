import asyncio
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import KnarrError, Misconfigured, Unavailable
from seedwork.messages import Envelope, envelope, new_id
from seedwork.participant import Work
from seedwork.testing.http import running
from tests.seedwork.chassis.conftest import MIGRATIONS, SERVICE_TOKEN, TOKEN, VirtualClock
from tests.seedwork.chassis.dummy import models
from tests.seedwork.chassis.dummy.contract import MakeThing, ThingFailed, ThingMade


async def test_a_service_that_adds_nothing_starts_and_says_that_it_is_ready(service: Service) -> None:
    """Everything a service needs comes from the chassis."""
    async with running(service.app) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})
        assert (await client.get("/livez")).json() == {"status": "ok"}
        health = (await client.get("/healthcheck")).json()
        assert (health["status"], health["service"]) == ("ok", "builder")
        assert {"started", "database", "task outbox", "task jobs"} <= set(health["checks"])
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "knarr builder"


async def test_a_command_goes_in_and_its_answer_comes_out(settings: ServiceSettings) -> None:
    """The whole way: test endpoint, bus, job, handler, outbox, bus."""
    bus = InProcessBus()
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    answers: asyncio.Queue[Envelope] = asyncio.Queue()

    async def make(command: MakeThing, *, work: Work) -> ThingMade:
        assert work.step == "test"
        return ThingMade(size=command.size)

    async def hear(envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            answers.put_nowait(each)

    service.participant.step(MakeThing, make, ok=ThingMade, failed=ThingFailed)
    async with running(service.app, token=TOKEN) as client:
        await bus.subscribe("test", [ThingMade], hear)
        await bus.open()
        sent = (await client.post("/test/commands/MakeThing", json={"data": {"size": 7}})).json()
        async with asyncio.timeout(30):
            answer = await answers.get()
    assert answer.data == {"size": 7}
    assert (answer.causationid, answer.correlationid) == (sent["message_id"], sent["saga_id"])


async def test_parts_start_in_order_and_stop_backwards(service: Service) -> None:
    """`on_start` finds the tables; background tasks begin after it and end before `on_stop`."""
    story: list[str] = []

    async def recover() -> None:
        async def look(conn: AsyncConnection) -> None:
            await conn.execute(select(models.things))

        await service.db.read(look)
        story.append("recovered")

    async def tell(what: str) -> None:
        story.append(what)

    working = asyncio.Event()

    async def work() -> None:
        story.append("working")
        working.set()
        try:
            await asyncio.Event().wait()
        finally:
            story.append("work ended")

    async def first_to_close() -> None:
        await tell("closed second made")

    service.on_start(recover)
    service.on_start(partial(tell, "second start"))
    service.on_stop(partial(tell, "closed first made"))
    service.on_stop(first_to_close)
    service.background("work", work)
    async with running(service.app):
        async with asyncio.timeout(30):
            await working.wait()
        story.append("serving")
    assert story == [
        "recovered",
        "second start",
        "working",
        "serving",
        "work ended",
        "closed second made",
        "closed first made",
    ]


async def test_it_is_not_ready_before_it_has_started_nor_after_it_has_stopped(service: Service) -> None:
    """No work is sent to a service that cannot do it."""
    async with running(service.app) as client:
        pass
    async with client.__class__(transport=client._transport, base_url="http://service") as late:
        response = await late.get("/readyz")
        assert (response.status_code, response.json()["reasons"]) == (503, ["started: starting or stopping"])
        assert (await late.get("/livez")).status_code == 200


async def test_a_start_that_fails_closes_what_was_opened(service: Service) -> None:
    """And the error comes out as it is."""
    closed: list[str] = []

    async def close() -> None:
        closed.append("runtime")

    async def fail() -> None:
        raise Misconfigured("There is no git", todo="Install it.")

    service.on_stop(close)
    service.on_start(fail)
    with structlog.testing.capture_logs() as lines, pytest.raises(Misconfigured, match="no git"):
        async with running(service.app):
            pytest.fail("it must not start")
    assert ("cannot start", "There is no git. Install it.") in [(each["event"], each.get("error")) for each in lines]
    assert closed == ["runtime"]
    with pytest.raises(KnarrError, match="closed"):
        await service.db.write(_nothing)


async def test_a_part_that_does_not_stop_does_not_keep_the_others(settings: ServiceSettings) -> None:
    """Each has its time; an error while stopping is logged, the rest is closed."""
    hasty = settings.model_copy(update={"stop_grace_s": 0.05})
    service = Service("builder", hasty, metadata=models.metadata, migrations=MIGRATIONS)
    closed: list[str] = []

    async def close() -> None:
        closed.append("last")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise Misconfigured("It does not close")

    service.on_stop(close)
    service.on_stop(hang)
    service.on_stop(fail)
    with structlog.testing.capture_logs() as lines:
        async with running(service.app):
            pass
    assert closed == ["last"]
    assert {"a part of the service did not stop in time", "a part of the service failed while it stopped"} <= {
        line["event"] for line in lines
    }


async def test_a_background_task_that_crashes_is_shown_counted_and_started_again(
    settings: ServiceSettings, clock: VirtualClock
) -> None:
    """One failing sweeper is visible, and comes back by itself."""
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, clock=clock)
    runs: asyncio.Queue[int] = asyncio.Queue()
    heal = asyncio.Event()

    async def sweep() -> None:
        runs.put_nowait(1)
        if not heal.is_set():
            raise ZeroDivisionError
        await asyncio.Event().wait()

    service.background("sweep", sweep)
    with structlog.testing.capture_logs() as lines:
        async with running(service.app) as client, asyncio.timeout(30):
            await runs.get()
            response = await client.get("/readyz")
            assert response.status_code == 503
            assert response.json()["reasons"] == [
                "task sweep: crashed 1 times since the start; crashed with ZeroDivisionError"
            ]
            assert 'knarr_background_crashes_total{task="sweep"} 1.0' in (await client.get("/metrics")).text
            heal.set()
            clock.advance(1.0)
            await runs.get()
            assert (await client.get("/readyz")).status_code == 200
            checks = (await client.get("/healthcheck")).json()["checks"]
            assert checks["task sweep"] == {"ok": True, "detail": "crashed 1 times since the start"}
    crash = next(line for line in lines if line["event"] == "a background task crashed")
    assert isinstance(crash["exc_info"], ZeroDivisionError)


async def test_what_a_service_needs_outside_is_probed_for_those_who_look(
    settings: ServiceSettings, clock: VirtualClock
) -> None:
    """It does not count for readiness: another replica would need it too. Reading it often asks it seldom."""
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, clock=clock)
    asked: list[str] = []

    async def probe() -> None:
        asked.append("store")
        if len(asked) == 1:
            raise Unavailable("The registry does not answer", todo="Start it.")

    service.needs("image store", probe)
    async with running(service.app) as client:
        for _ in range(3):
            answer = (await client.get("/healthcheck")).json()
            assert answer["status"] == "degraded"
            assert answer["checks"]["image store"]["ok"] is False
            assert answer["checks"]["image store"]["detail"] == "The registry does not answer. Start it."
        assert (await client.get("/readyz")).status_code == 200
        assert asked == ["store"]

        clock.advance(5.0)
        assert (await client.get("/healthcheck")).json()["checks"]["image store"] == {"ok": True, "detail": ""}


async def test_two_background_tasks_of_one_name_are_a_mistake(service: Service) -> None:
    """Found when the service is wired."""
    service.background("sweep", _never)
    with pytest.raises(ValueError, match="sweep"):
        service.background("sweep", _never)


async def test_what_a_service_keeps_is_for_its_user_only(service: Service) -> None:
    """Its folder and knarr's home have the mode 0700."""
    async with running(service.app):
        for folder in (service.home, service.settings.home):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_service_can_start_again_after_a_stop(settings: ServiceSettings) -> None:
    """The same home, the same data."""
    first = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)
    async with running(first.app):
        await first.db.write(_insert_thing)
    second = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)
    async with running(second.app):
        assert await second.db.read(_count_things) == 1


async def test_services_in_one_process_do_not_share_figures_or_tables(settings: ServiceSettings) -> None:
    """Six of them live in one process on a laptop."""
    bus = InProcessBus()
    names = ("source", "builder")
    made = [Service(name, settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus) for name in names]
    async with running(made[0].app) as source, running(made[1].app) as builder:
        await source.get("/livez")
        await source.get("/livez")
        await builder.get("/livez")
        count = 'knarr_http_requests_total{method="GET",route="/livez",status="200"}'
        assert f"{count} 2.0" in (await source.get("/metrics")).text
        assert f"{count} 1.0" in (await builder.get("/metrics")).text
        await made[0].db.write(_insert_thing)
        assert await made[1].db.read(_count_things) == 0


async def test_routes_of_the_service_stand_beside_those_of_the_chassis(service: Service) -> None:
    """A service adds its router to `.app`."""

    @service.app.get("/things/{thing}")
    async def show(thing: str) -> str:
        return thing

    async with running(service.app) as client:
        assert (await client.get("/things/a")).json() == "a"
        metrics = (await client.get("/metrics")).text
        assert 'route="/things/{thing}"' in metrics
        assert 'route="/things/a"' not in metrics


async def test_a_stopping_service_lets_its_last_messages_leave(settings: ServiceSettings) -> None:
    """What was committed before the stop is published by the next start at the latest, once."""
    bus = InProcessBus()  # never opened: the messages cannot leave
    first = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    message = envelope(ThingMade(size=1), source="builder", saga_id=new_id(), app_id=new_id())
    async with running(first.app):
        await first.db.write(lambda conn: first.outbox.add(conn, [message]))
    heard: asyncio.Queue[Sequence[Envelope]] = asyncio.Queue()

    async def hear(envelopes: Sequence[Envelope]) -> None:
        heard.put_nowait(envelopes)

    bus = InProcessBus()
    await bus.subscribe("test", [ThingMade], hear)
    second = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    async with running(second.app), asyncio.timeout(30):
        await bus.open()
        assert [each.id for each in await heard.get()] == [message.id]


async def test_a_service_that_stops_forgets_what_it_has_sent(settings: ServiceSettings) -> None:
    """Else the next start would send it again."""
    bus = InProcessBus()
    heard = asyncio.Event()

    async def hear(_envelopes: Sequence[Envelope]) -> None:
        heard.set()

    await bus.subscribe("test", [ThingMade], hear)
    first = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    message = envelope(ThingMade(size=1), source="builder", saga_id=new_id(), app_id=new_id())
    async with running(first.app), asyncio.timeout(30):
        await bus.open()
        await first.db.write(lambda conn: first.outbox.add(conn, [message]))
        await heard.wait()
    second = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=InProcessBus())
    async with running(second.app):
        left = await second.db.read(lambda conn: conn.execute(select(models.kernel.outbox.c.message_id)))
        assert left.all() == []


async def test_the_service_token_is_a_secret_of_the_service(service: Service) -> None:
    """A line that logs the settings shows no token."""
    assert SERVICE_TOKEN not in repr(service.settings)
    assert isinstance(service.settings.service_token, SecretStr)


async def _never() -> None:
    await asyncio.Event().wait()


async def _nothing(_conn: AsyncConnection) -> None: ...


async def _insert_thing(conn: AsyncConnection) -> None:
    await conn.execute(insert(models.things).values(id=new_id()))


async def _count_things(conn: AsyncConnection) -> int:
    return len((await conn.execute(select(models.things))).all())


def test_nothing_is_connected_before_the_start(settings: ServiceSettings, tmp_path: Path) -> None:
    """`create_app` wires; only the lifespan connects."""
    Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)
    assert list((tmp_path / "home" / "builder").iterdir()) == []
