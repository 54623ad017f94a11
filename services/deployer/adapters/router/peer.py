"""Both sides of a request: h11's rules over asyncio's streams, with limits on time and, for clients, on everything."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import h11

from seedwork.chassis.server_protocol import Pace
from seedwork.chassis.server_requests import BadRequest, Requests
from seedwork.chassis.server_settings import ServerSettings

PIECE_BYTES = 64 * 1024
ANSWER_HEAD_BYTES = 64 * 1024
"""Status line and headers of an instance's answer together."""
TUNNEL_IDLE_S = 3600.0
"""Web sockets may be silent for long; most libraries ping every 20 s."""

Event = h11.Event | type[h11.PAUSED]


class ClientGoneError(Exception):
    """The client closed its connection: nobody reads the answer."""


class SilentError(Exception):
    """No byte came, or none was taken, for too long."""


class BadAnswerError(Exception):
    """The instance closed its connection or sent what is no HTTP."""


class Peer:
    """One side of a connection."""

    def __init__(
        self, role: type[h11.CLIENT | h11.SERVER], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=ANSWER_HEAD_BYTES)
        self.reader = reader
        self.writer = writer
        self.heard = False
        """Whether any byte came."""
        without_delay(writer)

    async def receive(self, timeout_s: float) -> Event:
        """The next event.

        Raises:
            h11.RemoteProtocolError: What came is no HTTP, or ended in the middle.
            SilentError: Nothing came.
        """
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.read(timeout_s))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    async def read(self, timeout_s: float) -> bytes:
        """Raises: `SilentError` if nothing comes."""
        try:
            async with asyncio.timeout(timeout_s):
                data = await self.reader.read(PIECE_BYTES)
        except TimeoutError as error:
            raise SilentError(f"no byte came for {timeout_s:g} s") from error
        self.heard = self.heard or bool(data)
        return data

    async def send(self, event: h11.Event, timeout_s: float) -> None:
        """Raises: `SilentError` if the other side takes nothing, `ConnectionError`."""
        await self.write(self.http.send(event) or b"", timeout_s)

    async def write(self, data: bytes, timeout_s: float) -> None:
        """Raises: `SilentError` if the other side takes nothing, `ConnectionError`."""
        self.writer.write(data)
        try:
            async with asyncio.timeout(timeout_s):
                await self.writer.drain()
        except TimeoutError as error:
            raise SilentError(f"no byte was taken for {timeout_s:g} s") from error

    def abort(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


class Client(Peer):
    """The side that sends requests: nothing of it reaches h11 before `Requests` has found it right."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: ServerSettings, idle_s: float
    ) -> None:
        super().__init__(h11.SERVER, reader, writer)
        self.requests = Requests(head_max_bytes=limits.http_head_max_bytes, headers_max=limits.http_headers_max)
        self._limits = limits
        self._idle_s = idle_s
        self._pace: Pace | None = None

    async def receive_head(self) -> h11.Request | None:
        """The next request; None: the client has left, or sent none in time.

        Raises:
            BadRequest: It breaks a rule, is too large, or did not come in time.
        """
        limits = self._limits
        if not self.requests.waiting_bytes:
            first_s = limits.http_idle_s if self.heard else limits.http_head_s
            try:
                data = await self.read(first_s)
            except SilentError:
                return None
            if not data:
                return None
            self.requests.receive(data)
        if (head := self.requests.head()) is None:
            try:
                async with asyncio.timeout(limits.http_head_s):
                    while (head := self.requests.head()) is None:
                        data = await self.reader.read(PIECE_BYTES)
                        if not data:
                            return None
                        self.requests.receive(data)
            except TimeoutError as error:
                raise BadRequest(408, f"its header fields did not arrive within {limits.http_head_s:g} s") from error
        self._pace = Pace(limits.http_body_stall_s, limits.http_body_min_bytes_s)
        event = self._event_after(head.raw)
        if not isinstance(event, h11.Request):
            raise BadRequest(400, "the request cannot be read")
        return event

    async def receive_body(self) -> h11.Data | h11.EndOfMessage:
        """The next part of the request's body.

        Raises:
            BadRequest: It breaks a rule, or is too slow.
            ClientGoneError: It ends early.
            SilentError: Nothing came.
        """
        event = self._event_after(b"")
        while event is h11.NEED_DATA:
            if not self.requests.waiting_bytes:
                self.requests.receive(await self._read_body())
            event = self._event_after(self.requests.body())
        if not isinstance(event, h11.Data | h11.EndOfMessage):
            raise BadRequest(400, "the body cannot be read")
        return event

    async def watch(self) -> None:
        """Wait until more comes after a whole request: a next one, or the first bytes of a tunnel.

        Raises:
            ClientGoneError: The client closed its connection.
        """
        if self.requests.waiting_bytes:  # sent ahead; that it leaves is seen when its answer is written
            return
        try:
            data = await self.reader.read(PIECE_BYTES)
        except ConnectionError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        self.requests.receive(data)

    async def linger(self) -> None:
        """Answered, and the client may still be sending: read on within bounds, so that it reads the answer."""
        left_bytes = self._limits.http_linger_bytes
        with contextlib.suppress(OSError, TimeoutError):
            if self.writer.can_write_eof():
                self.writer.write_eof()
            async with asyncio.timeout(self._limits.http_linger_s):
                while left_bytes > 0 and (data := await self.reader.read(PIECE_BYTES)):
                    left_bytes -= len(data)

    def _event_after(self, data: bytes) -> object:
        try:
            if data:
                self.http.receive_data(data)
            return self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(400, "the request cannot be read") from error

    async def _read_body(self) -> bytes:
        pace = self._pace
        assert pace is not None  # noqa: S101  made with the head
        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            data = await self.read(min(self._idle_s, pace.left_s))
        except SilentError as error:
            if pace.left_s > self._idle_s:
                raise
            raise self._too_slow() from error
        except ConnectionError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        pace.passed(clock() - began_s, len(data))
        if pace.left_s <= 0:
            raise self._too_slow()
        return data

    def _too_slow(self) -> BadRequest:
        return BadRequest(408, f"its body had fewer than {self._limits.http_body_min_bytes_s} bytes a second")


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def pump(source: Peer, target: Peer) -> None:
    """Pass bytes on until the source ends."""
    while data := await source.read(TUNNEL_IDLE_S):
        await target.write(data, TUNNEL_IDLE_S)
    if target.writer.can_write_eof():
        target.writer.write_eof()


def without_delay(writer: asyncio.StreamWriter) -> None:
    """Send small pieces at once."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
