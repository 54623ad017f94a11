"""Raw bodies of deliveries go when they are old, a few at a time; that they arrived is kept for ever.

A delivery's id begins with its time (UUIDv7), so the old ones are the beginning of the primary key. What has been
looked through is not looked at again by this process.
"""

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.housekeeping import clean_hourly
from seedwork.unit_of_work import Database
from services.webhook.models import deliveries

BATCH = 200
"""Rows a transaction: some milliseconds."""
REST_S = 0.02
"""Between two batches, so that webhooks do not wait for the cleaning."""
_DAY_MS = 86_400_000


class BodyRetention:
    """Of one intake.

    Args:
        db: Its database.
        clock: For waiting, and for the age of deliveries.
        keep_days: How long bodies are kept; 0: for ever.
    """

    def __init__(self, db: Database, clock: Clock, *, keep_days: float) -> None:
        self._db = db
        self._clock = clock
        self._keep_ms = int(keep_days * _DAY_MS)
        self._after = ""

    async def run(self) -> None:
        """For ever."""
        if self._keep_ms:
            await clean_hourly(self.once, self._clock)

    async def once(self) -> int:
        """Remove all old bodies; how many."""
        before = _first_id_at(self._clock.now_ms() - self._keep_ms)
        removed = 0
        while True:
            found = await self._db.read(lambda conn: _next(conn, self._after, before))
            full = [delivery_id for delivery_id, size in found if size]
            if full:
                await self._db.write(lambda conn, full=full: _empty(conn, full))  # type: ignore[misc]
            removed += len(full)
            if found:
                self._after = found[-1][0]
            if len(found) < BATCH:
                return removed
            await self._clock.sleep(REST_S)


async def _next(conn: AsyncConnection, after: str, before: str) -> list[tuple[str, int]]:
    """Ids and body sizes, the oldest first."""
    columns = deliveries.c
    query = select(columns.delivery_id, func.length(columns.body))
    query = query.where(columns.delivery_id > after, columns.delivery_id < before)
    return [(row[0], row[1]) for row in await conn.execute(query.order_by(columns.delivery_id).limit(BATCH))]


async def _empty(conn: AsyncConnection, delivery_ids: list[str]) -> None:
    await conn.execute(update(deliveries).where(deliveries.c.delivery_id.in_(delivery_ids)).values(body=b""))


def _first_id_at(at_ms: int) -> str:
    """What stands before every UUIDv7 of that millisecond (RFC 9562, section 5.7)."""
    digits = f"{max(at_ms, 0):012x}"
    return f"{digits[:8]}-{digits[8:]}"
