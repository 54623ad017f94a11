"""Two coordinators on one MySQL: whoever follows a saga at the one hears what the other decides."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from seedwork.chassis.migrate import upgrade
from seedwork.testing.servers import mysql_schema
from seedwork.unit_of_work import Database
from services.saga_coordinator import api
from services.saga_coordinator.app import MIGRATIONS
from tests.services.saga_coordinator.conftest import Stage, Staging, building, follow

pytestmark = pytest.mark.stack("MYSQL_URL")


@pytest.fixture
async def two(stage_at: Staging) -> AsyncIterator[tuple[Stage, Stage]]:
    """Each has a bus of its own: a saga that begins at one is moved by that one alone."""
    async with mysql_schema() as url:
        db = Database(url)
        await db.open()
        await upgrade(db, MIGRATIONS)
        await db.close()
        async with stage_at(database_url=url) as one, stage_at(database_url=url) as other:
            yield one, other


async def test_a_stream_hears_what_another_coordinator_wrote_without_waiting_for_its_heartbeat(
    two: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment is cancelled and undone: all of it at one, followed at the other."""
    monkeypatch.setattr(api, "HEARTBEAT_S", 3600.0)
    one, other = two
    saga_id = await building(one)
    async with asyncio.timeout(60):
        stream = follow(other, saga_id, 0)
        seen = [await anext(stream)]
        await one.client.post(f"/sagas/{saga_id}/cancel", json={"reason": "stop"})
        seen += [event async for event in stream]
    log = (await one.get(f"/sagas/{saga_id}/log"))["items"]
    assert [each["id"] for each in seen[:-1]] == [each["seq"] for each in log]
    assert (seen[-1]["event"], seen[-1]["data"]["state"]) == ("end", "COMPENSATED")
