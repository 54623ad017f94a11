"""A service, made from what only it knows: its name, its settings, its tables, its handlers.

`Service` brings the rest: the database and its migrations, the bus, messages in and out, HTTP with tokens, problem
details, health, metrics and traces. Nothing is connected before the app's lifespan begins, and then in this order:
database, migrations, tokens, `on_start`, subscriptions, job runner, outbox relay, background tasks, ready. At the end
the same backwards, each part with a limit on its time.
"""

import asyncio
import contextlib
import importlib.metadata
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx2
import structlog
from fastapi import FastAPI
from sqlalchemy import MetaData

from seedwork import used
from seedwork.bus import Bus
from seedwork.chassis import dead_letters, docs_page, health, metrics, migrate, problems, test_endpoints
from seedwork.chassis.asgi import Boundary
from seedwork.chassis.auth import Auth
from seedwork.chassis.body import BodyLimit
from seedwork.chassis.buses import bus_of
from seedwork.chassis.granted import RemoteTokens
from seedwork.chassis.http import HttpClients
from seedwork.chassis.server_connections import raise_open_files
from seedwork.chassis.server_hosts import HostCheck, names_of
from seedwork.chassis.service_ports import TOKENS_SERVICE
from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings
from seedwork.chassis.supervisor import Supervisor
from seedwork.chassis.tracing import Tracing
from seedwork.clock import Clock, SystemClock
from seedwork.errors import KnarrError
from seedwork.housekeeping import Housekeeping
from seedwork.messages import Catalog, Message
from seedwork.outbox import Outbox, Relay
from seedwork.participant import Participant, Timing
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database

Callback = Callable[[], Awaitable[None]]

_LAST_MESSAGES_S = 2.0
"""How long a replica that stops waits for its last messages to leave; else another one finds them."""

log = structlog.get_logger(__name__)


class Service:
    """The chassis around one service.

    Args:
        name: The service's name; also its folder, its database and its subscription.
        settings: Its settings.
        metadata: Its tables, the kernel's among them.
        migrations: Its `migrations/` folder.
        bus: Shared with other services in this process; whoever brings it opens it once all have started. Without
            one, the service has the bus that its settings name.
        catalog: Message types besides the participant's that the test endpoints offer.
        clock: In place of the machine's, for tests.
    """

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        *,
        metadata: MetaData,
        migrations: Path,
        bus: Bus | None = None,
        catalog: Catalog | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.version = importlib.metadata.version("knarr")
        raise_open_files(settings.open_files)
        self.home = _private_folder(settings.home_of(name))
        self.clock: Clock = clock or SystemClock()
        self.db = Database(settings.database_url_of(name), tls_ca=settings.database_tls_ca)
        self.tables = KernelTables.of(metadata)
        self.bus: Bus = bus or bus_of(settings, self.message_types)
        self.outbox = Outbox(self.tables, self.clock)
        self.participant = Participant(
            name,
            db=self.db,
            tables=self.tables,
            bus=self.bus,
            clock=self.clock,
            outbox=self.outbox,
            timing=Timing.of_lease(settings.lease_s),
        )
        self.auth = Auth(
            self.db,
            self.tables,
            service_token=settings.service_token,
            clock=self.clock,
            operator_token=settings.token,
            team=settings.team,
        )
        self.metrics = metrics.Metrics()
        self.start_error: KnarrError | None = None
        """Why the last start failed: the server's own exception does not say it."""
        self.stopping = asyncio.Event()
        """Set when a stop begins, before requests under way are waited for; see `chassis.streams`."""
        self._owns_bus = bus is None
        self._catalog = catalog
        self._migrations = migrations
        self._relay = Relay(self.db, self.tables, self.bus, self.clock, self.outbox, orphan_s=settings.lease_s)
        self._tracing = Tracing(name, settings.otlp_endpoint)
        self._http = HttpClients(
            service_token=settings.service_token, trusted=tuple(settings.url_of(each) for each in SERVICE_PORTS)
        )
        if name != TOKENS_SERVICE and settings.service_token is not None:
            self.auth.read_granted_by(RemoteTokens(self.client(settings.url_of(TOKENS_SERVICE))))
        self._supervisor = Supervisor(self.clock, self.metrics)
        self._needs: dict[str, health.Probe] = {}
        self._background: dict[str, Callback] = {"housekeeping": Housekeeping(self.db, self.tables, self.clock).run}
        self._takes: dict[str, Sequence[type[Message]]] = {}
        self._on_start: list[Callback] = []
        self._on_stop: list[Callback] = []
        self._started = False
        self._open_paths: set[str] = set()
        self.app = self._make_app()

    def background(self, name: str, run: Callback) -> None:
        """Run a coroutine function as long as the service does; it is cancelled at stop, and restarted after a crash.

        Raises:
            ValueError: There is one of this name.
        """
        if name in self._background:
            raise ValueError(f"there is a background task {name!r} already")
        self._background[name] = run

    def open_path(self, path: str) -> None:
        """Answer this path under every host name: what comes there is signed, whatever name it was sent to."""
        self._open_paths.add(path)

    def needs(self, name: str, probe: health.Probe) -> None:
        """Show in `/healthcheck` whether something outside can be used."""
        self._needs[name] = probe

    def on_start(self, callback: Callback) -> None:
        """Await this after the migrations, before messages flow; if it raises, the service does not start."""
        self._on_start.append(callback)

    def on_stop(self, callback: Callback) -> None:
        """Await this when no message flows any more, before the database is closed; the last one added comes first."""
        self._on_stop.append(callback)

    def url_of(self, name: str) -> str:
        """The base URL of another service."""
        return self.settings.url_of(name)

    def client(self, base_url: str = "", *, trust: ssl.SSLContext | None = None) -> httpx2.AsyncClient:
        """An HTTP client for other systems, see `chassis.http`."""
        return self._http.client(base_url, trust=trust)

    def takes(self, subscription: str, types: Sequence[type[Message]]) -> None:
        """Say what is subscribed to besides the participant's messages, so that `knarr bus setup` knows it."""
        self._takes[subscription] = types

    def subscriptions(self) -> Mapping[str, Sequence[type[Message]]]:
        """What this service takes from the bus, by the name of the subscription."""
        mine = self.participant.subscribed_types()
        return {**({self.participant.name: mine} if mine else {}), **self._takes}

    def message_types(self) -> list[type[Message]]:
        """What this service takes and tells."""
        types = {*self.participant.message_types(), *(self._catalog or ())}
        return sorted(types, key=lambda each: each.__name__)

    def _make_app(self) -> FastAPI:
        app = FastAPI(
            title=f"knarr {self.name}",
            version=self.version,
            lifespan=self._lifespan,
            docs_url=None,  # ours needs no internet
            redoc_url=None,
            responses=problems.RESPONSES,
            telemetry={"tracing": False, "metrics": False, "logs": False},  # ours knows the service it belongs to
        )
        app.state.service = self
        app.state.auth = self.auth
        problems.install(app)
        app.add_middleware(BodyLimit)
        if self.settings.checks_hosts:
            names = (*self.settings.allowed_hosts, *names_of(self.settings.url_of(each) for each in SERVICE_PORTS))
            app.add_middleware(HostCheck, names=names, open_paths=self._open_paths)
        app.add_middleware(Boundary, service=self.name, metrics=self.metrics, tracing=self._tracing)
        app.include_router(
            health.router(
                health.Health(
                    service=self.name,
                    version=self.version,
                    db=self.db,
                    supervisor=self._supervisor,
                    clock=self.clock,
                    started=lambda: self._started,
                    jobs=lambda: self.participant.streak.trouble,
                    needs=self._needs,
                )
            )
        )
        app.include_router(docs_page.router(app))
        app.include_router(metrics.router(self.metrics, self.db, self.tables))
        app.include_router(dead_letters.router(self.db, self.tables, self.bus))
        if self.settings.test_endpoints:
            app.include_router(test_endpoints.router(service=self.name, bus=self.bus, messages=self.message_types))
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """What is started here is stopped in the opposite order, also when a later part fails to start."""
        self._tracing.bind()
        self.stopping.clear()
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(structlog.contextvars.bound_contextvars(service=self.name))
            stack.push_async_callback(self._tracing.close)
            stack.push_async_callback(self._http.close)
            try:
                await self._start(stack)
            except KnarrError as error:
                self.start_error = error
                log.error("cannot start", error=error.message)  # noqa: TRY400  for a person; the server logs the rest
                raise
            self._started = True
            log.info("started", version=self.version)
            try:
                yield
            finally:
                self._started = False
                self.stopping.set()
                log.info("stopping")

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        used.refuse_lost(self.settings.home, self.name, database=self.db.file)
        await self.db.open()
        stack.push_async_callback(self.db.close)
        await migrate.prepare(self.db, self._migrations, self.name)
        for stopping in self._on_stop:
            stack.push_async_callback(self._stopped, stopping)
        for starting in self._on_start:
            await starting()
        await self._start_messages(stack)
        for name, run in self._background.items():
            self._supervisor.start(name, run)
            stack.push_async_callback(self._supervisor.stop, name)
        used.mark(self.settings.home, self.name, database=self.db.file)

    async def _start_messages(self, stack: contextlib.AsyncExitStack) -> None:
        """Take commands, work on them, tell the answers."""
        await self.participant.subscribe()
        if self._owns_bus:
            stack.push_async_callback(self.bus.close)
            await self.bus.open()
        self._supervisor.start("outbox", self._relay.run)
        stack.push_async_callback(self._stop_outbox)
        self._supervisor.start("jobs", self.participant.run)
        stack.push_async_callback(self._stop_jobs)

    async def _stop_jobs(self) -> None:
        await self.participant.stop(self.settings.stop_grace_s)
        await self._supervisor.stop("jobs")

    async def _stop_outbox(self) -> None:
        """Where replicas share the database, let the last messages leave: the others would wait for them.

        Elsewhere forget those that have left: the next start would send them again.
        """
        if not self.db.sole_process:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_MESSAGES_S):
                    while await self._relay.backlog():
                        await self.clock.sleep(0.02)
        await self._supervisor.stop("outbox")
        if self.db.sole_process:
            await self._relay.settle()

    async def _stopped(self, callback: Callback) -> None:
        """One part that does not stop must not keep the others from stopping."""
        name = getattr(callback, "__qualname__", repr(callback))
        try:
            async with asyncio.timeout(self.settings.stop_grace_s):
                await callback()
        except TimeoutError:
            log.error("a part of the service did not stop in time", part=name, limit_s=self.settings.stop_grace_s)  # noqa: TRY400  the traceback says nothing
        except KnarrError as error:
            log.error("a part of the service failed while it stopped", part=name, error=error.message)  # noqa: TRY400  likewise


def _private_folder(path: Path) -> Path:
    """Make a folder that only this user reads, and those above it that are missing."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    return path
