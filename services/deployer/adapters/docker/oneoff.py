"""One-off processes as containers of their own: they end with their command, or when their reader is gone.

Their containers carry the release's label, so `stop` and `forget` find what a crash of ours left.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import structlog

from seedwork.errors import FinalError, KnarrError, NotFound
from services.deployer.adapters.docker.engine import CannotStart, Engine
from services.deployer.errors import CannotRun

log = structlog.get_logger(__name__)

_PIECES_AHEAD = 64
"""Pieces of output that are read ahead of a slow reader; then the command waits."""
_ENDED_BY_US = 137


class OneOff:
    """See `RunningCommand`.

    Args:
        engine: Runs it.
        container_id: Its container, which is not started yet.
        ended: Called when its container is gone.
    """

    def __init__(self, engine: Engine, container_id: str, *, ended: Callable[["OneOff"], None]) -> None:
        self.exit_code: int | None = None
        self._engine = engine
        self.container_id = container_id
        self._ended = ended
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_PIECES_AHEAD)
        self._started = asyncio.get_running_loop().create_future()
        self._fault: KnarrError | None = None
        self._task = asyncio.create_task(self._run(), name=f"run-{container_id[:12]}")

    async def start(self) -> None:
        """Start it.

        Raises:
            CannotRun: The engine cannot start the command.
        """
        try:
            await asyncio.shield(self._started)
        except CannotStart as error:
            await self.close()
            raise CannotRun("The command cannot be started", why=error.why) from error
        except BaseException:
            await self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of its output, until it has ended."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)
        if self._fault is not None:
            raise self._fault

    async def close(self) -> None:
        """See `RunningCommand.close`."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with self._engine.attached(self.container_id) as output:
                await self._engine.start(self.container_id)
                self._started.set_result(None)
                async for piece in output:
                    await self._pieces.put(piece)
            self.exit_code = await self._engine.ended(self.container_id)
        except KnarrError as error:
            if not self._started.done():
                self._started.set_exception(error)
            elif not isinstance(error, NotFound):  # NotFound: it was stopped with its release
                self._fault = error
        finally:
            self.exit_code = _ENDED_BY_US if self.exit_code is None else self.exit_code
            await asyncio.shield(self._remove())

    async def _remove(self) -> None:
        with contextlib.suppress(FinalError):
            try:
                await self._engine.remove(self.container_id)
            except KnarrError as error:  # the next sweep finds it
                log.warning("run.not_removed", container=self.container_id[:12], why=error.message)
        self._ended(self)
        if self._pieces.full():
            self._pieces.get_nowait()
        self._pieces.put_nowait(None)
