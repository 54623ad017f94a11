"""Each minute: is there a saga that nothing and nobody will ever move? Said as a metric and in the log."""

import structlog
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.saga import OPEN
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import sagas
from services.saga_coordinator.queries import forgotten

EVERY_S = 60.0

log = structlog.get_logger(__name__)


class Audit:
    """Looks, counts, and says what it found."""

    def __init__(self, db: Database, clock: Clock, registry: CollectorRegistry) -> None:
        self._db = db
        self._clock = clock
        self._forgotten = Gauge(
            "knarr_sagas_forgotten", "Sagas and lanes that nothing will move: always 0.", registry=registry
        )
        self._open = Gauge("knarr_sagas_open", "Sagas that have not ended.", ("state",), registry=registry)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await self._clock.sleep(EVERY_S)

    async def look(self) -> list[str]:
        """Once; one sentence for each finding."""
        found = await self._db.read(forgotten)
        self._forgotten.set(len(found))
        for each in found:
            log.error("the audit found what nothing will move", finding=each)
        counted = await self._db.read(_count_open)
        for state in OPEN:
            self._open.labels(state).set(counted.get(state, 0))
        return found


async def _count_open(conn: AsyncConnection) -> dict[str, int]:
    query = select(sagas.c.state, func.count()).where(sagas.c.state.in_(OPEN)).group_by(sagas.c.state)
    return {row.state: row[1] for row in await conn.execute(query)}
