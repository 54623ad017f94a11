"""A proxy before a real HTTP server that answers for it, loses connections and cuts bodies, as a test tells it.

Every request goes over a connection of its own to the server behind, so that a cut one disturbs no other.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

PIECE_BYTES = 16 * 1024


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with requests that fit."""

    how: Literal["answer", "refuse", "cut-request", "cut-answer"]
    method: str = ""
    """Empty: any."""
    path: str = ""
    """A part of it."""
    skip: int = 0
    """So many that fit go well first."""
    times: int = 1
    """So many go wrong; then all is well again."""
    status: int = 500
    headers: tuple[str, ...] = ()
    body: bytes = b""
    """Of an answer in the server's place."""
    after_bytes: int = 0
    """Of the body, before it is cut."""

    def takes(self, method: str, path: str) -> bool:
        """Whether it is this one's turn."""
        if not self.times or (self.method and method != self.method) or self.path not in path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class FaultyProxy:
    """What was asked, and what is to go wrong."""

    upstream: str
    """`host:port`"""
    host: str = ""
    """Its own `host:port`."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path, oldest first."""
    overlapping: list[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=list)
    """Each two of them that were with the server behind at once: until the head of its answer."""
    bytes_up: int = 0
    """Of request bodies."""
    rewrite: Callable[[str], str] = str
    """What the server behind is asked instead."""
    _connections: set[asyncio.Task[None]] = field(default_factory=set)
    _under_way: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.host}"

    def asked(self, method: str, part: str = "") -> int:
        """How many such requests there were."""
        return sum(1 for each, path in self.requests if each == method and part in path)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is one request."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await self._one(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._connections.discard(task)

    async def close(self) -> None:
        """End what is under way."""
        under_way = list(self._connections)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _one(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ", 2)
        asked = (method, path)
        self.requests.append(asked)
        self.overlapping.extend((other, asked) for other in self._under_way)
        self._under_way.append(asked)
        with contextlib.ExitStack() as with_the_server:
            with_the_server.callback(self._under_way.remove, asked)
            await self._answered(method, path, lines, reader, writer, with_the_server=with_the_server)

    async def _answered(
        self,
        method: str,
        path: str,
        lines: list[str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        with_the_server: contextlib.ExitStack,
    ) -> None:
        """Pass the request on; `with_the_server` is closed before the client reads the answer and asks again."""
        body = _body(reader, [line.lower() for line in lines])
        fault = next((each for each in self.faults if each.takes(method, path)), None)
        if fault and fault.how == "refuse":
            writer.transport.abort()
            return
        if fault and fault.how == "answer":
            await self._pass(body, None)
            answer = [f"HTTP/1.1 {fault.status} Fault", *fault.headers, f"Content-Length: {len(fault.body)}"]
            writer.write("\r\n".join([*answer, "Connection: close", "", ""]).encode() + fault.body)
            await writer.drain()
            return
        host, _, port = self.upstream.partition(":")
        server_reader, server = await asyncio.open_connection(host, int(port))
        try:
            kept = [line for line in lines if not line.lower().startswith("connection:")]
            asked = "\r\n".join([f"{method} {self.rewrite(path)} HTTP/1.1", *kept, "Connection: close", "", ""])
            server.write(asked.encode("latin-1"))
            if fault and fault.how == "cut-request":
                await self._pass(body, server, at_most=fault.after_bytes)
                writer.transport.abort()
                return
            await self._pass(body, server)
            answer_head = await server_reader.readuntil(b"\r\n\r\n")
            with_the_server.close()
            writer.write(answer_head)
            await _pass_back(server_reader, writer, fault.after_bytes if fault else None)
        finally:
            server.close()
            with contextlib.suppress(ConnectionError):
                await server.wait_closed()

    async def _pass(
        self, body: AsyncIterator[bytes], server: asyncio.StreamWriter | None, *, at_most: int | None = None
    ) -> None:
        """To its end, or until so many bytes have gone; `server` none: to nobody."""
        left = at_most
        async for piece in body:
            sent = piece[:left]
            self.bytes_up += len(sent)
            if server is not None:
                server.write(sent)
                await server.drain()
            if left is not None:
                left -= len(sent)
                if left == 0:
                    return


async def _body(reader: asyncio.StreamReader, headers: list[str]) -> AsyncIterator[bytes]:
    """A request's body, piece by piece, as it is on the wire."""
    named = {name: value.strip() for name, _, value in (line.partition(":") for line in headers)}
    if named.get("transfer-encoding") != "chunked":
        async for piece in _exactly(reader, int(named.get("content-length", 0))):
            yield piece
        return
    size = None
    while size != 0:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        yield line
        async for piece in _exactly(reader, size + len(b"\r\n")):
            yield piece


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, PIECE_BYTES))
        if not piece:
            raise ConnectionResetError
        size -= len(piece)
        yield piece


async def _pass_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut_after: int | None) -> None:
    """An answer's body, up to so many bytes."""
    left = cut_after
    while piece := await reader.read(PIECE_BYTES):
        if left is not None and len(piece) > left:
            writer.write(piece[:left])
            await writer.drain()
            return
        left = None if left is None else left - len(piece)
        writer.write(piece)
        await writer.drain()


@contextlib.asynccontextmanager
async def faulty_proxy(upstream: str) -> AsyncIterator[FaultyProxy]:
    """A proxy on a free port of this machine."""
    proxy = FaultyProxy(upstream)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=64 * 1024)
    proxy.host = "{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
