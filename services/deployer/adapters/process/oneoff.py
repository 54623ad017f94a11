"""A one-off process: its output goes to the caller, not to the app's log. It ends with everything that it started."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable

from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.process import Command, end_all, launch

_PIECE_BYTES = 64 * 1024
_GRACE_S = 5.0
"""Time between SIGTERM and the end: the caller does not wait for it, and a command may roll back."""
_REST_S = 1.0
"""How long output is read after the end of the process: a descendant may hold the pipe where nothing ends it."""


class OneOff:
    """See `RunningCommand`. `close` must be called, whatever happens.

    Args:
        command: What runs.
        child: Its launcher.
        reader: Of its output.
        transport: Of the reader.
        ended: Called once, when nothing of it runs any more.
    """

    def __init__(
        self,
        command: Command,
        child: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
        *,
        ended: Callable[["OneOff"], None],
    ) -> None:
        self.exit_code: int | None = None
        self.command = command
        self._child = child
        self._reader = reader
        self._transport = transport
        self._ended = ended
        self._closed = False

    @classmethod
    async def start(
        cls, command: Command, *, records: leftovers.Records, ended: Callable[["OneOff"], None]
    ) -> "OneOff":
        """Start it; the record lets the next start of the platform end what a crash left."""
        read_fd, write_fd = os.pipe()
        reader = asyncio.StreamReader(limit=_PIECE_BYTES)
        try:
            loop = asyncio.get_running_loop()
            file = os.fdopen(read_fd, "rb", buffering=0)
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
            try:
                child = await launch(command, env={}, output=write_fd)
            except BaseException:
                transport.close()
                raise
        finally:
            os.close(write_fd)
        records.add(command.record, child.pid)

        def forget(which: "OneOff") -> None:
            records.remove(command.record)
            ended(which)

        return cls(command, child, reader, transport, ended=forget)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of its output, until it has ended and `exit_code` is set."""
        exited = asyncio.create_task(self._child.wait())
        reading: asyncio.Task[bytes] | None = None
        try:
            while True:
                reading = asyncio.create_task(self._reader.read(_PIECE_BYTES))
                await asyncio.wait({reading, exited}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await asyncio.wait({reading}, timeout=_REST_S)
                if not reading.done() or not reading.result():
                    break
                yield reading.result()
            status = await exited
            self.exit_code = status if status >= 0 else 128 - status
        finally:
            tasks = [each for each in (exited, reading) if each is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """See `RunningCommand.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._terminate()
        finally:
            self._transport.close()
            self._ended(self)

    async def _terminate(self) -> None:
        """SIGTERM and a grace, as for an instance; then everything that is left is killed."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._child.wait()
        if self._child.returncode is None:
            await end_all(self._child)
        if self.command.cgroup is not None:
            await asyncio.to_thread(self.command.cgroup.end)
