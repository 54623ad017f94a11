"""Old rows of the kernel's tables go, a few at a time, so that nobody waits for a long delete.

Kept are inbox ids for `INBOX_DAYS` (a message that comes again later than that would be taken for new; no bus here
keeps one so long) and ended jobs for `JOB_DAYS` (their outcome is repeated to a saga that asks again; a saga that a
person has paused may do so late).
"""

from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import and_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.errors import RetryableError
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database

INBOX_DAYS = 14
JOB_DAYS = 90
BATCH = 500
"""Rows a transaction: some milliseconds."""
EVERY_S = 3600.0
_DAY_MS = 86_400_000

log = structlog.get_logger(__name__)


async def clean_hourly(once: Callable[[], Awaitable[int]], clock: Clock) -> None:
    """For ever: `once` removes what is old in short transactions, and says how many rows."""
    while True:
        try:
            removed = await once()
            if removed:
                log.info("old rows removed", rows=removed)
        except RetryableError as error:
            log.warning("housekeeping waits", error=error.message)
        await clock.sleep(EVERY_S)


class Housekeeping:
    """One service's."""

    def __init__(self, db: Database, tables: KernelTables, clock: Clock) -> None:
        self._db = db
        self._tables = tables
        self._clock = clock

    async def run(self) -> None:
        """For ever."""
        await clean_hourly(self.once, self._clock)

    async def once(self) -> int:
        """Remove all that is old; how many rows."""
        now_ms = await self._db.now_ms()
        removed = 0
        while count := await self._db.write(lambda conn: self._inbox(conn, now_ms - INBOX_DAYS * _DAY_MS)):
            removed += count
        while count := await self._db.write(lambda conn: self._jobs(conn, now_ms - JOB_DAYS * _DAY_MS)):
            removed += count
        return removed

    async def _inbox(self, conn: AsyncConnection, before_ms: int) -> int:
        inbox = self._tables.inbox.c
        old = select(inbox.message_id).where(inbox.at_ms < before_ms).order_by(inbox.at_ms).limit(BATCH)
        ids = [row[0] for row in await conn.execute(old)]
        if ids:
            await conn.execute(delete(self._tables.inbox).where(inbox.message_id.in_(ids)))
        return len(ids)

    async def _jobs(self, conn: AsyncConnection, before_ms: int) -> int:
        jobs = self._tables.jobs.c
        ended = or_(
            and_(jobs.tombstone_ms.is_(None), jobs.state == "done"),
            and_(jobs.tombstone_ms.is_not(None), jobs.undo_state == "done"),
        )
        old = select(jobs.saga_id, jobs.step).where(ended, jobs.accepted_ms < before_ms).limit(BATCH)
        keys = [(row[0], row[1]) for row in await conn.execute(old)]
        for saga_id, step in keys:
            await conn.execute(delete(self._tables.jobs).where(jobs.saga_id == saga_id, jobs.step == step))
        return len(keys)
