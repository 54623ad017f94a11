"""Keeps tasks that run for ever running: a crash is logged, counted, shown, and followed by a restart after a wait.

The wait doubles from 1 s to 30 s and begins anew once a task has held out for a minute. A system that is away (a
`RetryableError`) is no crash: one line without a traceback, and never more than 5 s until the task looks again. A task
that returns has done what it had to. Stopping cancels and waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from seedwork.chassis.metrics import Metrics
from seedwork.clock import Clock
from seedwork.errors import KnarrError, RetryableError

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
LONGEST_AWAY_S = 5.0
"""Until a task looks again whether what it needs is back."""
STEADY_MS = 60_000
"""A task that ran this long was not in a crash loop."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Supervised:
    task: asyncio.Task[None]
    down: str | None = None
    """Why it does not run at the moment; None: it runs, or has ended by itself."""
    crashes: int = 0


class Supervisor:
    """The background tasks of one service."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._tasks: dict[str, _Supervised] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run it from now on.

        Raises:
            ValueError: A task of this name runs already.
        """
        if name in self._tasks:
            raise ValueError(f"a background task {name!r} runs already")
        self._tasks[name] = _Supervised(asyncio.create_task(self._keep_running(name, run), name=name))

    async def stop(self, name: str) -> None:
        """Cancel it and wait until it has let go; nothing if it was never started."""
        supervised = self._tasks.pop(name, None)
        if supervised is None:
            return
        supervised.task.cancel()
        (outcome,) = await asyncio.gather(supervised.task, return_exceptions=True)
        if isinstance(outcome, Exception):
            log.error("a background task failed while it stopped", task=name, exc_info=outcome)

    def down(self) -> Mapping[str, str]:
        """Tasks that do not run at the moment though they should, and why."""
        return {name: each.down for name, each in self._tasks.items() if each.down}

    def crashes(self) -> Mapping[str, int]:
        """How often each task has crashed since the start."""
        return {name: each.crashes for name, each in self._tasks.items()}

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            began_ms = self._clock.now_ms()
            try:
                await run()
            except Exception as error:  # noqa: BLE001  logged with its traceback, counted and shown
                if self._clock.now_ms() - began_ms >= STEADY_MS:
                    wait_s = FIRST_WAIT_S
                if isinstance(error, RetryableError):
                    wait_s = min(wait_s, LONGEST_AWAY_S)
                    self._waits(name, error, wait_s)
                else:
                    self._crashed(name, error, wait_s)
            else:
                return
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            self._tasks[name].down = None

    def _waits(self, name: str, error: RetryableError, wait_s: float) -> None:
        self._tasks[name].down = error.message
        log.warning("a background task waits", task=name, again_in_s=wait_s, error=error.message)

    def _crashed(self, name: str, error: Exception, wait_s: float) -> None:
        supervised = self._tasks[name]
        supervised.crashes += 1
        supervised.down = error.message if isinstance(error, KnarrError) else f"crashed with {type(error).__name__}"
        self._metrics.crashed(name)
        log.error("a background task crashed", task=name, restart_in_s=wait_s, exc_info=error)
