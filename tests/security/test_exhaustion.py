"""Strangers cannot use up connections, files, memory or time of a service or of the router: the attacks, bounded."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.security.conftest import Serve
from tests.security.serving import GET, Target, eventually, read_all

HALF = b"GET /seen HTTP/1.1\r\nHost: x\r\nX-Slow: "


async def test_half_open_requests_of_one_client_do_not_keep_others_out(serve: Serve) -> None:
    """Sixty that never end: those over the limit are closed, the oldest first, and an honest request is answered."""
    async with serve(client_max_connections=20) as target:
        held = [await _half_open(target) for _ in range(60)]
        assert (await target.get()).startswith(b"HTTP/1.1 200 ")
        ended = [asyncio.create_task(read_all(reader)) for reader, _ in held]
        async with asyncio.timeout(30):
            await asyncio.gather(*ended[:40])
        assert not any(each.done() for each in ended[45:])
        _close(held)
        await asyncio.gather(*ended)


async def test_requests_under_way_are_never_closed_for_new_ones(serve: Serve) -> None:
    """Where all connections are busy a new one gets 503, and those before it their answers."""
    async with serve(client_max_connections=3) as target:
        busy = [asyncio.create_task(target.get(b"/wait")) for _ in range(3)]
        await eventually(lambda: _admitted(target, busy=3))
        refused = await target.get()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused.lower()
        target.open.set()
        assert [each[:13] for each in await asyncio.gather(*busy)] == [b"HTTP/1.1 200 "] * 3
        assert (await target.get()).startswith(b"HTTP/1.1 200 ")


async def test_a_flood_of_refused_connections_is_one_line_in_the_log(serve: Serve) -> None:
    """The line names the setting."""
    async with serve(client_max_connections=1) as target:
        busy = asyncio.create_task(target.get(b"/wait"))
        await eventually(lambda: _admitted(target, busy=1))
        with structlog.testing.capture_logs() as lines:
            for _ in range(20):
                assert (await target.get()).startswith(b"HTTP/1.1 503 ")
        target.open.set()
        await busy
    (line,) = [each for each in lines if each["event"] == "http.connections_refused"]
    assert "KNARR_CLIENT_MAX_CONNECTIONS" in line["settings"]


async def test_a_trusted_proxy_has_no_limit_of_its_own(serve: Serve) -> None:
    """All clients come from its address."""
    async with serve(client_max_connections=1, trusted_proxies="127.0.0.0/8") as target:
        busy = [asyncio.create_task(target.get(b"/wait")) for _ in range(5)]
        await eventually(lambda: _admitted(target, busy=5))
        target.open.set()
        assert all(each.startswith(b"HTTP/1.1 200 ") for each in await asyncio.gather(*busy))


async def test_slow_header_fields_are_answered_408(serve: Serve) -> None:
    """However regularly a byte comes: the deadline is for all of them."""
    async with serve(http_head_s=0.3) as target:
        reader, writer = await target.connect()
        writer.write(HALF)
        dripping = asyncio.create_task(_drip(writer))
        answer = await read_all(reader)
        dripping.cancel()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_sends_nothing_is_closed(serve: Serve) -> None:
    """It never had a request, so there is no answer."""
    async with serve(http_head_s=0.2) as target:
        assert await target.send(b"") == b""


async def test_a_connection_without_a_further_request_is_closed(serve: Serve) -> None:
    """One answer, and then the end after the idle time."""
    async with serve(http_idle_s=0.2) as target:
        assert (await target.send(GET)).count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize("head", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_a_body_below_the_lowest_rate_is_answered_408(serve: Serve, head: bytes) -> None:
    """A byte now and then does not keep a request open."""
    async with serve(http_body_stall_s=0.3, http_body_min_bytes_s=10_000) as target:
        reader, writer = await target.connect()
        writer.write(b"POST /seen HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % head)
        dripping = asyncio.create_task(_drip(writer, b"1\r\nx\r\n" if b"chunked" in head else b"x"))
        answer = await read_all(reader)
        dripping.cancel()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert not target.bodies


async def test_a_body_that_is_slow_and_above_the_rate_arrives(serve: Serve) -> None:
    """Its pauses are longer than those of the test before, all together longer than the stall, and allowed."""
    async with serve(http_body_stall_s=0.4, http_body_min_bytes_s=100) as target:
        reader, writer = await target.connect()
        writer.write(b"POST /seen HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6000\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.1)
            writer.write(b"x" * 1000)
        assert (await read_all(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert target.bodies == [6000]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /" + b"x" * 200_000, 414),
        (b"GET /seen HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000, 431),
        (b"GET /seen HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 20_000, 431),
        (b"GET /seen HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 101 + b"\r\n", 431),
    ],
    ids=["line", "field", "fields", "count"],
)
async def test_heads_have_a_limit(serve: Serve, request_line: bytes, status: int) -> None:
    """It holds before the end of the line has come."""
    async with serve() as target:
        assert (await target.send(request_line)).startswith(b"HTTP/1.1 %d " % status)
        assert not target.seen


async def test_a_head_without_end_is_not_read_to_its_end(serve: Serve) -> None:
    """300 MB are not taken: after the answer a bounded rest is read and forgotten, then the connection is reset."""
    async with serve(http_linger_bytes=1_000_000) as target:
        _, writer = await target.connect()
        sent = 0
        writer.write(HALF)
        with contextlib.suppress(ConnectionError):
            while sent < 300_000_000:
                writer.write(b"x" * 1_000_000)
                sent += 1_000_000
                await writer.drain()
                await asyncio.sleep(0)
        assert sent < 100_000_000
        writer.close()


async def test_a_body_that_is_too_large_is_answered_and_the_answer_is_read(serve: Serve) -> None:
    """26 MB are sent before the client reads: it gets the 413 and no reset."""
    async with serve() as target:
        body = b"x" * 26_000_000
        reader, writer = await target.connect()
        writer.write(b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()
        answer = await reader.read()  # raises if the connection is reset
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_an_early_answer_ends_the_reading_after_some_time(serve: Serve) -> None:
    """A client that neither sends its body nor leaves is cut after the lingering time."""
    async with serve(http_linger_s=0.2) as target:
        reader, writer = await target.connect()
        writer.write(b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        await read_all(reader)
        await eventually(lambda: len(_connections(target)) == 0)
        writer.close()


async def test_requests_that_are_sent_ahead_are_not_heaped_up(serve: Serve) -> None:
    """While one waits for its answer the next ones stay with the client."""
    async with serve() as target:
        reader, writer = await target.connect()
        writer.write(GET.replace(b"/seen", b"/wait"))
        writer.write(GET * 1_000_000)
        await eventually(lambda: _admitted(target, busy=1))
        await asyncio.sleep(0.1)
        assert writer.transport.get_write_buffer_size() > 1_000_000
        target.open.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()


async def test_no_file_left_for_a_connection_is_one_line_and_passes(serve: Serve) -> None:
    """The client waits and is answered when there are files again; there is no traceback."""
    async with serve() as target:
        with socket.socket() as waiting, structlog.testing.capture_logs() as lines:
            waiting.settimeout(0)
            with _no_files_left():
                await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", target.port))
                await eventually(lambda: any(each["event"] == "http.out_of_files" for each in lines))
            await asyncio.get_running_loop().sock_sendall(waiting, GET)
            assert (await asyncio.get_running_loop().sock_recv(waiting, 100)).startswith(b"HTTP/1.1 200 ")
    assert [each["event"] for each in lines if each["log_level"] in {"warning", "error"}] == ["http.out_of_files"]


@contextlib.contextmanager
def _no_files_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        with open(os.devnull, "rb") as null:  # noqa: PTH123  a number is needed, not a path
            resource.setrlimit(
                resource.RLIMIT_NOFILE,
                (max(map(int, (each.name for each in Path("/proc/self/fd").iterdir()))) + 5, before[1]),
            )
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(null.fileno()))
            yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def _half_open(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await target.connect()
    writer.write(HALF)
    await writer.drain()
    return reader, writer


async def _drip(writer: asyncio.StreamWriter, piece: bytes = b"x") -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)


def _close(held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for _, writer in held:
        writer.close()


def _connections(target: Target) -> Any:
    if hasattr(target.server, "server_state"):
        return target.server.server_state.connections
    return target.server._connections


def _admitted(target: Target, *, busy: int) -> bool:
    """Whether that many requests wait in the application or the instance."""
    if hasattr(target.server, "server_state"):
        return len(target.server.server_state.tasks) >= busy
    return sum(head.startswith(b"GET /wait") for head in target.seen) >= busy
