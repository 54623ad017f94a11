"""The router between real sockets: framing, streaming, upgrades, failover, draining, and its own pages."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx2
import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from seedwork.chassis.server_requests import HEAD_MAX_BYTES
from seedwork.chassis.server_settings import ServerSettings
from seedwork.errors import Conflict
from seedwork.messages import new_id
from services.deployer.adapters.counts import CountsBySaga
from services.deployer.adapters.router import Backend, Route, Router
from services.deployer.ports import Traffic
from tests.services.deployer.conftest import eventually

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Stage:
    """A router with one app, and backends that do what a test says."""

    router: Router
    route: Route
    stack: contextlib.AsyncExitStack
    seen: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.router.url(self.route.port)

    async def backend(self, handler: Handler) -> Backend:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        self.stack.push_async_callback(server.wait_closed)
        self.stack.callback(server.close)
        return Backend("127.0.0.1", server.sockets[0].getsockname()[1])

    async def answers(self, answer: bytes) -> Backend:
        """A backend that reads a request's head, remembers it, and says this."""

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()

        return await self.backend(handler)

    async def raw(self, request: bytes, *, until: bytes | None = None) -> bytes:
        """What comes back, byte for byte, until the router closes or `until` was seen."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.route.port)
        try:
            writer.write(request)
            return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


@pytest.fixture
async def stage(ports: int) -> AsyncIterator[Stage]:
    async with staged(Router(host="127.0.0.1", port_base=ports, idle_s=20)) as stage:
        yield stage


@contextlib.asynccontextmanager
async def staged(router: Router) -> AsyncIterator[Stage]:
    """A router with one app."""
    route = await router.open_free(new_id(), "shop", taken=frozenset())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(router.close)
        yield Stage(router, route, stack)


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20) as client:
        yield client


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# ── what instances see ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_instance_sees_who_asked(stage: Stage) -> None:
    """Address, scheme and host as the client used them; nothing that concerns the client's connection only."""
    stage.route.serve([await stage.answers(OK)])
    await stage.raw(
        b"GET /a?b=c HTTP/1.1\r\nHost: shop.test\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nX-Kept: 2\r\n\r\n"
    )
    (head,) = stage.seen
    lines = head.split(b"\r\n")
    assert lines[0] == b"GET /a?b=c HTTP/1.1"
    assert b"X-Forwarded-For: 127.0.0.1" in lines
    assert b"X-Forwarded-Proto: http" in lines
    assert b"X-Forwarded-Host: shop.test" in lines
    assert b"Host: shop.test" in lines
    assert b"X-Kept: 2" in lines
    assert b"X-Secret" not in head


async def test_a_proxy_that_is_trusted_may_say_that_it_ended_tls(ports: int) -> None:
    """Its `X-Forwarded-…` are kept; its address is added to the end."""
    limits = ServerSettings.model_validate({"trusted_proxies": "127.0.0.1"})
    async with staged(Router(host="127.0.0.1", port_base=ports, idle_s=20, limits=limits)) as stage:
        stage.route.serve([await stage.answers(OK)])
        await stage.raw(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 9.9.9.9\r\n"
            b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\r\n"
        )
        (head,) = stage.seen
    assert b"X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\n" in head
    assert b"X-Forwarded-Proto: https\r\n" in head
    assert b"X-Forwarded-Host: shop.example\r\n" in head


# ── what clients see ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body_leave_the_connection_usable(stage: Stage, status: bytes) -> None:
    """204 and 304 end with their headers."""
    stage.route.serve([await stage.answers(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")])
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await stage.raw(request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 " + status[:3]) == 2
    assert b"chunked" not in answer


async def test_head_gets_the_headers_of_get(stage: Stage, client: httpx2.AsyncClient) -> None:
    """With the length that GET would have, and no body; the connection goes on."""
    stage.route.serve([await stage.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")])
    for _ in range(2):
        answer = await client.head(stage.url)
        assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "12345", b"")


async def test_an_answer_is_passed_on_as_it_comes(stage: Stage, client: httpx2.AsyncClient) -> None:
    """The first piece of a stream arrives while the instance waits to send the second."""
    go_on = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    stage.route.serve([await stage.backend(stream)])
    async with client.stream("GET", stage.url) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"first"
        go_on.set()
        assert await anext(pieces) == b"second"


async def test_a_large_upload_arrives_whole(stage: Stage, client: httpx2.AsyncClient) -> None:
    """20 MB in chunks, from a client that does not know the length before."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        total = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
            total += size
        answer = str(total).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()

    stage.route.serve([await stage.backend(count)])

    async def body() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield b"x" * 65_536

    assert (await client.post(stage.url, content=body())).text == str(320 * 65_536)


async def test_a_large_download_arrives_whole_at_a_slow_client(stage: Stage) -> None:
    """The instance is held back while the client does not read; nothing is lost, and nothing is heaped up."""
    size = 40 * 1024 * 1024
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    stage.route.serve([await stage.backend(pour)])
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.route.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    async def stands_still() -> bool:
        before = sent
        await asyncio.sleep(0.2)
        return sent == before

    await eventually(stands_still)
    assert sent < size
    total = 0
    while piece := await reader.read(1 << 20):
        total += len(piece)
    assert total == size
    writer.close()


async def test_a_client_may_wait_for_100_continue(stage: Stage) -> None:
    """The instance's 100 is passed on, then the body, then the answer."""

    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"expect: 100-continue" in head.lower()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
        await writer.drain()

    stage.route.serve([await stage.backend(careful)])
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.route.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(b"hello")
    assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_an_early_answer_ends_the_upload(stage: Stage) -> None:
    """A 413 before the body has come is read by the client, although it is still sending."""
    stage.route.serve([await stage.answers(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nhuge")])
    answer = await stage.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b"huge")


async def test_an_old_client_is_answered_in_its_way(stage: Stage) -> None:
    """HTTP/1.0 without a Host: no chunks, and the connection closes."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    stage.route.serve([await stage.answers(chunked)])
    answer = await stage.raw(b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nok")
    assert b"chunked" not in answer
    assert b"Host: 127.0.0.1" in stage.seen[0]


async def test_requests_may_be_sent_ahead(stage: Stage) -> None:
    """Three at once over one connection: three answers in order."""
    stage.route.serve([await stage.answers(OK)])
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await stage.raw(request * 2 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 3


# ── web sockets ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_web_sockets_pass(stage: Stage) -> None:
    """Text and bytes both ways, larger than any buffer, and a clean close."""

    async def echo(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(message)

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        stage.route.serve([Backend("127.0.0.1", next(iter(server.sockets)).getsockname()[1])])
        async with connect(stage.url.replace("http", "ws") + "chat", max_size=None) as peer:
            for message in ("hello", b"\x00" * 1_000_000):
                await peer.send(message)
                assert await peer.recv() == message


async def test_a_refused_upgrade_is_an_ordinary_answer(stage: Stage) -> None:
    """The instance says no: the client reads why."""
    stage.route.serve([await stage.answers(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")])
    with pytest.raises(websockets.InvalidStatus, match="403"):
        await connect(stage.url.replace("http", "ws"))


async def test_a_web_socket_does_not_hold_up_a_deployment(stage: Stage) -> None:
    """It is told by its own instance's end, not waited for."""

    async def wait(peer: ServerConnection) -> None:
        await peer.wait_closed()

    async with serve(wait, "127.0.0.1", 0) as server:
        backend = Backend("127.0.0.1", next(iter(server.sockets)).getsockname()[1])
        stage.route.serve([backend])
        async with connect(stage.url.replace("http", "ws")):
            async with asyncio.timeout(20):
                await backend.idle()


# ── moving traffic ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kept_connection_moves_with_the_traffic(stage: Stage) -> None:
    """The same client connection is answered by the old instance, then by the new one."""
    old = await stage.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
    new = await stage.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew")
    stage.route.serve([old])
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.route.port)
    for backend, expected in ((old, b"old"), (new, b"new")):
        stage.route.serve([backend])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(expected)).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_draining_waits_for_requests_under_way(stage: Stage, client: httpx2.AsyncClient) -> None:
    """`idle` comes when the last one has its answer."""
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        writer.write(OK)
        await writer.drain()

    backend = await stage.backend(slow)
    stage.route.serve([backend])
    request = asyncio.create_task(client.get(stage.url))
    await eventually(lambda: _count(backend))
    stage.route.serve([])
    idle = asyncio.create_task(backend.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    go_on.set()
    assert (await request).text == "ok"
    await idle


async def _count(backend: Backend) -> int:
    return backend.requests


async def test_an_instance_that_takes_no_connections_is_passed_over(stage: Stage, client: httpx2.AsyncClient) -> None:
    """Nothing was sent to it yet, so another one may have the request."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        dead = Backend("127.0.0.1", deaf.getsockname()[1])
        stage.route.serve([dead, await stage.answers(OK), dead])
        assert [(await client.get(stage.url)).status_code for _ in range(6)] == [200] * 6


async def test_a_client_that_leaves_frees_its_instance(stage: Stage) -> None:
    """The instance's connection is closed too, so that it may stop its work."""
    left = asyncio.Event()

    async def waiting(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()

    backend = await stage.backend(waiting)
    stage.route.serve([backend])
    _, writer = await asyncio.open_connection("127.0.0.1", stage.route.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await eventually(lambda: _count(backend))
    writer.close()
    async with asyncio.timeout(20):
        await left.wait()
        await backend.idle()


# ── what cannot be answered ──────────────────────────────────────────────────────────────────────────────────────────


async def test_an_app_without_a_release_says_so(stage: Stage, client: httpx2.AsyncClient) -> None:
    """503, to be tried again; the connection may go on."""
    for _ in range(2):
        answer = await client.get(stage.url)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "It has no release yet." in answer.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"", "closed the connection without an answer"), (b"SSH-2.0-OpenSSH\r\n\r\n", "is no HTTP")],
)
async def test_an_instance_that_fails_a_request_is_a_502(
    stage: Stage, client: httpx2.AsyncClient, answer: bytes, why: str
) -> None:
    """The page says what the instance did."""
    stage.route.serve([await stage.answers(answer)])
    page = await client.get(stage.url)
    assert page.status_code == 502
    assert why in page.text


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(stage: Stage, client: httpx2.AsyncClient) -> None:
    """The client's connection is cut as the instance's was."""
    stage.route.serve([await stage.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")])
    with pytest.raises(httpx2.TransportError):
        await client.get(stage.url)


async def test_an_instance_that_stays_silent_is_a_504(ports: int) -> None:
    """After the idle time, with the time in the text."""
    router = Router(host="127.0.0.1", port_base=ports, idle_s=0.2)
    route = await router.open_free(new_id(), "shop", taken=frozenset())
    release = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with httpx2.AsyncClient(timeout=20) as client:
        route.serve([Backend("127.0.0.1", server.sockets[0].getsockname()[1])])
        answer = await client.get(router.url(route.port))
    assert answer.status_code == 504
    assert "silent for 0.2 s" in answer.text
    release.set()
    server.close()
    await server.wait_closed()
    await router.close()


async def test_headers_without_end_are_refused(stage: Stage) -> None:
    """431, and no more is read than the limit."""
    answer = await stage.raw(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * (HEAD_MAX_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"64 KiB" in answer


async def test_what_is_no_http_is_refused(stage: Stage) -> None:
    """400, with the rule that was broken."""
    answer = await stage.raw(b"\x16\x03\x01 this is TLS\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_the_router_is_no_proxy_to_elsewhere(stage: Stage) -> None:
    """CONNECT is refused."""
    answer = await stage.raw(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")


async def test_names_of_apps_cannot_become_markup(stage: Stage, client: httpx2.AsyncClient) -> None:
    """What stands on our pages is escaped."""
    stage.route.app = "<script>"
    assert "<script>" not in (await client.get(stage.url)).text


async def test_a_port_that_is_taken_is_passed_over_for_a_new_app_and_said_for_an_old_one(stage: Stage) -> None:
    """A new app gets the next port; an old one keeps its own, so the error names it."""
    other = Router(host="127.0.0.1", port_base=stage.route.port, idle_s=20)
    assert (await other.open_free(new_id(), "blog", taken=frozenset())).port > stage.route.port
    with pytest.raises(Conflict, match=f"Port {stage.route.port} of the app blog"):
        await other.open(new_id(), "blog", stage.route.port)
    await other.close()


async def test_answers_are_counted_for_the_release_by_their_status(stage: Stage, client: httpx2.AsyncClient) -> None:
    """An instance that takes a request and closes counts as an error; a page of our own counts for no release."""
    counts = CountsBySaga()
    await client.get(stage.url)
    for head in (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b""):
        backend = await stage.answers(head)
        backend.counts = counts.of("s")
        stage.route.serve([backend])
        await client.get(stage.url)
    assert counts.traffic("s") == Traffic(requests=3, errors=2)
    assert counts.traffic("other") is None


def test_counts_of_the_oldest_releases_are_forgotten() -> None:
    """A platform that runs for years keeps those of the last thousand."""
    counts = CountsBySaga()
    for number in range(1_100):
        counts.of(str(number)).answered(200)
    assert counts.traffic("99") is None
    assert counts.traffic("1099") == Traffic(requests=1, errors=0)
