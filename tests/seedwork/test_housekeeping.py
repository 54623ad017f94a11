"""Old rows go, and nothing else."""

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import SystemClock
from seedwork.housekeeping import INBOX_DAYS, JOB_DAYS, Housekeeping
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database

DAY_MS = 86_400_000


async def test_what_is_old_and_ended_goes_and_what_waits_stays(db: Database, tables: KernelTables) -> None:
    """An old job that nobody has finished is kept, however old."""
    now_ms = await db.now_ms()

    async def fill(conn: AsyncConnection) -> None:
        old, new = now_ms - (INBOX_DAYS + 1) * DAY_MS, now_ms
        rows = [{"message_id": f"old{n}", "at_ms": old} for n in range(1200)]
        await conn.execute(insert(tables.inbox), [*rows, {"message_id": "new", "at_ms": new}])
        at = now_ms - (JOB_DAYS + 1) * DAY_MS
        job = {"step": "s", "app_id": "a", "kind": "K", "accepted_ms": at, "tombstone_ms": None, "undo_state": None}
        await conn.execute(
            insert(tables.jobs),
            [
                {**job, "saga_id": "ended", "state": "done"},
                {**job, "saga_id": "waits", "state": "queued"},
                {**job, "saga_id": "undone", "state": "queued", "tombstone_ms": at, "undo_state": "done"},
                {**job, "saga_id": "undoing", "state": "done", "tombstone_ms": at, "undo_state": "running"},
                {**job, "saga_id": "young", "state": "done", "accepted_ms": now_ms},
            ],
        )

    async def left(conn: AsyncConnection) -> tuple[set[str], set[str]]:
        inbox = {row[0] for row in await conn.execute(select(tables.inbox.c.message_id))}
        return inbox, {row[0] for row in await conn.execute(select(tables.jobs.c.saga_id))}

    await db.write(fill)
    assert await Housekeeping(db, tables, SystemClock()).once() == 1202
    assert await db.read(left) == ({"new"}, {"waits", "undoing", "young"})
