"""One attempt of a health check against servers that answer in every way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from services.deployer.adapters.probe import ask
from services.deployer.checks import Check

HTTP = Check(
    type="startup", name="", path="/health", attempts=3, timeout_s=5.0, wait_s=1.0, initial_delay_s=0.0, budget_s=60.0
)
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"

Serve = Callable[[bytes], Awaitable[int]]


@pytest.fixture
def requests() -> list[bytes]:
    return []


@pytest.fixture
async def serve(requests: list[bytes]) -> AsyncIterator[Serve]:
    """Servers that send the same bytes to every client, and keep the connection open."""
    servers, writers = [], []

    async def started(answer: bytes) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(asyncio.IncompleteReadError):
                requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    yield started
    for writer in writers:
        writer.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("status", "any_status", "fault"),
    [
        (b"200 OK", False, None),
        (b"302 Found", False, None),
        (b"400 Bad Request", False, "GET /health answered 400"),
        (b"503 Unavailable", False, "GET /health answered 503"),
        (b"503 Unavailable", True, None),
    ],
)
async def test_a_status_passes_or_is_named(serve: Serve, status: bytes, any_status: bool, fault: str | None) -> None:
    """200 to 399 by default, everything where any answer counts."""
    port = await serve(b"HTTP/1.1 " + status + b"\r\n\r\n")
    assert await ask("127.0.0.1", port, replace(HTTP, any_status=any_status)) == fault


async def test_headers_of_the_app_are_sent_and_host_among_them(serve: Serve, requests: list[bytes]) -> None:
    """Host replaces ours, whatever its case."""
    port = await serve(GOOD)
    headers = {"host": "shop.example.com", "X-Probe": "a"}
    assert await ask("127.0.0.1", port, replace(HTTP, headers=headers)) is None
    lines = requests[0].decode().splitlines()
    assert lines[0] == "GET /health HTTP/1.1"
    assert [line for line in lines if line.lower().startswith("host:")] == ["host: shop.example.com"]
    assert "X-Probe: a" in lines


async def test_a_line_end_in_a_header_becomes_no_header(serve: Serve, requests: list[bytes]) -> None:
    """Whatever the app's description holds, one request is sent, or none."""
    port = await serve(GOOD)
    assert await ask("127.0.0.1", port, replace(HTTP, headers={"X-Probe": "a\r\nX-Evil: b"})) is not None
    assert requests == []


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        b"HTTP/1.1 200 OK\r\n\r\nall is ready",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n",
    ],
    ids=["with a length", "without", "in chunks"],
)
async def test_content_is_looked_for_in_the_body(serve: Serve, answer: bytes) -> None:
    """Also where it is cut in two by chunks, and where the server keeps the connection open."""
    port = await serve(answer)
    assert await ask("127.0.0.1", port, replace(HTTP, content="ready")) is None


async def test_missing_content_is_named(serve: Serve) -> None:
    """A status is not enough where the app asks for a text."""
    port = await serve(GOOD)
    fault = await ask("127.0.0.1", port, replace(HTTP, content="healthy"))
    assert fault == "the answer to GET /health does not contain 'healthy'"


async def test_a_port_that_answers_no_http_is_named(serve: Serve) -> None:
    """A worker's own protocol on PORT is no web app, unless it asks for a connection only."""
    port = await serve(b"SSH-2.0-x\r\n\r\n")
    assert await ask("127.0.0.1", port, HTTP) == "what GET /health answers is no HTTP"
    assert await ask("127.0.0.1", port, replace(HTTP, path=None, listening=True)) is None


async def test_silence_and_a_closed_port_are_told_apart(serve: Serve) -> None:
    """An app that hangs is another fault than one that does not listen."""
    port = await serve(b"")
    silent = await ask("127.0.0.1", port, replace(HTTP, timeout_s=0.2))
    assert silent == "GET /health was not answered in time"
    assert await ask("127.0.0.1", 1, HTTP) == "it refuses connections"
