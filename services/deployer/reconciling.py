"""The reconciler: every few seconds the runtime compares what runs with what the database wants, and repairs.

Each difference becomes an event (`DriftDetected`, `DriftRepaired`) and a line of the service's log.
"""

from collections.abc import Awaitable, Callable, Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from seedwork.messages import Envelope, envelope
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.deployer import apps, drifts, observations, releases
from services.deployer.contract import DriftDetected, DriftRepaired
from services.deployer.observations import GivenUp
from services.deployer.ports import Drift, Runtime, Standing

log = structlog.get_logger(__name__)


class Reconciler:
    """Asks the runtime again and again.

    Args:
        db: The service's database.
        outbox: For the events.
        runtime: Compares and repairs.
        clock: For waiting.
        standings: What should run now.
        every_s: Interval between two comparisons in seconds.
    """

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        runtime: Runtime,
        clock: Clock,
        *,
        standings: Callable[[], Awaitable[Sequence[Standing]]],
        every_s: float,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._runtime = runtime
        self._clock = clock
        self._standings = standings
        self._every_s = every_s

    async def run(self) -> None:
        """Compare until it is cancelled; an engine or a cluster that is away is tried again."""
        while True:
            await self._clock.sleep(self._every_s)
            try:
                await self.once()
            except KnarrError as error:
                log.warning("reconcile.failed", why=error.message)

    async def once(self) -> None:
        """Compare once; publish what differed; stop releases that nothing needs warm any more."""
        found = await self._runtime.reconcile(await self._standings())
        if found:
            await self._db.write(lambda conn: self._publish(conn, found))
        for each in await self._db.read(observations.given_up):
            await self._stop(each)

    async def _stop(self, given_up: GivenUp) -> None:
        if not given_up.serves:
            log.warning("observation.given_up", app_id=given_up.app_id, saga_id=given_up.warm_saga_id)
            await self._runtime.stop(given_up.app_id, given_up.warm_saga_id)
        await self._db.write(lambda conn: observations.end(conn, given_up.saga_id))

    async def _publish(self, conn: AsyncConnection, found: Sequence[Drift]) -> None:
        known = await apps.all_apps(conn)
        told: list[Envelope] = []
        for drift in found:
            app = known.get(drift.app_id)
            if app is None:
                continue  # it was removed meanwhile
            log.warning("drift.repaired" if drift.repaired else "drift.detected", app=app.name, what=drift.what)
            await drifts.record(conn, drift)
            release = await releases.of_saga(conn, drift.saga_id)
            if release is None:
                continue  # no saga has it
            made = DriftRepaired if drift.repaired else DriftDetected
            event = made(app=app.name, number=release.number, what=drift.what)
            told.append(
                envelope(
                    event,
                    source="deployer",
                    saga_id=drift.saga_id,
                    app_id=drift.app_id,
                    team=app.team,
                    app=app.name,
                )
            )
        await self._outbox.add(conn, told)
