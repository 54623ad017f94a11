"""A TCP port in front of servers that come and go: what a Service of Kubernetes is for replicas.

New connections go to the servers that are ready, in turn. A server that dies breaks its connections; one that stands
still keeps them, and gets no new ones as soon as its probe is not answered. With `away` the port itself is closed.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

T = TypeVar("T")

PROBE_EVERY_S = 0.5
PROBE_S = 3.0
"""How long an answer may take: a busy machine is slow, and one that stands still gets no new connections soon."""


class Door:
    """One port of this machine.

    Args:
        port: Its number; 0: any, see `port` when it is open.
        servers: `(host, port)` of those behind it.
        probe: The path that says 200 when a server is ready; none: every server always is.
    """

    def __init__(self, port: int, servers: Sequence[tuple[str, int]], *, probe: str | None = None) -> None:
        self.port = port
        self.refused = 0
        """Connections for which nobody was ready."""
        self._servers = list(servers)
        self._probe = probe
        self._ready = set() if probe else set(self._servers)
        self._turn = 0
        self._listening: asyncio.Server | None = None
        self._probing: list[asyncio.Task[None]] = []
        self._carrying: set[asyncio.Task[None]] = set()

    async def open(self) -> Self:
        """Listen, at the same port as before."""
        self._listening = await asyncio.start_server(self._enter, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]
        if self._probe:
            self._probing = [asyncio.create_task(self._watch(each, self._probe)) for each in self._servers]
        return self

    async def close(self) -> None:
        """Refuse new connections, cut the others."""
        if self._listening:
            self._listening.close()
            self._listening = None
        tasks = [*self._probing, *self._carrying]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._probing.clear()

    async def _watch(self, server: tuple[str, int], path: str) -> None:
        while True:
            if await says_200(*server, path):
                self._ready.add(server)
            else:
                self._ready.discard(server)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            await self._carry(reader, writer)
            writer.close()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._carrying.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await self._connected()
        if found is None:
            self.refused += 1
            return
        back, there = found
        ways = [asyncio.create_task(_pipe(reader, there)), asyncio.create_task(_pipe(back, writer))]
        try:
            # A side that ends ends both: whoever half-closes a connection here is not served any more.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            there.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The next one that is ready and takes the connection."""
        for _ in self._servers:
            self._turn = (self._turn + 1) % len(self._servers)
            server = self._servers[self._turn]
            if server in self._ready:
                with contextlib.suppress(OSError):
                    return await asyncio.open_connection(*server)
                if self._probe:
                    self._ready.discard(server)
        return None


async def says_200(host: str, port: int, path: str, *, within_s: float = PROBE_S) -> bool:
    """Whether a server says so in time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class LoopThread:
    """A loop in a thread of its own, for what has to go on while the script waits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; what still runs is cut off."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this there; its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _cancel_all(self) -> None:
        tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
