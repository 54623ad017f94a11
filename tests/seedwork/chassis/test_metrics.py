from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.messages import envelope, new_id
from seedwork.testing.http import running
from tests.seedwork.chassis.conftest import MIGRATIONS
from tests.seedwork.chassis.dummy import models
from tests.seedwork.chassis.dummy.contract import ThingMade


async def test_the_backlog_and_the_open_jobs_are_shown(settings: ServiceSettings) -> None:
    """What waits is what an operator wants an alarm for; the bus is closed here, so messages stay.

    Work that was cancelled in the middle stays `running` in its row; the tombstone says that nobody is at it.
    """
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=InProcessBus())
    messages = [envelope(ThingMade(size=1), source="builder", saga_id=new_id(), app_id=new_id()) for _ in range(3)]
    jobs = [("running", None), ("done", "running"), ("done", None), ("running", "done")]

    async def prepare(conn: AsyncConnection) -> None:
        await service.outbox.add(conn, messages)
        rows = [
            {
                "saga_id": new_id(),
                "step": "build",
                "app_id": new_id(),
                "kind": "Unknown",
                "accepted_ms": 1,
                "state": state,
                "undo_state": undo_state,
                "tombstone_ms": undo_state and 1,
                "lease_owner": "another replica",
                "lease_until_ms": 2**52,
            }
            for state, undo_state in jobs
        ]
        await conn.execute(insert(service.tables.jobs), rows)

    async with running(service.app) as client:
        await service.db.write(prepare)
        text = (await client.get("/metrics")).text
    assert "knarr_outbox_messages 3.0" in text
    assert 'knarr_jobs{state="running",work="forward"} 1.0' in text
    assert 'knarr_jobs{state="queued",work="forward"} 0.0' in text
    assert 'knarr_jobs{state="running",work="undo"} 1.0' in text


async def test_requests_are_counted_by_route_and_status(service: Service) -> None:
    """Neither paths nor invented methods become series of their own."""
    async with running(service.app) as client:
        for path in ("/a", "/b", "/c"):
            await client.get(path)
        await client.request("BREW", "/livez")
        text = (await client.get("/metrics")).text
    assert 'knarr_http_requests_total{method="GET",route="unmatched",status="404"} 3.0' in text
    assert 'method="other"' in text
    assert "BREW" not in text
    assert 'knarr_http_request_seconds_count{method="GET",route="unmatched"} 3.0' in text
