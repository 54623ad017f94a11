"""The stable port of each app: HTTP/1.1 requests in, each one to whatever serves the app at that moment.

Routing is request by request, so a client that keeps its connection is moved over with everybody else and sees nothing
of a deployment. Bodies are streamed both ways, never held; `Upgrade` (web sockets) becomes a raw tunnel. What cannot be
answered gets a page that says why: 503 where nothing serves yet, 502 where an instance failed, 504 where it was silent.

Not done here: TLS, compression, caching, retries of requests that an instance may have seen.
Framing and connection rules: RFC 9112, by h11; forwarding rules: RFC 9110, section 7.6.
"""

import asyncio
import contextlib
import errno
import html
import socket
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Any

import h11
import structlog

from seedwork.errors import Conflict
from services.deployer.adapters.counts import Counts

log = structlog.get_logger(__name__)

PIECE_BYTES = 64 * 1024
HEADER_BYTES = 64 * 1024
"""Request line and headers together; nginx takes 32 KiB, cookies of 50 have been seen."""
CONNECT_S = 5.0
"""To an instance on this machine: a full accept queue, not the network, makes it slow."""
BETWEEN_REQUESTS_S = 75.0
"""How long a connection without a request is kept, and how long a client may take over its headers."""
TUNNEL_IDLE_S = 3600.0
"""Web sockets may be silent for long; most libraries ping every 20 s."""
LINGER_S = 1.0
"""How long we read on after an early answer: closing with unread bytes would reset the connection before it is read."""

_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})

_NO_ANSWER = "it closed the connection without an answer"

Headers = list[tuple[bytes, bytes]]
Event = h11.Event | type[h11.PAUSED]


class _ClientGoneError(Exception):
    """The client closed its connection: nobody reads the answer."""


class _SilentError(Exception):
    """No byte came, or none was taken, for too long."""


class _BadAnswerError(Exception):
    """The instance closed its connection or sent what is no HTTP."""


class Backend:
    """One instance that takes requests."""

    __slots__ = ("_idle", "counts", "cut_after_s", "host", "port", "requests")

    def __init__(self, host: str, port: int, *, counts: Counts | None = None) -> None:
        self.host = host
        self.port = port
        self.requests = 0
        """Under way."""
        self.counts = counts or Counts()
        """Of its release."""
        self.cut_after_s: float | None = None
        """Drain time in seconds, once it is over: requests that are open now are cut by the platform."""
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request while it is under way."""
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    def cut(self, drain_s: float) -> int:
        """Count the requests that are open now as cut; return how many they are."""
        self.cut_after_s = drain_s
        self.counts.cut += self.requests
        return self.requests

    async def idle(self) -> None:
        """Wait until no request is under way; tunnels last as long as their client likes, and are not waited for."""
        await self._idle.wait()


class Route:
    """One app's port, and who serves it."""

    def __init__(self, app_id: str, app: str, port: int) -> None:
        self.app_id = app_id
        self.app = app
        self.port = port
        self.backends: Sequence[Backend] = ()
        self.note = "It has no release yet."
        """Why there is no backend, for people."""
        self.server: asyncio.Server | None = None
        self._turn = 0

    def serve(self, backends: Sequence[Backend], note: str = "") -> None:
        """From now on new requests go to these."""
        self.backends = tuple(backends)
        self.note = note.replace("`knarr logs APP`", f"`knarr logs {self.app}`").replace(
            "`knarr scale APP web=1`", f"`knarr scale {self.app} web=1`"
        )

    def in_turn(self) -> Sequence[Backend]:
        """All of them, each time beginning with the next one."""
        if not self.backends:
            return ()
        self._turn = (self._turn + 1) % len(self.backends)
        return (*self.backends[self._turn :], *self.backends[: self._turn])


class Router:
    """The ports of all apps.

    Args:
        host: The address to listen on.
        port_base: The first port to try for a new app.
        idle_s: Seconds without a byte after which a request is given up.
    """

    def __init__(self, *, host: str, port_base: int, idle_s: float) -> None:
        self._host = host
        self._port_base = port_base
        self._idle_s = idle_s
        self._routes: dict[str, Route] = {}
        self._connections: set[asyncio.Task[None]] = set()

    def route(self, app_id: str) -> Route | None:
        """The app's route, if its port is open."""
        return self._routes.get(app_id)

    def is_open(self, app_id: str) -> bool:
        """Return whether the app's port accepts connections."""
        route = self._routes.get(app_id)
        return route is not None and route.server is not None and route.server.is_serving()

    def url(self, port: int) -> str:
        """The address of the app with that port."""
        host = "127.0.0.1" if self._host in {"0.0.0.0", "::", ""} else self._host  # noqa: S104  what we listen on
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    async def open_free(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Route:
        """Open the first free port for an app that has none.

        Raises:
            Conflict: There is none in the range.
        """
        if route := self._routes.get(app_id):
            return route
        for port in range(self._port_base, 65_536):
            if port in taken or any(each.port == port for each in self._routes.values()):
                continue
            with contextlib.suppress(Conflict):
                return await self.open(app_id, app, port)
        raise Conflict(f"There is no free port from {self._port_base} on", todo="Set KNARR_APP_PORT_BASE lower.")

    async def open(self, app_id: str, app: str, port: int) -> Route:
        """Open the port that the app has had before.

        Raises:
            Conflict: Another program listens there.
        """
        if route := self._routes.get(app_id):
            return route
        route = Route(app_id, app, port)
        try:
            route.server = await asyncio.start_server(
                lambda reader, writer: self._connected(route, reader, writer),
                self._host,
                port,
                limit=PIECE_BYTES,
                backlog=1024,
            )
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            raise Conflict(
                f"Port {port} of the app {app} cannot be opened",
                why="another program listens on it"
                if error.errno == errno.EADDRINUSE
                else "the system does not allow it",
                todo=f"Stop that program (`ss -ltnp 'sport = :{port}'` shows it); the port is tried again and again.",
            ) from error
        self._routes[app_id] = route
        return route

    async def close(self, app_id: str | None = None) -> None:
        """Close one app's port, or all, with the connections to it."""
        for route in [each for each in self._routes.values() if app_id in {None, each.app_id}]:
            del self._routes[route.app_id]
            route.serve((), "It was removed.")
            if route.server:
                route.server.close()
        if app_id is None:
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._connections.add(task)
        try:
            await _ClientConnection(route, reader, writer, self._idle_s).serve()
        except (ConnectionError, _ClientGoneError, _SilentError, h11.ProtocolError) as error:
            log.debug("a client's connection ended", app=route.app, error=str(error))
        except asyncio.CancelledError:
            pass  # we are stopping; asyncio's own task of this connection has nobody who waits for it
        finally:
            self._connections.discard(task)
            writer.close()


class _Peer:
    """One side of a connection: h11's rules over asyncio's streams."""

    def __init__(
        self, role: type[h11.CLIENT | h11.SERVER], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=HEADER_BYTES)
        self.reader = reader
        self.writer = writer
        self.heard = False
        """Whether any byte came."""

    async def receive(self, timeout_s: float) -> Event:
        """The next event.

        Raises:
            h11.RemoteProtocolError: What came is no HTTP, or ended in the middle.
            _SilentError: Nothing came.
        """
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.read(timeout_s))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    async def read(self, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                data = await self.reader.read(PIECE_BYTES)
        except TimeoutError as error:
            raise _SilentError(f"no byte came for {timeout_s:g} s") from error
        self.heard = self.heard or bool(data)
        return data

    async def send(self, event: h11.Event, timeout_s: float) -> None:
        """Raises: `_SilentError` if the other side takes nothing, `ConnectionError`."""
        await self.write(self.http.send(event) or b"", timeout_s)

    async def write(self, data: bytes, timeout_s: float) -> None:
        self.writer.write(data)
        try:
            async with asyncio.timeout(timeout_s):
                await self.writer.drain()
        except TimeoutError as error:
            raise _SilentError(f"no byte was taken for {timeout_s:g} s") from error

    def abort(self) -> None:
        self.writer.transport.abort()


class _ClientConnection:
    """A client's connection: one request after the other, each to the backend whose turn it is."""

    def __init__(self, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle_s: float) -> None:
        self._route = route
        self._client = _Peer(h11.SERVER, reader, writer)
        self._idle_s = idle_s
        self._counts: Counts | None = None
        self._backend: Backend | None = None
        """Of the release that has the request under way; None: it was counted."""
        peer = writer.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        _without_delay(writer)

    async def serve(self) -> None:
        """Until the client leaves or may not go on."""
        while await self._one_request():
            self._client.http.start_next_cycle()

    async def _one_request(self) -> bool:
        try:
            request = await self._client.receive(BETWEEN_REQUESTS_S)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            await self._refuse(status, "The request cannot be read", _what_is_wrong(status, error))
            return False
        if not isinstance(request, h11.Request):
            return False
        if request.method == b"CONNECT":
            await self._refuse(405, "CONNECT is not for here", "This address is one app's; it is no proxy.")
            return False
        for backend in self._route.in_turn():
            with backend.busy():
                upstream = await _connect(backend)
                if upstream is None:
                    continue
                self._counts = backend.counts
                self._backend = backend
                try:
                    tunnel = await self._exchange(request, upstream)
                finally:
                    if self._client.http.our_state is not h11.SWITCHED_PROTOCOL:
                        upstream.writer.close()
            if tunnel:
                await self._tunnel(upstream)
                return False
            return await self._may_go_on()
        await self._no_backend()
        return await self._may_go_on()

    async def _no_backend(self) -> None:
        if self._route.backends:
            why = (
                "No instance takes connections. It may be starting again after a crash: "
                f"`knarr logs {self._route.app}` shows its output."
            )
        else:
            why = self._route.note
        await self._refuse(503, f"{self._route.app} does not answer yet", why)

    async def _exchange(self, request: h11.Request, upstream: _Peer) -> bool:
        """One request and its answer; true if the connection was switched to another protocol."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            await upstream.send(self._forwarded(request), self._idle_s)
            sending = asyncio.create_task(self._send_body(upstream))
            answering = asyncio.create_task(self._relay_answer(upstream))
            tasks = [sending, answering]
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and isinstance(sending.exception(), _ClientGoneError | _SilentError):
                upstream.abort()
                raise _ClientGoneError
            return await answering
        except _SilentError:
            await self._failed(504, f"it was silent for {self._idle_s:g} s")
        except (_BadAnswerError, ConnectionError) as error:
            await self._failed(502, str(error) or _NO_ANSWER)
        finally:
            await _end(tasks)
        return False

    async def _send_body(self, upstream: _Peer) -> None:
        """The client's body to the instance; then watch whether the client is still there.

        Raises:
            _ClientGoneError: It left before the answer was complete.
        """
        while True:
            try:
                event = await self._client.receive(self._idle_s)
            except (h11.RemoteProtocolError, ConnectionError) as error:
                raise _ClientGoneError from error
            if isinstance(event, h11.Data):
                await upstream.send(h11.Data(data=event.data), self._idle_s)
            elif isinstance(event, h11.EndOfMessage):
                await upstream.send(h11.EndOfMessage(), self._idle_s)
                break
            else:
                raise _ClientGoneError
        try:
            data = await self._client.reader.read(PIECE_BYTES)
        except ConnectionError as error:
            raise _ClientGoneError from error
        self._client.http.receive_data(data)  # a next request that came early, or the first bytes of a tunnel
        if not data:
            raise _ClientGoneError

    async def _relay_answer(self, upstream: _Peer) -> bool:
        """The instance's answer to the client; true if it switched protocols."""
        while True:
            event = await self._answer_event(upstream)
            if isinstance(event, h11.InformationalResponse):
                switching = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
                headers = _end_to_end(event, keep_upgrade=switching)
                await self._client.send(
                    h11.InformationalResponse(status_code=event.status_code, headers=headers, reason=event.reason),
                    self._idle_s,
                )
                if switching:
                    self._answered(event.status_code)
                    return True
            elif isinstance(event, h11.Response):
                self._answered(event.status_code)
                await self._client.send(
                    h11.Response(status_code=event.status_code, headers=_end_to_end(event), reason=event.reason),
                    self._idle_s,
                )
            elif isinstance(event, h11.Data):
                await self._client.send(h11.Data(data=event.data), self._idle_s)
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(h11.EndOfMessage(), self._idle_s)
                return False
            else:
                raise _BadAnswerError(_NO_ANSWER)

    def _answered(self, status: int) -> None:
        if self._counts is not None:
            self._counts.answered(status)
            self._counts = None

    async def _answer_event(self, upstream: _Peer) -> Event:
        try:
            return await upstream.receive(self._idle_s)
        except (h11.RemoteProtocolError, ConnectionError) as error:
            if not upstream.heard:
                raise _BadAnswerError(_NO_ANSWER) from error
            if isinstance(error, ConnectionError) or upstream.reader.at_eof():
                raise _BadAnswerError("it closed the connection before its answer was complete") from error
            raise _BadAnswerError(f"what it answered is no HTTP ({error})") from error

    async def _failed(self, status: int, why: str) -> None:
        """A page, or (the answer had begun) the connection is cut, so that nobody takes a part for the whole."""
        cut_after_s = self._backend.cut_after_s if self._backend else None
        said = f"Its instance took the request, but {why}. `knarr logs {self._route.app}` shows what it printed."
        if cut_after_s is not None:
            self._counts = None  # counted as cut: it is no error of the app
            said = (
                "The platform stopped its instance, which was replaced: the request was not answered within"
                f" {cut_after_s:g} s (KNARR_DRAIN_S)."
            )
        self._answered(status)
        log.info("an instance failed a request", app=self._route.app, status=status, why=said)
        if self._client.http.our_state in {h11.SEND_RESPONSE, h11.IDLE}:
            await self._refuse(status, f"{self._route.app} failed to answer", said)
        else:
            self._client.abort()
            raise _ClientGoneError

    async def _may_go_on(self) -> bool:
        http = self._client.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            return True
        await self._linger()
        return False

    async def _linger(self) -> None:
        """Answered, and the client may still be sending: read on for a moment, then close."""
        writer = self._client.writer
        with contextlib.suppress(OSError, TimeoutError):
            if writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self._client.reader.read(PIECE_BYTES):
                    pass

    async def _refuse(self, status: int, title: str, why: str) -> None:
        """An answer of our own; the connection goes on only if the request was read to its end."""
        http = self._client.http
        if http.our_state not in {h11.SEND_RESPONSE, h11.IDLE}:
            return
        body = _page(status, title, why)
        headers = [
            (b"Content-Type", b"text/html; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Cache-Control", b"no-store"),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"Retry-After", b"1"))
        head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        await self._client.send(head, self._idle_s)
        await self._client.send(h11.Data(data=body), self._idle_s)
        await self._client.send(h11.EndOfMessage(), self._idle_s)
        if http.their_state in {h11.SEND_BODY, h11.ERROR}:
            await self._linger()

    def _forwarded(self, request: h11.Request) -> h11.Request:
        """The request as the instance gets it."""
        sent = dict(request.headers)
        upgrade = b"upgrade" in sent and b"upgrade" in _tokens(sent.get(b"connection", b""))
        headers = _end_to_end(request, keep_upgrade=upgrade)
        if b"transfer-encoding" in sent:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if not upgrade:
            headers.append((b"Connection", b"close"))
        known = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
        headers = [(name, value) for name, value in headers if name.lower() not in known]
        trusted = self._address in _LOOPBACK  # a proxy of ours on this machine, such as a tunnel that ends TLS
        before = sent.get(b"x-forwarded-for", b"") if trusted else b""
        address = self._address.encode()
        headers.append((b"X-Forwarded-For", b", ".join(each for each in (before, address) if each)))
        proto = sent.get(b"x-forwarded-proto") if trusted else None
        headers.append((b"X-Forwarded-Proto", proto or b"http"))
        host = (sent.get(b"x-forwarded-host") if trusted else None) or sent.get(b"host", b"")
        if host:
            headers.append((b"X-Forwarded-Host", host))
        if b"host" not in sent:  # HTTP/1.0 may leave it out, HTTP/1.1 may not
            headers.append((b"Host", f"127.0.0.1:{self._route.port}".encode()))
        return h11.Request(method=request.method, target=request.target, headers=headers)

    async def _tunnel(self, upstream: _Peer) -> None:
        """Bytes both ways until both sides have ended, or nothing moved for an hour."""
        client = self._client
        await upstream.write(client.http.trailing_data[0], self._idle_s)
        await client.write(upstream.http.trailing_data[0], self._idle_s)
        ways = [asyncio.create_task(_pump(client, upstream)), asyncio.create_task(_pump(upstream, client))]
        try:
            await asyncio.gather(*ways)
        except (ConnectionError, _SilentError) as error:
            log.debug("a tunnel ended", app=self._route.app, error=str(error))
        finally:
            await _end(ways)
            upstream.writer.close()


async def _connect(backend: Backend) -> _Peer | None:
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(backend.host, backend.port, limit=PIECE_BYTES)
    except (OSError, TimeoutError):
        return None
    _without_delay(writer)
    return _Peer(h11.CLIENT, reader, writer)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: _Peer, target: _Peer) -> None:
    while data := await source.read(TUNNEL_IDLE_S):
        await target.write(data, TUNNEL_IDLE_S)
    if target.writer.can_write_eof():
        target.writer.write_eof()


def _end_to_end(
    event: h11.Request | h11.Response | h11.InformationalResponse, *, keep_upgrade: bool = False
) -> Headers:
    """Its headers without those that concern one connection only (RFC 9110, section 7.6.1).

    A `Content-Length` beside a `Transfer-Encoding` goes too: it is wrong, and two readers could disagree about it.
    """
    names = [name for name, _ in event.headers]
    dropped = _HOP_BY_HOP | {
        token for name, value in event.headers if name == b"connection" for token in _tokens(value)
    }
    if b"transfer-encoding" in names:
        dropped |= {b"content-length"}
    kept = [item for item, name in zip(event.headers.raw_items(), names, strict=True) if name not in dropped]
    if keep_upgrade:
        kept.append((b"Connection", b"Upgrade"))
        kept += [(b"Upgrade", value) for name, value in event.headers if name == b"upgrade"]
    return kept


def _tokens(value: bytes) -> set[bytes]:
    return {token.strip().lower() for token in value.split(b",") if token.strip()}


def _without_delay(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _what_is_wrong(status: int, error: h11.RemoteProtocolError) -> str:
    if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return f"Its headers are longer than {HEADER_BYTES // 1024} KiB. Send fewer or smaller cookies."
    return f"It breaks the rules of HTTP/1.1: {error}."


def _page(status: int, title: str, why: str) -> bytes:
    name = f"{status} {HTTPStatus(status).phrase}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        '<body style="font-family:system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem">'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(why)}</p><p><small>{name} · knarr</small></p>\n"
    ).encode()
