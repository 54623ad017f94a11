"""The HTTP server of a service: a port that is ours before anything starts, an end that open streams do not hold up."""

import contextlib
import errno
import socket

import psutil
import uvicorn
from fastapi import FastAPI

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
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                log_config=None,  # ours stays
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=int(self.service.settings.stop_grace_s),
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the streams, then wait for the requests, then stop the service."""
        self.service.stopping.set()
        await super().shutdown(sockets)


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
