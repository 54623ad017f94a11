"""The ports of all apps: opened, closed, and no more connections than the machine and one client may have."""

import asyncio
import contextlib
import errno
from collections.abc import Set as AbstractSet

import h11
import structlog

from seedwork.chassis.server import count_failed_accepts
from seedwork.chassis.server_connections import Connections, Proxies, share_of_files
from seedwork.chassis.server_requests import BadRequest
from seedwork.chassis.server_settings import ServerSettings
from seedwork.errors import Conflict
from services.deployer.adapters.router.connection import ClientConnection
from services.deployer.adapters.router.forwarding import Forwarding
from services.deployer.adapters.router.peer import PIECE_BYTES, ClientGoneError, SilentError
from services.deployer.adapters.router.routes import Route

log = structlog.get_logger(__name__)


class Router:
    """The ports of all apps.

    Args:
        host: The address to listen on.
        port_base: The first port to try for a new app.
        idle_s: Seconds without a byte after which a request is given up.
        limits: Of connections, header fields and bodies; None: those of the environment.
        app_max_connections: Connections to one app.
        max_connections: Connections to all apps; never more than a quarter of this process's files, two for each, so
            that the platform's own services keep the other half.
    """

    def __init__(
        self,
        *,
        host: str,
        port_base: int,
        idle_s: float,
        limits: ServerSettings | None = None,
        app_max_connections: int = 1_000,
        max_connections: int = 5_000,
    ) -> None:
        self._host = host
        self._port_base = port_base
        self._idle_s = idle_s
        self._limits = limits or ServerSettings()
        self._app_max_connections = app_max_connections
        self._forwarding = Forwarding(Proxies(self._limits.trusted_proxies))
        self._all = Connections(
            "apps",
            most=share_of_files(max_connections, 4),
            most_of_client=self._limits.client_max_connections,
            proxies=Proxies(self._limits.trusted_proxies),
            settings="KNARR_APPS_MAX_CONNECTIONS, KNARR_CLIENT_MAX_CONNECTIONS",
        )
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
        count_failed_accepts(asyncio.get_running_loop())
        route = Route(app_id, app, port, max_connections=self._app_max_connections)
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
        connection = ClientConnection(
            route, reader, writer, idle_s=self._idle_s, limits=self._limits, forwarding=self._forwarding
        )
        places = (route.connections, self._all)
        try:
            if all(each.admit(connection, connection.address) for each in places):
                await connection.serve(*places)
            else:
                await connection.turn_away()
        except (ConnectionError, ClientGoneError, SilentError, BadRequest, h11.ProtocolError) as error:
            log.debug("a client's connection ended", app=route.app, error=str(error))
        except asyncio.CancelledError:
            pass  # we are stopping; asyncio's own task of this connection has nobody who waits for it
        finally:
            for each in places:
                each.left(connection)
            self._connections.discard(task)
            writer.close()
