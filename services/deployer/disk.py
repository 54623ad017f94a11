"""What `deployer` keeps: its files, and on a Docker engine the images of releases."""

from seedwork.chassis.disk import Disk, DiskPart, Folder
from seedwork.chassis.service import Service
from services.deployer.adapters.docker.disk import EngineImages
from services.deployer.adapters.images import Pullable
from services.deployer.settings import DeployerSettings
from services.deployer.standing import Standby


def make_disk(settings: DeployerSettings, service: Service, standby: Standby) -> Disk:
    """Return the parts with their schedule; nothing is measured before it is asked for."""
    parts: list[DiskPart] = [Folder("files of deployer", service.home)]
    if settings.runtime == "docker":
        images = EngineImages(
            pullable=Pullable(settings.pull_registry()),
            needed=standby.needed_images,
            sweep=standby.sweep_now,
            docker_host=settings.docker_host,
        )
        service.on_stop(images.close)
        parts.append(images)
    return Disk(parts, every_s=settings.disk_reclaim_s, clock=service.clock)
