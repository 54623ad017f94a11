"""The services as they are wired in production, without HTTP, as simulated processes that share what replicas share.

Each role is wired as its `app.py` does it: the real engine, participant, outbox, relay, inbox, jobs, references,
releases and supervisor. Around them are the simulated database, the simulated broker (or, on a laptop, one process with
everything and the real in-process bus), and the world.
"""

import asyncio
import random
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import structlog
from cryptography.fernet import Fernet
from prometheus_client import CollectorRegistry
from sqlalchemy import MetaData, create_engine

from seedwork.adapters.in_process import InProcessBus
from seedwork.bus import Bus
from seedwork.chassis.metrics import Metrics
from seedwork.chassis.supervisor import Supervisor
from seedwork.errors import KnarrError
from seedwork.outbox import Outbox, Relay
from seedwork.participant import Participant, Timing
from seedwork.tables import KernelTables
from seedwork.testing.simulated_bus import SimulatedBroker
from seedwork.testing.simulated_database import EPOCH_MS, SimulatedFile, simulated_engine, storage_of
from seedwork.testing.simulated_loop import Process, SimulatedLoop
from seedwork.unit_of_work import Database
from services.builder import models as builder_models
from services.builder.contract import (
    BuildDiscarded,
    BuildImage,
    DiscardBuild,
    ImageBuildFailed,
    ImageBuilt,
    ImageRebased,
    RebaseImage,
)
from services.builder.staging import Staging
from services.deployer import deploying, observing, rebasing, rolling_back
from services.deployer import handlers as of_apps
from services.deployer import models as deployer_models
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    ObservationStopped,
    ObserveRelease,
    ReleaseDeployed,
    ReleaseDeployFailed,
    ReleaseObserved,
    ReleaseObserveFailed,
    ReleaseRetired,
    ReleaseRolledBack,
    RetireApp,
    RetireAppFailed,
    RollBackRelease,
    StopObserving,
)
from services.deployer.deployer import Deployer
from services.deployer.requests import Asked, Requests
from services.deployer.vault import Vault
from services.registry import handlers as publishing
from services.registry import models as registry_models
from services.registry.collector import Collector
from services.registry.contract import (
    DropImages,
    DropImagesFailed,
    ImagePublished,
    ImagePublishFailed,
    ImagesDropped,
    ImageUnpublished,
    PublishImage,
    UnpublishImage,
)
from services.registry.references import References
from services.saga_coordinator import models as coordinator_models
from services.saga_coordinator.audit import Audit
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.saga_coordinator.engine import SUBSCRIPTION, Engine
from services.saga_coordinator.sagas import DEFINITIONS
from services.source import handlers as fetching
from services.source import models as source_models
from services.source.archives import Archives
from services.source.contract import DiscardSource, FetchSource, SourceDiscarded, SourceFetched, SourceFetchFailed
from services.source.sweeper import Sweeper
from services.webhook.contract import DeploymentRequested
from tests.simulation.watch import CoordinatorWatch, Watch, watched
from tests.simulation.world import PlannedFault, SimulatedLocks, World, build_image, fetch_source, rebase_image

T = TypeVar("T")

METADATA: dict[str, MetaData] = {
    "source": source_models.metadata,
    "builder": builder_models.metadata,
    "registry": registry_models.metadata,
    "deployer": deployer_models.metadata,
    "saga_coordinator": coordinator_models.metadata,
}
SERVICES = tuple(METADATA)
REPLICAS = {"source": 2, "builder": 1, "registry": 2, "deployer": 2, "saga_coordinator": 2}
"""The `layers` builder of a machine is one process by its nature."""
LAPTOP = "knarr"
TIMING = Timing(lease_s=30.0, poll_s=10.0, sweep_after_s=120.0, sweep_every_s=40.0)
RESTART_S = 1.0
KEEP = 2
"""Releases beside the live one: few, so that retention is always at work."""
_VAULT = Vault(Fernet.generate_key(), where="the simulation")


class SimulatedDatabase(Database):
    """The real one; whether it is shared is the plan's."""

    def __init__(self, path: Path, *, sole: bool) -> None:
        super().__init__(f"sqlite+aiosqlite:///{path}")
        self._sole = sole

    @property
    def sole_process(self) -> bool:
        """See `Database.sole_process`."""
        return self._sole


@dataclass(slots=True)
class SimulatedClock:
    """A process's clock: the loop's time and its own error."""

    loop: SimulatedLoop
    skew_ms: int = 0

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.skew_ms

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


@dataclass(slots=True)
class Running:
    """A process and what a test asks of it."""

    process: Process
    clock: SimulatedClock
    engine: Engine | None = None
    requests: Requests | None = None
    rebase: Callable[..., Awaitable[Asked]] | None = None
    bus: Bus | None = None
    participants: dict[str, Participant] = field(default_factory=dict)


@dataclass(slots=True)
class _Parts:
    """What every service has."""

    db: SimulatedDatabase
    outbox: Outbox
    bus: Bus
    clock: SimulatedClock
    participant: Participant
    supervisor: Supervisor
    relay: Relay


class Cluster:
    """All processes, their databases and the broker.

    Args:
        loop: The world's.
        folder: For the databases.
        laptop: One process with everything, and the in-process bus; else replicas on a broker.
        hold_s: How long sagas are held.
    """

    def __init__(self, loop: SimulatedLoop, folder: Path, *, laptop: bool, hold_s: float) -> None:
        self.loop = loop
        self.folder = folder
        self.laptop = laptop
        self.hold_s = hold_s
        self.broker = SimulatedBroker(loop)
        self.world = World(loop, self.broker)
        self.locks = SimulatedLocks()
        self.files: dict[str, SimulatedFile] = {}
        self.running: dict[str, Running] = {}
        self.skews_ms = dict.fromkeys(self.names, 0)
        """Of the machines' clocks, by process."""
        self.watch = CoordinatorWatch("saga_coordinator", self.world.violated)
        self._metrics = Metrics()
        self._calm = False
        for service in SERVICES:
            self._open(service)

    def _open(self, service: str) -> None:
        watch = self.watch if service == "saga_coordinator" else Watch(service, self.world.violated)
        file = storage_of(self.loop).add(
            self.folder / f"{service}.db",
            template=_template(service),
            read_committed=service == "saga_coordinator" and not self.laptop,
        )
        file.on_commit = watch.look
        self.files[service] = file

    # ------------------------------------------------------------------------------------------ processes

    @property
    def names(self) -> list[str]:
        """Of all processes, whether they live or not."""
        if self.laptop:
            return [LAPTOP]
        return [f"{service}-{i + 1}" for service, count in REPLICAS.items() for i in range(count)]

    def start_all(self) -> None:
        """Everything that should run and does not."""
        for name in self.names:
            if name not in self.running:
                self.start(name)

    def start(self, name: str) -> None:
        """A new process of that name."""
        process = self.loop.process(name)
        running = Running(process, SimulatedClock(self.loop, self.skews_ms[name]))
        self.running[name] = running
        process.on_death.append(partial(self._died, name))
        services = SERVICES if self.laptop else (name.rpartition("-")[0],)
        process.spawn(self._boot(running, services))

    def _died(self, name: str) -> None:
        del self.running[name]
        self.loop.call_later(RESTART_S, self._restart, name)

    def _restart(self, name: str) -> None:
        if name not in self.running:
            self.start(name)

    def pause(self, name: str, seconds: float) -> None:
        """No turns for so long."""
        running = self.running.get(name)
        if running is not None and not running.process.paused:
            running.process.paused = True
            storage_of(self.loop).paused(running.process)
            self.loop.call_later(seconds, self._resume, running.process)

    def _resume(self, process: Process) -> None:
        process.paused = False

    def calm(self) -> None:
        """No more faults; everybody is there."""
        self.world.faults.world, self.world.faults.all_slow = 0.0, False
        self.broker.refuses = False
        for file in self.files.values():
            file.faults = type(file.faults)()
        self.broker.faults = type(self.broker.faults)()
        for running in self.running.values():
            running.process.paused = False
            running.process.dies_at = None

    def jump(self, hours: float, only: str | None = None) -> None:
        """The clock of one process's machine; or all of them, and those of the databases."""
        ms = int(hours * 3_600_000)
        for name in self.names if only is None else [only]:
            self.skews_ms[name] += ms
            if name in self.running:
                self.running[name].clock.skew_ms = self.skews_ms[name]
        for file in self.files.values() if only is None else ():
            file.skew_ms += ms

    # ------------------------------------------------------------------------------------------ wiring

    async def _boot(self, running: Running, services: Sequence[str]) -> None:
        """As an app's lifespan; what does not start is started again, as a supervisor of processes does."""
        running.bus = InProcessBus() if self.laptop else self.broker.client(running.process)
        wiring: dict[str, Callable[[Running, _Parts], Any]] = {
            "source": self._source,
            "builder": self._builder,
            "registry": self._registry,
            "deployer": self._deployer,
            "saga_coordinator": self._coordinator,
        }
        try:
            for service in services:
                parts = await self._parts(running, service)
                await wiring[service](running, parts)
                parts.supervisor.start("outbox", parts.relay.run)
                if service != "saga_coordinator":
                    await parts.participant.subscribe()
                    parts.supervisor.start("jobs", parts.participant.run)
            await running.bus.open()
        except KnarrError:
            self.loop.call_later(0, running.process.kill)

    async def _parts(self, running: Running, service: str) -> _Parts:
        db = SimulatedDatabase(self.folder / f"{service}.db", sole=self.laptop)
        await db.open()
        tables = KernelTables.of(METADATA[service])
        bus = running.bus or InProcessBus()
        outbox = Outbox(tables, running.clock)
        participant = Participant(
            service, db=db, tables=tables, bus=bus, clock=running.clock, outbox=outbox, timing=TIMING
        )
        running.participants[service] = participant
        return _Parts(
            db=db,
            outbox=outbox,
            bus=bus,
            clock=running.clock,
            participant=participant,
            supervisor=Supervisor(running.clock, self._metrics),
            relay=Relay(db, tables, bus, running.clock, outbox),
        )

    async def _coordinator(self, running: Running, parts: _Parts) -> None:
        engine = Engine(
            db=parts.db,
            outbox=parts.outbox,
            bus=parts.bus,
            clock=parts.clock,
            definitions=DEFINITIONS,
            hold_s=self.hold_s,
            jitter=self.loop.chance.random,
        )
        audit = Audit(parts.db, parts.clock, CollectorRegistry())
        await engine.open()
        running.engine = engine
        parts.supervisor.start("timers", engine.run_timers)
        parts.supervisor.start("audit", partial(self._audit, audit, parts.clock))

    async def _audit(self, audit: Audit, clock: SimulatedClock) -> None:
        while True:
            for finding in await audit.look():
                self.world.violated(f"audit: {finding}")
            await clock.sleep(60.0)

    async def _source(self, _running: Running, parts: _Parts) -> None:
        world, participant = self.world, parts.participant
        archives = Archives(parts.db, self.folder, self.locks)  # type: ignore[arg-type]  # the locks of a simulation
        sweeper = Sweeper(
            archives=archives,
            uploads=_NothingToSweep(),  # type: ignore[arg-type]  # there are no uploads here
            mirrors=_NothingToSweep(),
            large_files=_NothingToSweep(),
            every_s=300.0,
            upload_keep_days=1,
            mirror_keep_days=1,
        )
        participant.step(
            FetchSource,
            world.with_fates(partial(fetch_source, world=world, archives=archives)),
            ok=SourceFetched,
            failed=SourceFetchFailed,
            undo=DiscardSource,
            undo_handler=world.with_fates(partial(fetching.discard_source, archives=archives), undo=True),
            undone=SourceDiscarded,
            slots=3,
            limit_s=600.0,
        )
        participant.on(DeploymentSucceeded, partial(fetching.on_succeeded, sweeper=sweeper))
        parts.supervisor.start("sweeper", sweeper.run)

    async def _builder(self, _running: Running, parts: _Parts) -> None:
        world, participant = self.world, parts.participant
        staging = Staging(parts.db, world.images, parts.clock)
        participant.step(
            BuildImage,
            world.with_fates(
                partial(build_image, world=world, staging=staging, images=world.images, archives=self.folder)
            ),
            ok=ImageBuilt,
            failed=ImageBuildFailed,
            undo=DiscardBuild,
            undo_handler=world.with_fates(partial(_discard_build, staging=staging), undo=True),
            undone=BuildDiscarded,
            slots=3,
            limit_s=600.0,
        )
        participant.step(
            RebaseImage,
            world.with_fates(partial(rebase_image, world=world, staging=staging, images=world.images)),
            ok=ImageRebased,
            failed=ImageBuildFailed,
            undo=DiscardBuild,
            undo_handler=world.with_fates(partial(_discard_build, staging=staging), undo=True),
            undone=BuildDiscarded,
            slots=3,
            limit_s=600.0,
        )
        participant.on(DeploymentSucceeded, staging.release)
        parts.supervisor.start("staging", staging.run)

    async def _registry(self, _running: Running, parts: _Parts) -> None:
        world, participant = self.world, parts.participant
        references = References(parts.db, parts.clock, shared=not parts.db.sole_process)
        collector = Collector(images=world.images, references=references, every_s=300.0, figures=CollectorRegistry())
        participant.step(
            PublishImage,
            world.with_fates(partial(publishing.publish_image, images=world.images, references=references)),
            ok=ImagePublished,
            failed=ImagePublishFailed,
            undo=UnpublishImage,
            undo_handler=world.with_fates(
                partial(publishing.unpublish_image, images=world.images, references=references), undo=True
            ),
            undone=ImageUnpublished,
            slots=4,
            limit_s=600.0,
        )
        participant.step(
            DropImages,
            world.with_fates(partial(publishing.drop_images, images=world.images, references=references)),
            ok=ImagesDropped,
            failed=DropImagesFailed,
        )
        participant.on(ReleaseDeployed, publishing.on_release_deployed)
        participant.on(ReleaseRetired, partial(publishing.on_release_retired, collector=collector))
        parts.supervisor.start("collector", collector.run)

    async def _deployer(self, running: Running, parts: _Parts) -> None:
        world, participant = self.world, parts.participant
        deployer = Deployer(
            db=parts.db, images=world.images, runtime=world.runtime, vault=_VAULT, outbox=parts.outbox, keep=KEEP
        )
        participant.step(
            DeployRelease,
            world.with_fates(partial(deploying.deploy_release, deployer=deployer)),
            ok=ReleaseDeployed,
            failed=ReleaseDeployFailed,
            undo=RollBackRelease,
            undo_handler=world.with_fates(partial(rolling_back.roll_back_release, deployer=deployer), undo=True),
            undone=ReleaseRolledBack,
            limit_s=600.0,
        )
        participant.step(
            ObserveRelease,
            world.with_fates(partial(observing.observe_release, deployer=deployer)),
            ok=ReleaseObserved,
            failed=ReleaseObserveFailed,
            undo=StopObserving,
            undo_handler=world.with_fates(observing.stop_observing, undo=True),
            undone=ObservationStopped,
            limit_s=600.0,
        )
        participant.step(
            RetireApp,
            world.with_fates(partial(of_apps.retire_app, deployer=deployer)),
            ok=AppRetired,
            failed=RetireAppFailed,
        )
        participant.on(DeploymentRequested, of_apps.on_requested)
        participant.on(DeploymentFailed, of_apps.on_failed)
        running.requests = Requests(parts.db, parts.outbox, _VAULT, max_instances=3)
        running.rebase = partial(rebasing.rebase, db=parts.db, outbox=parts.outbox, images=world.images)

    # ------------------------------------------------------------------------------------------ asking from outside

    def query(self, service: str, sql: str, *parameters: Any) -> list[Any]:
        """What stands in a database now."""
        with sqlite3.connect(self.folder / f"{service}.db") as conn:
            rows = conn.execute(sql, parameters).fetchall()
        conn.close()
        return rows

    def declare(self) -> None:
        """Subscriptions exist before anything is published."""
        if not self.laptop:
            subscriptions: dict[str, Sequence[type[Any]]] = {
                SUBSCRIPTION: DEFINITIONS.messages(),
                "source": (FetchSource, DiscardSource, DeploymentSucceeded),
                "builder": (BuildImage, RebaseImage, DiscardBuild, DeploymentSucceeded),
                "registry": (PublishImage, UnpublishImage, DropImages, ReleaseDeployed, ReleaseRetired),
                "deployer": (
                    DeployRelease,
                    RollBackRelease,
                    ObserveRelease,
                    StopObserving,
                    RetireApp,
                    DeploymentRequested,
                    DeploymentFailed,
                ),
            }
            for name, types in subscriptions.items():
                self.broker.declare(name, types)


async def _discard_build(_command: DiscardBuild, *, work: Any, staging: Staging) -> BuildDiscarded:
    """The real one without processes, folders and logs."""
    dropped = await staging.drop(work.saga_id)
    return BuildDiscarded(found=(f"image {dropped[0]}",), done=("dropped",)) if dropped else BuildDiscarded()


class _NothingToSweep:
    async def sweep(self, _keep_s: float) -> int:
        return 0


_templates: dict[str, bytes] = {}


def _template(service: str) -> bytes:
    """An empty database of this service, as bytes."""
    if service not in _templates:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        engine = create_engine("sqlite://", creator=lambda: connection)
        METADATA[service].create_all(engine)
        watched(connection, service)
        _templates[service] = connection.serialize()
        engine.dispose()
        connection.close()
    return _templates[service]


@contextmanager
def simulated(cluster_log: Callable[[str], None], loop: SimulatedLoop) -> Iterator[None]:
    """What the real code takes from its surroundings: engines, threads, ids, chance, log."""
    ids = _Ids(loop)
    with (
        patch("seedwork.unit_of_work._sqlite_engine", simulated_engine),
        patch("seedwork.unit_of_work.random", loop.chance),
        patch("seedwork.messages.uuid7", ids.next),
        patch("services.source.archives.in_thread", _at_once),
        patch("services.registry.references._POLL_S", 1.0),
        patch.object(random, "random", loop.chance.random),
        _log_to(cluster_log),
    ):
        yield


async def _at_once(work: Callable[[threading.Event], T]) -> T:
    """In place of a thread."""
    await asyncio.sleep(0)
    return work(threading.Event())


class _Ids:
    """UUIDv7 of the virtual time, each greater than the one before."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._count = 0

    def next(self) -> str:
        self._count += 1
        ms = EPOCH_MS + int(self._loop.time() * 1000)
        text = f"{ms:012x}7{self._count:019x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@contextmanager
def _log_to(report: Callable[[str], None]) -> Iterator[None]:
    """Nothing is printed; an exception that nobody had planned is reported."""

    def look(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Any:
        error = line.get("exc_info")
        if error is True:
            error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, (KnarrError, PlannedFault)):
            report(f"a fault in the log: {line.get('event')}: {error!r}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[look], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
