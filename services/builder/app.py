"""The wiring of `builder`, top to bottom."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from fastapi import FastAPI

from ocistore.store import ImageStore
from seedwork.bus import Bus
from seedwork.chassis.disk import Disk, DiskPart, Folder
from seedwork.chassis.service import Service
from seedwork.errors import Misconfigured
from services.builder import api, models
from services.builder.adapters.buildpacks.builder import BuildpacksBuilder
from services.builder.adapters.buildpacks.wiring import make_buildpacks_builder
from services.builder.adapters.buildx.disk import EngineCache
from services.builder.adapters.buildx.wiring import make_buildx_builder
from services.builder.adapters.layers.builder import LayersBuilder
from services.builder.adapters.layers.limits import Limits
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.adapters.sources import HttpSourceArchive
from services.builder.adapters.variables import HttpBuildVariables
from services.builder.builds import Builds
from services.builder.choosing import ChosenBuilder
from services.builder.contract import (
    BuildDiscarded,
    BuildImage,
    DiscardBuild,
    ImageBuildFailed,
    ImageBuilt,
    ImageRebased,
    RebaseImage,
)
from services.builder.folders import WorkFolders
from services.builder.handlers import build_image, discard_build, rebase_image
from services.builder.logs import BuildLogs
from services.builder.ports import ImageBuilder
from services.builder.settings import BuilderSettings
from services.builder.staging import Staging
from services.saga_coordinator.contract import DeploymentSucceeded

MIGRATIONS = Path(__file__).parent / "migrations"
_AFTER_LIMIT_S = 60.0
"""A build ends itself at its limit; the participant's own limit comes after it, for a build that does not."""
_SWEEP_S = 6 * 3600.0

_Builder = TypeVar("_Builder", bound=ImageBuilder)

log = structlog.get_logger(__name__)


def create_app(settings: BuilderSettings | None = None, *, bus: Bus | None = None) -> FastAPI:
    """The service, ready to be served; nothing is connected before its lifespan begins."""
    settings = settings or BuilderSettings()
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    images = settings.open_image_store(service.client)
    service.needs("image store", images.probe)
    sandbox = make_sandbox(settings, service.home)
    layers = make_layers_builder(settings, service.home, images, sandbox)
    buildpacks = _or_why_not(partial(make_buildpacks_builder, settings, service.home, images))
    builder = make_builder(settings, service.home, images, sandbox, layers=layers, buildpacks=buildpacks)
    builds = Builds(service.db)
    staging = Staging(service.db, images, service.clock)
    folders = WorkFolders(service.home / "work")
    logs = BuildLogs(service.home / "logs", max_bytes=settings.build_log_max_bytes, secrets=sandbox.secrets())

    discard = partial(discard_build, builder=builder, builds=builds, staging=staging, folders=folders)
    service.participant.step(
        BuildImage,
        partial(
            build_image,
            builder=builder,
            builds=builds,
            staging=staging,
            folders=folders,
            sources=HttpSourceArchive(lambda: service.client(service.url_of("source"))),
            variables=HttpBuildVariables(lambda: service.client(service.url_of("deployer"))),
            logs=logs,
            timeout_s=settings.build_timeout_s,
        ),
        ok=ImageBuilt,
        failed=ImageBuildFailed,
        undo=DiscardBuild,
        undo_handler=discard,
        undone=BuildDiscarded,
        slots=settings.build_slots,
        limit_s=settings.build_timeout_s + _AFTER_LIMIT_S,
    )
    service.participant.step(
        RebaseImage,
        partial(
            rebase_image,
            rebaser=buildpacks,
            builds=builds,
            staging=staging,
            logs=logs,
            timeout_s=settings.build_timeout_s,
        ),
        ok=ImageRebased,
        failed=ImageBuildFailed,
        undo=DiscardBuild,
        undo_handler=discard,
        undone=BuildDiscarded,
        slots=settings.build_slots,
        limit_s=settings.build_timeout_s + _AFTER_LIMIT_S,
    )
    service.participant.on(DeploymentSucceeded, staging.release)
    if service.db.sole_process:  # elsewhere what lies there may be a living replica's work
        service.on_start(partial(clear_up, builder, folders, staging))
    service.on_stop(images.close)
    service.background("collect", staging.run)
    service.background("sweep-caches", layers.app_caches.run)
    service.background("sweep-logs", partial(sweep_logs, logs, service, settings.build_log_keep_days))
    disk = make_disk(settings, service, buildpacks)
    service.background("disk", disk.run)
    service.app.include_router(api.router(builds, logs, service.clock, service.stopping))
    service.app.include_router(disk.router())
    return service.app


def make_sandbox(settings: BuilderSettings, home: Path) -> Sandbox:
    """What runs build tools."""
    limits = Limits(
        memory_bytes=settings.build_memory_bytes,
        processes=settings.build_processes,
        file_bytes=settings.build_file_bytes,
        cpu_s=max(1, int(settings.build_timeout_s * (os.cpu_count() or 1))),
    )
    return Sandbox(home, limits, pass_env=settings.build_pass_env)


def make_layers_builder(settings: BuilderSettings, home: Path, images: ImageStore, sandbox: Sandbox) -> LayersBuilder:
    """The builder that needs no engine."""
    return LayersBuilder(
        home,
        images=images,
        sandbox=sandbox,
        cache_bytes=settings.build_cache_bytes,
        fetch_toolchains=settings.fetch_toolchains,
        python_mirror=settings.python_mirror,
        app_caches_bytes=settings.build_app_caches_bytes,
    )


def make_builder(
    settings: BuilderSettings,
    home: Path,
    images: ImageStore,
    sandbox: Sandbox,
    *,
    layers: ImageBuilder,
    buildpacks: ImageBuilder | Misconfigured,
) -> ChosenBuilder:
    """All builders; each app gets one of them.

    Raises:
        Misconfigured: The one that the settings name does not go with the other settings.
    """
    return ChosenBuilder(
        {
            "layers": layers,
            "buildx": _or_why_not(partial(make_buildx_builder, settings, home, images, sandbox)),
            "buildpacks": buildpacks,
        },
        default=settings.builder,
    )


def _or_why_not(make: Callable[[], _Builder]) -> _Builder | Misconfigured:
    try:
        return make()
    except Misconfigured as error:
        return error


def make_disk(settings: BuilderSettings, service: Service, buildpacks: BuildpacksBuilder | Misconfigured) -> Disk:
    """What the service keeps: its files with the caches of `layers`, and the cache of the engine that builds."""
    parts: list[DiskPart] = [Folder("files of builder", service.home)]
    if settings.builder != "layers" and not settings.buildkit_host and not settings.buildx_builder:
        cache = EngineCache(limit_bytes=settings.build_cache_bytes)
        service.on_stop(cache.close)
        parts.append(cache)
    if isinstance(buildpacks, BuildpacksBuilder):
        service.on_stop(buildpacks.close)
        parts.append(buildpacks.caches(limit_bytes=settings.build_cache_bytes))
    return Disk(parts, every_s=settings.disk_reclaim_s, clock=service.clock)


async def clear_up(builder: ImageBuilder, folders: WorkFolders, staging: Staging) -> None:
    """What builds of a killed process left: their processes, folders and removals. The builds begin anew."""
    processes = await builder.stop()
    left = await folders.sweep()
    await staging.nobody_removes()
    if processes or left:
        log.info("cleared up after a process that was killed", processes=processes, work_folders=left)


async def sweep_logs(logs: BuildLogs, service: Service, keep_days: float) -> None:
    """Remove old logs, a few times a day."""
    while True:
        removed = await asyncio.to_thread(partial(logs.sweep, keep_s=keep_days * 86_400))
        if removed:
            log.info("removed old build logs", count=removed)
        await service.clock.sleep(_SWEEP_S)
