"""One connection to a service: uvicorn's protocol behind strict reading, limits and deadlines.

`Requests` cuts what arrives into heads and bodies and refuses what breaks RFC 9112; only then uvicorn's parser sees it.
One request at a time: what a client sends ahead waits. An answer that comes before the body has arrived is followed by
a bounded lingering read, so that closing does not reset the connection before the answer is read. The server sweeps all
connections for deadlines once a second, so that a request starts no timer.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seedwork.chassis.server_connections import Connections
from seedwork.chassis.server_requests import BadRequest, Requests
from seedwork.chassis.server_settings import ServerSettings

log = structlog.get_logger(__name__)

PAGE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every answer: no browser guesses what it is or shows it inside of another page, or tells who sent its reader."""

_AHEAD_MAX_BYTES = 512 * 1024
"""Of requests that a client sends before it has the answer to the one before: two reads of asyncio."""

_HALF_OPEN, _IDLE, _WORKING, _LINGERING = range(4)


@dataclass(slots=True)
class Guard:
    """What the connections of one server share.

    Attributes:
        connections: Who may have one.
        limits: Their limits.
    """

    connections: Connections
    limits: ServerSettings


class Pace:
    """The rate of a request's body: how much longer it may be behind.

    Args:
        stall_s: Seconds that it may be behind at most.
        min_bytes_s: The rate; 0: any will do.
    """

    __slots__ = ("_left_s", "_min_bytes_s", "_stall_s")

    def __init__(self, stall_s: float, min_bytes_s: int) -> None:
        self._stall_s = stall_s
        self._min_bytes_s = min_bytes_s
        self._left_s = stall_s

    @property
    def left_s(self) -> float:
        """Seconds that it may still be silent."""
        return self._left_s if self._min_bytes_s else float("inf")

    def passed(self, seconds: float, size_bytes: int) -> None:
        """Count bytes that came within seconds in which they could be read."""
        if self._min_bytes_s:
            self._left_s = min(self._stall_s, self._left_s - seconds + size_bytes / self._min_bytes_s)


class _Transport:
    """The connection as uvicorn's request cycle has it: its `close` lingers where a body is still to come."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self.closing = False

    def close(self) -> None:
        self.closing = True
        self._close()

    def is_closing(self) -> bool:
        return self.closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """One client's connection.

    Args:
        guard: What the connections of this server share.
        arguments: Uvicorn's own.
    """

    def __init__(self, *, guard: Guard, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guard = guard
        limits = guard.limits
        self._requests = Requests(head_max_bytes=limits.http_head_max_bytes, headers_max=limits.http_headers_max)
        self._phase = _HALF_OPEN
        self._since_s = self.loop.time()
        self._discarded_bytes = 0
        self._body_bytes = 0
        self._unsent_bytes = 0
        """Of the answer, at the last sweep."""
        self._stuck_s = self._since_s
        self._pace: Pace | None = None
        """Of the body under way; None: there is none to come."""
        self._raw: asyncio.Transport

    # ── a connection's life ──────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's servers only use TCP
        """Take the connection, or refuse it."""
        super().connection_made(transport)
        self._raw = transport
        self.transport = cast("asyncio.Transport", _Transport(transport, self._close))
        if not self._guard.connections.admit(self, self.client[0] if self.client else ""):
            self._phase = _LINGERING
            transport.write(_refusal(503, "There are too many connections.", retry=True))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._guard.connections.left(self)
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close it at once: it waited for a request, and another connection needs its place."""
        self._raw.close()

    def _close(self) -> None:
        """End the connection after an answer; read on for a while if the request has not ended."""
        if self._requests.complete or self._phase == _LINGERING or self._raw.is_closing():
            self._raw.close()
            return
        self._linger()

    def _linger(self) -> None:
        self._enter(_LINGERING)
        self._guard.connections.waits(self)
        with contextlib.suppress(OSError, NotImplementedError):  # the client has gone, or a TLS transport has no EOF
            if self._raw.can_write_eof():
                self._raw.write_eof()
        self.flow.resume_reading()

    def _enter(self, phase: int) -> None:
        self._phase = phase
        self._since_s = self.loop.time()

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Feed uvicorn's parser with whole heads, then with their bodies."""
        if self._phase == _LINGERING:
            self._discard(len(data))
            return
        self._requests.receive(data)
        try:
            self._read()
        except BadRequest as error:
            log.debug("http.request_refused", status=error.status, reason=error.why)
            self._refuse(error.status, error.why)
        except httptools.HttpParserError:
            self._refuse(400, "the request cannot be read")

    def _read(self) -> None:
        while self._requests.waiting_bytes:
            if not self._requests.complete:
                self._read_body()
            elif not self._read_head():
                return

    def _read_head(self) -> bool:
        """Begin the next request, if its head is there and the one before has its answer."""
        if self._phase == _WORKING:
            if self._requests.waiting_bytes > _AHEAD_MAX_BYTES:
                self._raw.abort()
            else:
                self.flow.pause_reading()
            return False
        if self._phase == _IDLE:
            self._enter(_HALF_OPEN)
            self._unset_keepalive_if_required()
        head = self._requests.head()
        if head is not None:
            self._begin(head.raw)
        return head is not None

    def _read_body(self) -> None:
        piece = self._requests.body()
        self._body_bytes += len(piece)
        if self.cycle.response_complete:
            self._discard(len(piece))
        self._feed(piece)
        if self._requests.complete:
            self._pace = None
            if self.cycle.response_complete:
                self._answered()

    def _begin(self, head: bytes) -> None:
        limits = self._guard.limits
        self._enter(_WORKING)
        self._guard.connections.works(self)
        self._discarded_bytes = 0
        self._body_bytes = 0
        self._pace = None if self._requests.complete else Pace(limits.http_body_stall_s, limits.http_body_min_bytes_s)
        self._feed(head)

    def _feed(self, data: bytes) -> None:
        with contextlib.suppress(httptools.HttpParserUpgrade):  # no service switches protocols: it is answered as it is
            self.parser.feed_data(data)

    def _discard(self, size_bytes: int) -> None:
        self._discarded_bytes += size_bytes
        if self._discarded_bytes > self._guard.limits.http_linger_bytes:
            self._raw.abort()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers would otherwise become headers of a request that was checked already."""
        if self._in_head:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application."""
        self._in_head = False
        super().on_headers_complete()

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        """Go on with what the client sent ahead, or wait for its next request."""
        super().on_response_complete()
        if self._requests.complete and not self.transport.is_closing():
            self._answered()

    def _answered(self) -> None:
        """Both the request and its answer are complete."""
        self._enter(_IDLE)
        self._guard.connections.waits(self)
        if self._requests.waiting_bytes:
            self.loop.call_soon(self.data_received, b"")

    def _refuse(self, status: int, why: str) -> None:
        """Answer for the server, and close; an answer that has begun is cut."""
        if self._raw.is_closing():
            return
        cycle = self.cycle if self._phase == _WORKING else None
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self._raw.abort()
                return
        cast("_Transport", self.transport).closing = True
        self._raw.write(_refusal(status, f"The request is refused: {why}."))
        self._linger()

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, now_s: float, since_last_s: float) -> None:
        """End what has been open for too long."""
        limits = self._guard.limits
        age_s = now_s - self._since_s
        if self._phase == _HALF_OPEN and age_s > limits.http_head_s:
            if self._requests.waiting_bytes:
                self._refuse(408, f"its header fields did not arrive within {limits.http_head_s:g} s")
            else:
                self._raw.close()
        elif self._phase == _IDLE and age_s > limits.http_idle_s:
            self._raw.close()
        elif self._is_stuck(now_s) or (self._phase == _LINGERING and age_s > limits.http_linger_s):
            self._raw.abort()
        elif self._pace is not None and not self.flow.read_paused:
            self._pace.passed(since_last_s, self._body_bytes)
            self._body_bytes = 0
            if self._pace.left_s <= 0:
                self._refuse(408, f"its body had fewer than {limits.http_body_min_bytes_s} bytes a second")

    def _is_stuck(self, now_s: float) -> bool:
        """Whether the client has taken nothing of its answer for as long as an idle connection is kept."""
        unsent_bytes = self._raw.get_write_buffer_size() if self.flow.write_paused else 0
        if not unsent_bytes or unsent_bytes < self._unsent_bytes:
            self._stuck_s = now_s
        self._unsent_bytes = unsent_bytes
        return now_s - self._stuck_s > self._guard.limits.http_idle_s


def _refusal(status: int, detail: str, *, retry: bool = False) -> bytes:
    """An answer without an application, as problem details (RFC 9457)."""
    phrase = HTTPStatus(status).phrase
    body = orjson.dumps(
        {"type": "urn:knarr:problem:http", "title": phrase, "status": status, "detail": detail, "code": "http"}
    )
    lines = [
        b"HTTP/1.1 %d %s" % (status, phrase.encode()),
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(b"%s: %s" % field for field in PAGE_HEADERS),
        *([b"retry-after: 1"] if retry else []),
    ]
    return b"\r\n".join([*lines, b"", body])
