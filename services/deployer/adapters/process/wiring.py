"""Settings in, a `ProcessRuntime`, its add-ons and its volumes out."""

import os
from pathlib import Path

from ocistore.store import ImageStore
from seedwork.clock import Clock
from services.deployer.adapters.process.addons import ProcessAddOns
from services.deployer.adapters.process.cgroups import Bounds
from services.deployer.adapters.process.runtime import Limits, ProcessRuntime
from services.deployer.adapters.process.volumes import ProcessVolumes
from services.deployer.adapters.router import make_router
from services.deployer.settings import MIB, DeployerSettings


def make_process_runtime(
    settings: DeployerSettings, home: Path, images: ImageStore, clock: Clock
) -> tuple[ProcessRuntime, ProcessAddOns, ProcessVolumes]:
    """The runtime, what provides its add-ons, and its volumes."""
    given = settings.model_fields_set
    limits = Limits(
        start_timeout_s=settings.start_timeout_s,
        start_timeout_max_s=settings.start_timeout_max_s,
        wrong_port_s=settings.wrong_port_s,
        grace_s=settings.app_grace_s,
        drain_s=settings.drain_s,
        release_command_timeout_s=settings.release_command_timeout_s,
        settle_s=settings.worker_settle_s,
        log_max_bytes=settings.app_log_max_bytes,
        bounds=Bounds(
            memory_bytes=settings.app_memory_mb * MIB if "app_memory_mb" in given else None,
            processes=settings.app_processes if "app_processes" in given else None,
        ),
    )
    path = os.environ.get("PATH", os.defpath)
    addons = ProcessAddOns(home, path=path, start_timeout_s=settings.addon_start_timeout_s)
    router = make_router(settings)
    runtime = ProcessRuntime(home, images=images, router=router, clock=clock, limits=limits, addons=addons)
    return runtime, addons, ProcessVolumes(home)
