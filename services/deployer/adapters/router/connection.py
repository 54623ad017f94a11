"""One client's connection to an app: one request after the other, each to the backend whose turn it is.

Routing is request by request, so a client that keeps its connection is moved over with everybody else and sees nothing
of a deployment. Bodies are streamed both ways, never held; `Upgrade` (web sockets) becomes a raw tunnel. What cannot be
answered gets a page that says why: 503 where nothing serves yet, 502 where an instance failed, 504 where it was silent.

Not done here: TLS, compression, caching, retries of requests that an instance may have seen.
Framing and connection rules: RFC 9112, by `seedwork.chassis.server_requests`, then by h11; forwarding: RFC 9110, 7.6.
"""

import asyncio
import errno
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import h11
import structlog

from seedwork.chassis.server_connections import Connections, Minutely
from seedwork.chassis.server_requests import BadRequest
from seedwork.chassis.server_settings import ServerSettings
from services.deployer.adapters.counts import Counts
from services.deployer.adapters.router.forwarding import Forwarding, end_to_end
from services.deployer.adapters.router.pages import page
from services.deployer.adapters.router.peer import (
    PIECE_BYTES,
    BadAnswerError,
    Client,
    ClientGoneError,
    Event,
    Peer,
    SilentError,
    end,
    pump,
)
from services.deployer.adapters.router.routes import Backend, Route

log = structlog.get_logger(__name__)

CONNECT_S = 5.0
"""To an instance on this machine: a full accept queue, not the network, makes it slow."""

_NO_ANSWER = "it closed the connection without an answer"
_OUT_OF_FILES = Minutely("router.out_of_files", setting="KNARR_OPEN_FILES")


class ClientConnection:
    """A client's connection: one request after the other, each to the backend whose turn it is."""

    def __init__(
        self,
        route: Route,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        idle_s: float,
        limits: ServerSettings,
        forwarding: Forwarding,
    ) -> None:
        self._route = route
        self._client = Client(reader, writer, limits, idle_s)
        self._idle_s = idle_s
        self._forwarding = forwarding
        self._counts: Counts | None = None
        self._backend: Backend | None = None
        """Of the release that has the request under way; None: it was counted."""
        peer = writer.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        """Of the client."""

    async def serve(self, *places: Connections) -> None:
        """Until the client leaves or may not go on.

        Args:
            places: Where it counts; it may be closed while it waits for a request.
        """
        while await self._one_request(places):
            self._client.http.start_next_cycle()
            for each in places:
                each.waits(self)

    async def turn_away(self) -> None:
        """Say that there are too many connections; the caller closes it."""
        await self._refuse(503, "Too many connections", f"{self._route.app} has too many connections.", last=True)

    def evict(self) -> None:
        """Close it: it waits for a request, and another connection needs its place."""
        self._client.writer.close()

    async def _one_request(self, places: Sequence[Connections]) -> bool:
        try:
            request = await self._client.receive_head()
            if request is None:
                return False
            for each in places:
                each.works(self)
            return await self._answer(request)
        except BadRequest as error:
            self._counts = None  # the app is not to blame
            if self._client.http.our_state not in {h11.SEND_RESPONSE, h11.IDLE}:
                self._client.abort()
                return False
            for each in places:
                each.waits(self)
            why = f"{error.why[:1].upper()}{error.why[1:]}."
            await self._refuse(error.status, "The request is refused", why, last=True)
            await self._client.linger()
            return False

    async def _answer(self, request: h11.Request) -> bool:
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

    async def _exchange(self, request: h11.Request, upstream: Peer) -> bool:
        """One request and its answer; true if the connection was switched to another protocol."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            forwarded = self._forwarding.request(request, peer=self.address, port=self._route.port)
            await upstream.send(forwarded, self._idle_s)
            sending = asyncio.create_task(self._send_body(upstream))
            answering = asyncio.create_task(self._relay_answer(upstream))
            tasks = [sending, answering]
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and isinstance(error := sending.exception(), ClientGoneError | SilentError | BadRequest):
                upstream.abort()
                raise error if isinstance(error, BadRequest) else ClientGoneError
            return await answering
        except SilentError:
            await self._failed(504, f"it was silent for {self._idle_s:g} s")
        except (BadAnswerError, ConnectionError) as failure:
            await self._failed(502, str(failure) or _NO_ANSWER)
        finally:
            await end(tasks)
        return False

    async def _send_body(self, upstream: Peer) -> None:
        """The client's body to the instance; then watch whether the client is still there.

        Raises:
            ClientGoneError: It left before the answer was complete.
            BadRequest: Its body breaks a rule, or is too slow.
        """
        while isinstance(event := await self._client.receive_body(), h11.Data):
            await upstream.send(h11.Data(data=event.data), self._idle_s)
        await upstream.send(h11.EndOfMessage(), self._idle_s)
        await self._client.watch()

    async def _relay_answer(self, upstream: Peer) -> bool:
        """The instance's answer to the client; true if it switched protocols."""
        while True:
            event = await self._answer_event(upstream)
            if isinstance(event, h11.InformationalResponse):
                switching = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
                headers = end_to_end(event, keep_upgrade=switching)
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
                    h11.Response(status_code=event.status_code, headers=end_to_end(event), reason=event.reason),
                    self._idle_s,
                )
            elif isinstance(event, h11.Data):
                await self._client.send(h11.Data(data=event.data), self._idle_s)
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(h11.EndOfMessage(), self._idle_s)
                return False
            else:
                raise BadAnswerError(_NO_ANSWER)

    def _answered(self, status: int) -> None:
        if self._counts is not None:
            self._counts.answered(status)
            self._counts = None

    async def _answer_event(self, upstream: Peer) -> Event:
        try:
            return await upstream.receive(self._idle_s)
        except (h11.RemoteProtocolError, ConnectionError) as error:
            if not upstream.heard:
                raise BadAnswerError(_NO_ANSWER) from error
            if isinstance(error, ConnectionError) or upstream.reader.at_eof():
                raise BadAnswerError("it closed the connection before its answer was complete") from error
            raise BadAnswerError(f"what it answered is no HTTP ({error})") from error

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
            raise ClientGoneError

    async def _may_go_on(self) -> bool:
        http = self._client.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            return True
        await self._client.linger()
        return False

    async def _refuse(self, status: int, title: str, why: str, *, last: bool = False) -> None:
        """An answer of our own; the connection goes on only if it is not the last and the request was read whole."""
        http = self._client.http
        if http.our_state not in {h11.SEND_RESPONSE, h11.IDLE}:
            return
        headers, body = page(status, title, why)
        if last:
            headers.append((b"Connection", b"close"))
        head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        await self._client.send(head, self._idle_s)
        await self._client.send(h11.Data(data=body), self._idle_s)
        await self._client.send(h11.EndOfMessage(), self._idle_s)

    async def _tunnel(self, upstream: Peer) -> None:
        """Bytes both ways until both sides have ended, or nothing moved for an hour."""
        client = self._client
        await upstream.write(client.requests.rest(), self._idle_s)
        await client.write(upstream.http.trailing_data[0], self._idle_s)
        ways = [asyncio.create_task(pump(client, upstream)), asyncio.create_task(pump(upstream, client))]
        try:
            await asyncio.gather(*ways)
        except (ConnectionError, SilentError) as error:
            log.debug("a tunnel ended", app=self._route.app, error=str(error))
        finally:
            await end(ways)
            upstream.writer.close()


async def _connect(backend: Backend) -> Peer | None:
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(backend.host, backend.port, limit=PIECE_BYTES)
    except (OSError, TimeoutError) as error:
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            _OUT_OF_FILES.warning()
        return None
    return Peer(h11.CLIENT, reader, writer)
