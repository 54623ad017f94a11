"""What must be there after a restart, and what nobody needs any more: the database in, the runtime's orders out."""

from collections.abc import Set as AbstractSet
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.clock import Clock
from seedwork.errors import Conflict
from seedwork.unit_of_work import Database
from services.deployer import apps, observations, releases
from services.deployer.addons import Removal
from services.deployer.apps import App
from services.deployer.assembly import assemble
from services.deployer.errors import NotWarm
from services.deployer.ports import AddOns, Needed, Release, Runtime, Standing, Warm
from services.deployer.releases import KnownRoute
from services.deployer.vault import Vault
from services.deployer.volumes import VolumeRemoval

SWEEP_S = 600.0
"""How often unneeded folders are removed: they cost disk only."""

VOLUMES_S = 5.0
"""Poll interval for volumes that are to be deleted, in seconds: one query of an index."""

log = structlog.get_logger(__name__)


class Standby:
    """Brings the runtime to what the database says, at start and from time to time.

    Args:
        db: The service's database.
        images: Where images are read from.
        vault: Opens config vars.
        runtime: Gets the orders.
        clock: For waiting.
        removal: Of add-ons.
        volumes: Deletes volumes that are no longer wanted.
        provider: Of add-ons; None: the runtime has none.
    """

    def __init__(
        self,
        db: Database,
        images: ImageStore,
        vault: Vault,
        runtime: Runtime,
        clock: Clock,
        *,
        removal: Removal,
        volumes: VolumeRemoval,
        provider: AddOns | None = None,
    ) -> None:
        self._db = db
        self._images = images
        self._vault = vault
        self._runtime = runtime
        self._clock = clock
        self._removal = removal
        self._volumes = volumes
        self._provider = provider

    async def recover(self) -> None:
        """Have exactly what is live started; returns before it is."""
        await self._runtime.recover(await self.standings())

    async def standings(self) -> list[Standing]:
        """Return what should run now, by the database."""
        routes = await self._db.read(releases.all_routes)
        known = await self._db.read(apps.all_apps)
        live = await self._db.read(lambda conn: releases.in_states(conn, ["live"]))
        processes = {each.saga_id: frozenset(each.formation) for each in live}
        warm = await self._db.read(observations.warm)
        return [
            self._standing(
                route,
                known[route.app_id],
                processes.get(route.saga_id or "", frozenset()),
                warm.get(route.saga_id or ""),
            )
            for route in routes
            if route.app_id in known
        ]

    async def sweep(self) -> None:
        """From time to time, for ever."""
        while True:
            await self.sweep_now()
            await self._removal.interrupted()
            await self._clock.sleep(SWEEP_S)

    async def delete_volumes(self) -> None:
        """Delete volumes that were given up, as soon as no instance uses them; runs until it is cancelled."""
        while True:
            await self._volumes.finish()
            await self._clock.sleep(VOLUMES_S)

    async def sweep_now(self) -> None:
        """Remove what belongs to no saga and no kept release."""
        await self._runtime.sweep(lambda: self._db.read(_needed))

    async def needed_images(self) -> AbstractSet[str]:
        """Return the digests that a release may start again from."""
        return (await self._db.read(_needed)).images

    def _standing(self, route: KnownRoute, app: App, processes: AbstractSet[str], warm: str | None) -> Standing:
        return Standing(
            app_id=app.app_id,
            app=app.name,
            port=route.port,
            fence=route.fence,
            saga_id=route.saga_id,
            processes=processes,
            load=partial(self._load, app, route.saga_id or ""),
            warm=Warm(saga_id=warm, load=partial(self._load_warm, app, warm)) if warm else None,
        )

    async def _load_warm(self, app: App, saga_id: str) -> Release:
        if not await self._db.read(lambda conn: observations.is_needed(conn, saga_id)):
            raise NotWarm(f"The release of the saga {saga_id} is not warm any more", why="the observation has ended")
        return await self._load(app, saga_id)

    async def _load(self, app: App, saga_id: str) -> Release:
        known = await self._db.read(lambda conn: releases.of_saga(conn, saga_id))
        if known is None:
            raise Conflict(f"The release of the saga {saga_id} is gone")
        return await assemble(known, app, db=self._db, images=self._images, vault=self._vault, provider=self._provider)


async def _needed(conn: AsyncConnection) -> Needed:
    kept = await releases.in_states(conn, releases.KEPT_STATES)
    return Needed(
        sagas={each.saga_id for each in kept},
        layers={layer for each in kept for layer in each.layers},
        images={each.digest for each in kept},
    )
