"""What differs from the release that serves is made as it should be, at a growing interval.

A repair touches only containers of the release that has the traffic, under that release's lock; it moves no traffic.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from services.deployer.adapters.docker.differences import Difference
from services.deployer.adapters.docker.engine import Engine
from services.deployer.adapters.docker.starting import Starting
from services.deployer.adapters.drifts import Ledger, Pace
from services.deployer.ports import Drift, Release

log = structlog.get_logger(__name__)

Look = Callable[[], Awaitable[Sequence[Difference]]]
"""What differs now; nothing where the release does not serve any more. Called under the release's lock."""


class Repairs:
    """Repairs the apps of one engine.

    Args:
        engine: Has their containers.
        starting: Makes and starts containers.
        clock: For waiting.
    """

    def __init__(self, engine: Engine, starting: Starting, clock: Clock) -> None:
        self.ledger = Ledger()
        self._engine = engine
        self._starting = starting
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def seen(
        self, release: Release, found: Sequence[Difference], *, look: Look, lock: asyncio.Lock, done: Callable[[], None]
    ) -> None:
        """Record what differs, and begin to repair it unless that is under way.

        Args:
            release: What should run.
            found: What differs.
            look: Finds it again.
            lock: Of the release.
            done: Called after a repair.
        """
        self.ledger.keep_only(release.app_id, release.saga_id, [each.what for each in found])
        if found:
            self._record(release, found, repaired=False)
        if found and release.app_id not in self._tasks:
            work = self._repair(release, look=look, lock=lock, done=done)
            self._tasks[release.app_id] = asyncio.create_task(work, name=f"docker-repair-{release.app_id}")

    async def forget(self, app_id: str) -> None:
        """Repair nothing of this app any more."""
        self._paces.pop(app_id, None)
        if task := self._tasks.pop(app_id, None):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Repair nothing any more."""
        for app_id in list(self._tasks):
            await self.forget(app_id)

    async def _repair(self, release: Release, *, look: Look, lock: asyncio.Lock, done: Callable[[], None]) -> None:
        pace = self._paces.setdefault(release.app_id, Pace())
        try:
            wait_ms = pace.due_ms(self._clock.now_ms()) - self._clock.now_ms()
            if wait_ms > 0:
                await self._clock.sleep(wait_ms / 1000)
            pace.made(self._clock.now_ms())
            async with lock:
                found = await look()
                for each in found:
                    log.warning("drift.repair", app=release.app, release=release.number, what=each.what)
                    await self._apply(release, each)
                    self._record(release, [each], repaired=True)
        except KnarrError as error:
            log.warning("drift.repair_failed", app=release.app, release=release.number, why=error.message)
        finally:
            self._tasks.pop(release.app_id, None)
            done()

    async def _apply(self, release: Release, found: Difference) -> None:
        if found.remedy == "replace" and found.container_id:
            await self._engine.remove(found.container_id)
        if found.remedy == "resume":
            await self._engine.resume(found.container_id)
            return
        try:
            await self._starting.start_one(release, found.label)
        except KnarrError:
            if found.remedy != "start":
                raise
            await self._engine.remove(found.container_id)  # its network may be gone: only a new container starts
            await self._starting.start_one(release, found.label)
        container = await self._engine.container(self._starting.name(release, found.label))
        if container is not None:
            await self._engine.keep_running(container.id)

    def _record(self, release: Release, found: Sequence[Difference], *, repaired: bool) -> None:
        for each in found:
            self.ledger.add(
                Drift(
                    app_id=release.app_id,
                    saga_id=release.saga_id,
                    what=each.what,
                    repaired=repaired,
                    at_ms=self._clock.now_ms(),
                )
            )
