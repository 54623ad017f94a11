"""What differs from the release that serves is repaired, one app at a time, at a growing interval."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from services.deployer.adapters.drifts import Ledger, Pace
from services.deployer.adapters.process.units import Unit
from services.deployer.ports import Drift, Standing

log = structlog.get_logger(__name__)

Repair = Callable[[], Awaitable[bool]]
"""Makes it as it should be; returns False where there is nothing left to repair. It compares again first."""


def lost_files(unit: Unit) -> bool:
    """Return whether files of the release are gone: its folder, its app, or a layer that it links to. Blocks."""
    path = unit.root.path
    if not (path / "app").is_dir() or not (path / "tmp").is_dir():
        return True
    try:
        return not all(each.exists() for each in (path / "layers").iterdir())
    except FileNotFoundError:
        return True


class Repairs:
    """Repairs of local processes.

    Args:
        clock: For waiting.
    """

    def __init__(self, clock: Clock) -> None:
        self.ledger = Ledger()
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def seen(self, standing: Standing, found: Sequence[str], repair: Repair) -> None:
        """Record what differs, and begin to repair it unless a repair of the app is under way.

        Args:
            standing: What should run.
            found: What differs, in words.
            repair: Called when the app's next repair is due.
        """
        if standing.app_id in self._tasks:
            return
        self.ledger.keep_only(standing.app_id, standing.saga_id or "", found)
        if found:
            self._record(standing, found, repaired=False)
            work = self._repair(standing, found, repair)
            self._tasks[standing.app_id] = asyncio.create_task(work, name=f"repair-{standing.app_id}")

    def under_way(self, app_id: str) -> bool:
        """Return whether a repair of the app is due or runs."""
        return app_id in self._tasks

    async def end(self, app_id: str) -> None:
        """End the repair that is under way."""
        task = self._tasks.pop(app_id, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def forget(self, app_id: str) -> None:
        """Repair nothing of this app any more."""
        self._paces.pop(app_id, None)
        await self.end(app_id)

    async def close(self) -> None:
        """Repair nothing any more."""
        for app_id in list(self._tasks):
            await self.end(app_id)

    async def _repair(self, standing: Standing, found: Sequence[str], repair: Repair) -> None:
        pace = self._paces.setdefault(standing.app_id, Pace())
        try:
            wait_ms = pace.due_ms(self._clock.now_ms()) - self._clock.now_ms()
            if wait_ms > 0:
                await self._clock.sleep(wait_ms / 1000)
            pace.made(self._clock.now_ms())
            if await repair():
                self._record(standing, found, repaired=True)
        except (KnarrError, OSError) as error:
            why = error.message if isinstance(error, KnarrError) else str(error)
            log.warning("drift.repair_failed", app=standing.app, why=why)
        finally:
            if self._tasks.get(standing.app_id) is asyncio.current_task():
                del self._tasks[standing.app_id]

    def _record(self, standing: Standing, found: Sequence[str], *, repaired: bool) -> None:
        for what in found:
            self.ledger.add(
                Drift(
                    app_id=standing.app_id,
                    saga_id=standing.saga_id or "",
                    what=what,
                    repaired=repaired,
                    at_ms=self._clock.now_ms(),
                )
            )
