"""A real service and a real router on loopback, and clients that send what they like, byte for byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request

from seedwork.chassis.body import read_limited
from seedwork.chassis.server import Server, listen
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.messages import new_id
from services.deployer.adapters.router import Backend, Router
from services.deployer.settings import DeployerSettings
from tests.seedwork.chassis.dummy import models

MIGRATIONS = Path(models.__file__).parent / "migrations"
PATIENCE_S = 60.0

GET = b"GET /seen HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Target:
    """What is attacked."""

    port: int
    server: Any
    seen: list[bytes] = field(default_factory=list)
    """Request lines and fields that got through, one entry for each request."""
    bodies: list[int] = field(default_factory=list)
    """Sizes of bodies that got through."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, requests for `/wait` wait."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> bytes:
        """What comes back until the server closes."""
        reader, writer = await self.connect()
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            answer = await read_all(reader)
        writer.close()
        return answer

    async def get(self, target: bytes = b"/seen") -> bytes:
        """The answer to an honest request."""
        return await self.send(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; a reset ends it, too."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65_536):
            data += piece
    return data


class QuietServer(Server):
    """A server that leaves the signals to pytest."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()


@contextlib.asynccontextmanager
async def service(home: Path, port: int, **limits: Any) -> AsyncIterator[Target]:
    """A service that reads bodies of at most 1000 bytes and says what it has seen."""
    settings = ServiceSettings.model_validate({"home": home, "port_base": port - 3, "stop_grace_s": 1, **limits})
    made = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)
    target = Target(port, None)

    @made.app.get("/seen")
    @made.app.post("/seen")
    async def seen(request: Request) -> dict[str, Any]:
        lines = [b"%s: %s" % each for each in request.headers.raw]
        target.seen.append(b"\r\n".join([request.method.encode(), *lines]))
        body = await read_limited(request, 10_000_000)
        target.bodies.append(len(body))
        return {"body": len(body), "client": request.client.host if request.client else None}

    @made.app.post("/small")
    async def small(request: Request) -> dict[str, int]:
        return {"body": len(await read_limited(request, 1000))}

    @made.app.get("/wait")
    async def wait() -> dict[str, bool]:
        await target.open.wait()
        return {"ok": True}

    server = target.server = QuietServer(made.app)
    listening = listen("builder", "127.0.0.1", port)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            assert not serving.done(), "the service did not start"
            await asyncio.sleep(0.005)
        yield target
    finally:
        target.open.set()
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def router(port: int, **limits: Any) -> AsyncIterator[Target]:
    """A router with one app, whose instance reads each request and answers with its size."""
    most = {name: limits.pop(name) for name in ("app_max_connections", "max_connections") if name in limits}
    settings = DeployerSettings.model_validate(limits)
    made = Router(host="127.0.0.1", port_base=port, idle_s=20, limits=settings, **most)
    route = await made.open_free(new_id(), "shop", taken=frozenset())
    target = Target(route.port, made)

    async def instance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await _answer(target, reader, writer)
        writer.close()

    server = await asyncio.start_server(instance, "127.0.0.1", 0)
    route.serve([Backend("127.0.0.1", server.sockets[0].getsockname()[1])])
    try:
        yield target
    finally:
        target.open.set()
        await made.close()
        server.close()
        await server.wait_closed()


async def _answer(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    target.seen.append(head)
    if head.startswith(b"POST /small"):
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nhuge")
        await read_all(reader)  # a careful app: its own close is no reset
    else:
        if head.startswith(b"GET /wait"):
            await target.open.wait()
        size = await _body_bytes(head, reader)
        target.bodies.append(size)
        answer = b'{"body":%d}' % size
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
    await writer.drain()


async def _body_bytes(head: bytes, reader: asyncio.StreamReader) -> int:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if b"transfer-encoding" in fields:
        total = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            total += len((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
        return total
    return len(await reader.readexactly(int(fields.get(b"content-length", b"0"))))


async def eventually(check: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = check()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)
