"""Who serves each app: the engine's events and our own looks in, backends for the router out."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.engine import Container, Engine
from services.deployer.adapters.router import Backend, Router
from services.deployer.ports import Release

log = structlog.get_logger(__name__)

STARTING = "It is starting: try again in a moment."
CRASHED = "It crashed and is starting again; `knarr logs APP` shows its output."
DOWN = "Its containers were stopped or removed outside of knarr; they are started again."
_NO_RELEASE = "It has no release yet."
_NO_WEB = "No web process runs: its formation has none. `knarr scale APP web=1` starts one."
_LOOK_AGAIN_S = 30.0
"""How often routes are compared with the engine, whatever its events say."""
_LISTEN_AGAIN_S = 1.0


class Routes:
    """Keeps the router as the engine is.

    Args:
        engine: Has the containers.
        router: The apps' ports.
        answering: Knows who takes requests.
        clock: For waiting.
        labels: Of every container of the installation.
        release: The release of a saga, where it is known.
        looked: Called with an app and its instances' containers after each look.
    """

    def __init__(
        self,
        engine: Engine,
        router: Router,
        answering: Callable[[], Answering],
        clock: Clock,
        *,
        labels: dict[str, str],
        release: Callable[[str], Release | None],
        looked: Callable[[str, Sequence[Container]], Awaitable[None]],
    ) -> None:
        self.served: dict[str, str] = {}
        """The saga that has the traffic, by app."""
        self.troubles: dict[str, str] = {}
        self._engine = engine
        self._router = router
        self._answering = answering
        self._clock = clock
        self._labels = labels
        self._release = release
        self._looked = looked
        self._to_look_at: set[str] = set()
        self._look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._fingerprints: dict[str, frozenset[tuple[str, ...]]] = {}

    def follow(self) -> None:
        """Begin to follow the engine, once."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._listen(), name="docker-events"),
                asyncio.create_task(self._keep(), name="docker-routes"),
            ]

    async def close(self) -> None:
        """Follow no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look_soon(self, *app_ids: str) -> None:
        """Compare these apps with the engine in a moment."""
        self._to_look_at.update(app_ids)
        self._look.set()

    async def look_for_changes(self) -> None:
        """Look at the apps whose containers are not as at the last call: networks have no events of an app."""
        known = await self._engine.fingerprints({**self._labels, spec.STEP: "deploy"}, by=spec.APP_ID)
        before, self._fingerprints = self._fingerprints, known
        self.look_soon(*(each for each in self.served if known.get(each) != before.get(each)))

    async def refresh(self, app_id: str) -> None:
        """Tell the router who serves the app now, or why nobody does."""
        route = self._router.route(app_id)
        if route is None:
            return
        containers = await self._engine.containers({**self._labels, spec.APP_ID: app_id, spec.STEP: "deploy"})
        answering = self._answering()
        answering.keep_only(app_id, containers)
        served = [each for each in containers if each.labels[spec.SAGA] == self.served.get(app_id)]
        for each in served:
            if each.runs:
                answering.watch(each)
        route.serve(*self._serving(app_id, served))
        await self._looked(app_id, served)

    def _serving(self, app_id: str, served: Sequence[Container]) -> tuple[Sequence[Backend], str]:
        if trouble := self.troubles.get(app_id):
            return (), trouble
        if app_id not in self.served:
            return (), _NO_RELEASE
        webs = [each for each in served if each.labels.get(spec.PORT)]
        release = self._release(self.served[app_id])
        if not webs and (not release.formation.get(spec.WEB) if release else served):
            return (), _NO_WEB
        answering = self._answering()
        ready = [each for each in webs if not answering.unready(each)]
        backends = [backend for each in ready if (backend := answering.backend(each))]
        return backends, _why_none(webs)

    async def _listen(self) -> None:
        """What happens to our containers, again after each loss of the connection; then everything is looked at."""
        while True:
            self.look_soon(*self.served)
            try:
                async for event in self._engine.events({**self._labels, spec.SAGA: ""}):
                    if not event.get("Action", "").startswith("exec_"):  # those of command checks
                        self.look_soon(event["Actor"]["Attributes"].get(spec.APP_ID, ""))
            except KnarrError as error:
                log.warning("the Docker engine's events are lost", why=error.message)
            await self._clock.sleep(_LISTEN_AGAIN_S)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._look.wait()
            self._look.clear()
            for app_id in list(self._to_look_at) or list(self.served):
                self._to_look_at.discard(app_id)
                try:
                    await self.refresh(app_id)
                except KnarrError as error:
                    log.warning("a route was not refreshed", app_id=app_id, why=error.message)


def _why_none(webs: Sequence[Container]) -> str:
    if not webs or any(each.status in {"exited", "dead", "paused"} for each in webs):
        return DOWN
    return CRASHED if any(not each.runs for each in webs) else STARTING
