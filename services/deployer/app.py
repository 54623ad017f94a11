"""The wiring of `deployer`."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from ocistore.store import ImageStore
from seedwork.bus import Bus
from seedwork.chassis.service import Service
from seedwork.clock import Clock
from seedwork.messages import Catalog
from services.deployer import (
    api,
    capabilities,
    deploying,
    handlers,
    models,
    observing,
    rebasing,
    rolling_back,
    runs,
    sbom_api,
    storage_api,
)
from services.deployer.adapters.docker.wiring import make_docker_runtime
from services.deployer.adapters.kubernetes.wiring import make_kubernetes_runtime
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.adapters.process.runtime import ProcessRuntime
from services.deployer.adapters.process.wiring import make_process_runtime
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    DriftDetected,
    DriftRepaired,
    ObservationStopped,
    ObserveRelease,
    RebaseRequested,
    ReleaseDeployed,
    ReleaseDeployFailed,
    ReleaseObserved,
    ReleaseObserveFailed,
    ReleaseRequested,
    ReleaseRetired,
    ReleaseRolledBack,
    RetireApp,
    RetireAppFailed,
    RollBackRelease,
    StopObserving,
)
from services.deployer.deployer import Deployer, Observation
from services.deployer.disk import make_disk
from services.deployer.ports import AddOns, Runtime, Volumes
from services.deployer.reconciling import Reconciler
from services.deployer.requests import Requests
from services.deployer.settings import DeployerSettings
from services.deployer.standing import Standby
from services.deployer.vault import Vault
from services.deployer.volumes import VolumeRemoval
from services.saga_coordinator.contract import DeploymentFailed
from services.webhook.contract import AppChanged, AppCreated, DeploymentRequested

MIGRATIONS = Path(__file__).parent / "migrations"
TELLS = Catalog([ReleaseRequested, RebaseRequested, ReleaseRetired, DriftDetected, DriftRepaired])
OBSERVATIONS = 256
"""Releases that are observed at once: the step only waits."""


def create_app(
    settings: DeployerSettings | None = None,
    *,
    bus: Bus | None = None,
    images: ImageStore | None = None,
    runtime: Runtime | None = None,
    provider: AddOns | None = None,
    volumes: Volumes | None = None,
) -> FastAPI:
    """The service's app; nothing is connected before its lifespan. All but `settings` and `bus` are for tests."""
    settings = settings or DeployerSettings()
    service = Service("deployer", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus, catalog=TELLS)
    if images is None:
        images = opened = settings.open_image_store(service.client)
        service.needs("image store", opened.probe)
        service.on_stop(opened.close)
    if runtime is None:
        runtime, provider, volumes = _runtime(settings, service.home, images, service.clock)
    if isinstance(runtime, ProcessRuntime):
        service.needs("instances", runtime.isolation)
    vault = Vault.open(settings.config_key, service.home / "config.key")
    deployer = Deployer(
        db=service.db,
        images=images,
        runtime=runtime,
        vault=vault,
        outbox=service.outbox,
        keep=settings.registry_keep,
        provider=provider,
        observation=Observation(
            default_s=settings.observe_s, errors=settings.observe_errors, start_s=settings.start_timeout_max_s
        ),
    )
    removal = VolumeRemoval(service.db, runtime, volumes)
    standby = Standby(
        service.db, images, vault, runtime, service.clock, removal=deployer.removal, volumes=removal, provider=provider
    )
    requests = Requests(service.db, service.outbox, vault, max_instances=settings.max_instances, provider=provider)

    service.participant.step(
        DeployRelease,
        partial(deploying.deploy_release, deployer=deployer),
        ok=ReleaseDeployed,
        failed=ReleaseDeployFailed,
        undo=RollBackRelease,
        undo_handler=partial(rolling_back.roll_back_release, deployer=deployer),
        undone=ReleaseRolledBack,
        limit_s=settings.deploy_limit_s,
    )
    service.participant.step(
        ObserveRelease,
        partial(observing.observe_release, deployer=deployer),
        ok=ReleaseObserved,
        failed=ReleaseObserveFailed,
        undo=StopObserving,
        undo_handler=observing.stop_observing,
        undone=ObservationStopped,
        slots=OBSERVATIONS,
        limit_s=observing.LONGEST_S + settings.deploy_limit_s,
    )
    service.participant.step(
        RetireApp, partial(handlers.retire_app, deployer=deployer), ok=AppRetired, failed=RetireAppFailed
    )
    service.participant.on(AppCreated, handlers.on_app)
    service.participant.on(AppChanged, handlers.on_app)
    service.participant.on(DeploymentRequested, handlers.on_requested)
    service.participant.on(DeploymentFailed, handlers.on_failed)
    one_off = runs.Runs(service.db, images, vault, runtime, stopping=service.stopping, provider=provider)
    service.on_start(standby.recover)
    service.on_stop(runtime.close)
    service.on_stop(one_off.close)
    service.background("sweep", standby.sweep)
    disk = make_disk(settings, service, standby)
    service.background("disk", disk.run)
    service.app.include_router(disk.router())
    service.background("volumes", standby.delete_volumes)
    reconciler = Reconciler(
        service.db,
        service.outbox,
        runtime,
        service.clock,
        standings=standby.standings,
        every_s=settings.reconcile_s,
    )
    service.background("reconcile", reconciler.run)
    service.app.include_router(
        api.router(
            db=service.db,
            requests=requests,
            runtime=runtime,
            removal=deployer.removal,
            coordinator_url=service.url_of("saga_coordinator"),
            clock=service.clock,
            stopping=service.stopping,
        )
    )
    service.app.include_router(
        storage_api.router(db=service.db, requests=requests, runtime=runtime, provider=volumes, removal=removal)
    )
    service.app.include_router(runs.router(requests, one_off))
    service.app.include_router(capabilities.router(runtime))
    service.app.include_router(
        rebasing.router(
            db=service.db,
            outbox=service.outbox,
            images=images,
            requests=requests,
            coordinator_url=service.url_of("saga_coordinator"),
        )
    )
    service.app.include_router(sbom_api.router(db=service.db, images=images, requests=requests))
    return service.app


def _runtime(
    settings: DeployerSettings, home: Path, images: ImageStore, clock: Clock
) -> tuple[Runtime, AddOns | None, Volumes | None]:
    if settings.runtime == "memory":
        return MemoryRuntime(clock=clock), None, None
    if settings.runtime == "docker":
        return make_docker_runtime(settings, home, clock)
    if settings.runtime == "kubernetes":
        return make_kubernetes_runtime(settings, clock)
    return make_process_runtime(settings, home, images, clock)
