"""A port in front of servers that come and go, and a proxy that spoils what engines send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.chaos.doors import Door
from tests.stack.faulty_proxy import Fault, faulty_proxy

BOUND_S = 30.0


@asynccontextmanager
async def server(name: str, *, ready: Callable[[], bool] = lambda: True) -> AsyncIterator[tuple[str, int]]:
    """Answers with its name, and with the size of what it was sent; 503 to its probe while it is not ready."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = await _chunks(reader) if "chunked" in head else 0
            status = "200 OK" if ready() or "/readyz" not in head else "503 No"
            body = f"{name} {size}"
            told = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
            writer.write(told.encode())
            await writer.drain()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[:2]
    finally:
        listening.close()


async def _chunks(reader: asyncio.StreamReader) -> int:
    """The size of a body that comes in chunks."""
    size = 0
    while (line := await reader.readuntil(b"\r\n")) != b"0\r\n":
        size += len(await reader.readexactly(int(line, 16) + 2)) - 2
    await reader.readuntil(b"\r\n")
    return size


async def ask(port: int) -> str:
    """Who answers there."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}/")).text.partition(" ")[0]
        except httpx2.HTTPError:
            return "nobody"


async def until(port: int, *names: str) -> None:
    """Only these answer any more: each of them, twice in turn."""
    async with asyncio.timeout(BOUND_S):
        while sorted([await ask(port) for _ in range(2 * len(names))]) != sorted(names * 2):  # noqa: ASYNC110  by HTTP
            await asyncio.sleep(0.02)


async def test_servers_that_are_ready_take_turns() -> None:
    """One that says that it is not gets no connection, until it says that it is."""
    ready = False
    async with server("a") as a, server("b", ready=lambda: ready) as b:
        door = await Door(0, [a, b], probe="/readyz").open()
        await until(door.port, "a")
        ready = True
        await until(door.port, "a", "b")
        await door.close()


async def test_who_has_died_is_passed_over() -> None:
    """At once, before its probe has failed."""
    async with server("a") as a:
        async with server("b") as b:
            door = await Door(0, [a, b]).open()
            await until(door.port, "a", "b")
        assert [await ask(door.port) for _ in range(4)] == ["a"] * 4
    assert await ask(door.port) == "nobody"
    assert door.refused == 1
    await door.close()


async def test_a_door_that_was_closed_opens_at_the_same_port() -> None:
    """Closed, it refuses, and cuts what is under way."""
    async with server("a") as a:
        door = await Door(0, [a]).open()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        assert await ask(door.port) == "a"
        port = door.port
        await door.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(BOUND_S):
            assert await _rest(reader) == b""
        writer.transport.abort()
        await door.open()
        assert (door.port, await ask(port)) == (port, "a")
        await door.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def pieces(count: int) -> AsyncIterator[bytes]:
    """A body whose size nobody knows before: engines push their layers so."""
    for _ in range(count):
        yield b"x" * 50_000


async def test_the_faulty_proxy_passes_a_body_of_unknown_size() -> None:
    """Whole, or cut where it was told to."""
    async with (
        server("a") as (host, port),
        faulty_proxy(f"{host}:{port}") as proxy,
        httpx2.AsyncClient(trust_env=False) as client,
    ):
        assert (await client.patch(proxy.url, content=pieces(5))).text == "a 250000"
        proxy.faults = [Fault(how="cut-request", method="PATCH", after_bytes=70_000)]
        with pytest.raises(httpx2.TransportError):
            await client.patch(proxy.url, content=pieces(5))
        proxy.faults = [Fault(how="answer", status=503)]
        assert (await client.patch(proxy.url, content=pieces(5))).status_code == 503
