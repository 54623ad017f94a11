"""The network that each app has of its own: its instances and add-ons find each other there, nobody else does."""

import asyncio
import socket
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Engine

log = structlog.get_logger(__name__)

_IN_A_CONTAINER = Path("/.dockerenv")


class Networks:
    """The apps' networks.

    Args:
        engine: Has them.
        installation: Whose they are.
    """

    def __init__(self, engine: Engine, installation: str) -> None:
        self._engine = engine
        self._installation = installation
        self._self: str | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def of_app(self, app_id: str, app: str, team: str) -> str:
        """Its name; made at the app's first release, found by its label later, since an app may be renamed."""
        lock = self._locks.get(app_id) or asyncio.Lock()
        self._locks[app_id] = lock
        labels = {spec.INSTALLATION: self._installation, spec.APP_ID: app_id}
        async with lock:
            known = await self._engine.networks(labels)
            if known:
                return str(known[0]["Name"])
            name = spec.network_name(self._installation, app, app_id)
            await self._engine.ensure_network(name, {**labels, spec.APP: app, spec.TEAM: team})
            await self._join(name)
            return name

    async def join_all(self) -> None:
        """Where we run in a container: be in every app's network, to reach its instances."""
        self._self = await self._own_container()
        for network in await self._engine.networks({spec.INSTALLATION: self._installation}):
            await self._join(network["Name"])

    async def _join(self, network: str) -> None:
        if self._self:
            await self._engine.connect(network, self._self)

    async def _own_container(self) -> str | None:
        if not await asyncio.to_thread(_IN_A_CONTAINER.exists):
            return None
        name = socket.gethostname()
        known = await self._engine.container(name)
        if known is None:
            log.info("we run in a container of another engine: its instances must be reachable as they are", name=name)
            return None
        return known.id if known.addresses else None  # without an address: it shares the host's network
