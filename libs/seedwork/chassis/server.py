"""The HTTP server of a service: a port of its own before anything starts, limits for strangers, an end in time."""

import asyncio
import contextlib
import errno
import functools
import socket
from typing import Any

import psutil
import uvicorn
from fastapi import FastAPI

from seedwork.chassis.server_connections import Connections, Minutely, Proxies, share_of_files
from seedwork.chassis.server_protocol import PAGE_HEADERS, Guard, HttpProtocol
from seedwork.chassis.service import Service
from seedwork.errors import Conflict, KnarrError, Misconfigured, NotAllowed

_BACKLOG = 2048
"""Connections that wait to be accepted: uvicorn's own number."""


class PortTaken(Conflict):
    """Another program listens where a service should."""

    code = "port_taken"
    title = "A port is taken"


class Server(uvicorn.Server):
    """Serves one service.

    Args:
        app: What its `create_app` gave. Requests under way may hold up a stop for its `stop_grace_s`; streams that have
            no end of their own end at once.
    """

    def __init__(self, app: FastAPI) -> None:
        self.service: Service = app.state.service
        settings = self.service.settings
        proxies = ",".join(settings.trusted_proxies)
        connections = Connections(
            self.service.name,
            most=share_of_files(settings.max_connections, 32),
            most_of_client=settings.client_max_connections,
            proxies=Proxies(settings.trusted_proxies),
            settings="KNARR_MAX_CONNECTIONS, KNARR_CLIENT_MAX_CONNECTIONS",
        )
        protocol: Any = functools.partial(HttpProtocol, guard=Guard(connections, settings))
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                log_config=None,  # ours stays
                access_log=False,
                lifespan="on",
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                headers=[(name.decode(), value.decode()) for name, value in PAGE_HEADERS],
                timeout_keep_alive=2 * int(settings.http_idle_s) + 1,  # the sweep is before it
                timeout_graceful_shutdown=int(settings.stop_grace_s),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and sweep the connections for deadlines."""
        count_failed_accepts(asyncio.get_running_loop())
        await super().startup(sockets)
        self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        limits = self.service.settings
        every_s = min(1.0, limits.http_head_s, limits.http_idle_s, limits.http_body_stall_s, limits.http_linger_s)
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        while True:
            await asyncio.sleep(every_s)
            now_s = loop.time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.sweep(now_s, now_s - last_s)
            last_s = now_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the streams, then wait for the requests, then stop the service."""
        self.service.stopping.set()
        await super().shutdown(sockets)
        self._sweeping.cancel()


def count_failed_accepts(loop: asyncio.AbstractEventLoop) -> None:
    """Write one line a minute, and no traceback for each, where no file is left for a new connection.

    asyncio tries again a second later; all other errors go where they went before.
    """
    before = loop.get_exception_handler()
    if getattr(before, "counts_failed_accepts", False):
        return
    line = Minutely("http.out_of_files", setting="KNARR_OPEN_FILES")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
            line.warning(error=error.strerror)
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    handle.counts_failed_accepts = True  # type: ignore[attr-defined]  # marks our handler on a function object
    loop.set_exception_handler(handle)


def listen(service: str, host: str, port: int) -> socket.socket:
    """Take the port.

    Raises:
        PortTaken: Says who has it, and what to do.
        NotAllowed: The port may not be used by this user.
        Misconfigured: The host is no address of this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _why_not(service, host, port, error) from error
    return listening


def _why_not(service: str, host: str, port: int, error: OSError) -> KnarrError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"Port {port} is taken, and the service {service} wants it",
            why=f"{_who_listens(port) or 'another program'} listens there",
            todo="Stop that program, or move all six ports: KNARR_PORT_BASE=9700 (`knarr up --port-base 9700`).",
        )
    if error.errno == errno.EACCES:
        return NotAllowed(
            f"Port {port} for the service {service} may not be used",
            why="ports below 1024 are the system's",
            todo="Use KNARR_PORT_BASE=8700 (`knarr up --port-base 8700`).",
        )
    return Misconfigured(
        f"Cannot listen on {host}:{port} for the service {service}",
        why=str(error.strerror or error),
        todo="KNARR_HOST (--host) must be an address of this machine; 127.0.0.1 is the default.",
    )


def _who_listens(port: int) -> str | None:
    """`python (process 4711)`; none where the system does not tell this user."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None
