"""Ended sagas go when they are old: row, log and timers together, a few at a time, while others are carried on.

Kept, however old: sagas that have not ended, and those that their app's lane still remembers, since `compensate` takes
the live one back and a rollback needs the ones before it. A batch is one short transaction under the same locks as
any other, so several coordinators may clean one database; between two batches everybody else has their turn.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.housekeeping import clean_hourly
from seedwork.saga import ENDED
from seedwork.saga_records import from_json
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import lanes, saga_log, sagas, timers
from services.saga_coordinator.store import lane_from_json

BATCH = 50
"""Sagas a transaction, with some 500 entries of their logs: a few milliseconds."""
REST_S = 0.02
"""Between two batches, so that cleaning takes a part of the disk's time and not all of it."""
_DAY_MS = 86_400_000

Position = tuple[int, str]
"""When a saga was made, and its id: where the next batch begins."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction did, and where it came to; None: there is no more."""

    removed: int
    reached: Position | None


class Retention:
    """Of one coordinator.

    Args:
        db: Its database.
        clock: For waiting; age is by the database's clock.
        keep_days: How long after its end a saga is kept; 0: for ever.
    """

    def __init__(self, db: Database, clock: Clock, *, keep_days: float) -> None:
        self._db = db
        self._clock = clock
        self._keep_ms = int(keep_days * _DAY_MS)

    async def run(self) -> None:
        """For ever."""
        if self._keep_ms:
            await clean_hourly(self.once, self._clock)

    async def once(self) -> int:
        """Remove all that is old; how many sagas."""
        before_ms = await self._db.now_ms() - self._keep_ms
        removed = 0
        for state in sorted(ENDED):
            position: Position | None = (0, "")
            while position is not None:
                batch = await self._db.write(
                    lambda conn, state=state, position=position: _remove(conn, state, position, before_ms)  # type: ignore[misc]
                )
                removed, position = removed + batch.removed, batch.reached
                await self._clock.sleep(REST_S)
        return removed


async def _remove(conn: AsyncConnection, state: str, after: Position, before_ms: int) -> _Batch:
    """The next batch of sagas in that state that were made before then; those that ended later are passed over."""
    columns = sagas.c
    query = (
        select(columns.id, columns.app_id, columns.created_ms, columns.origin, columns.body)
        .where(columns.state == state, columns.created_ms < before_ms)
        .where(columns.created_ms >= after[0])  # MySQL finds the beginning of a range by a column, and not by a pair
        .where(tuple_(columns.created_ms, columns.id) > after)
        .order_by(columns.created_ms, columns.id)
        .limit(BATCH)
    )
    if conn.dialect.name != "sqlite":
        query = query.with_for_update(skip_locked=True)
    rows = (await conn.execute(query)).all()
    remembered = await _remembered(conn, {row.app_id for row in rows})
    old = [row.id for row in rows if _ended_ms(row) < before_ms and row.id not in remembered]
    if old:
        await conn.execute(delete(saga_log).where(saga_log.c.saga_id.in_(old)))
        await conn.execute(delete(timers).where(timers.c.saga_id.in_(old)))
        await conn.execute(delete(sagas).where(columns.id.in_(old)))
    return _Batch(len(old), (rows[-1].created_ms, rows[-1].id) if len(rows) == BATCH else None)


def _ended_ms(row: Row[*tuple[Any, ...]]) -> int:
    """A saga's last change was its end, or a verb after it."""
    return from_json(row.origin, row.body).updated_ms


async def _remembered(conn: AsyncConnection, app_ids: set[str]) -> set[str]:
    """Sagas that the lanes of these apps hold on to."""
    if not app_ids:
        return set()
    found = await conn.execute(select(lanes.c.body).where(lanes.c.app_id.in_(app_ids)))
    return {kept["saga_id"] for row in found for kept in lane_from_json(row.body).kept}
