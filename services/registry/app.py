"""The wiring of `registry`."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from ocistore import is_registry
from ocistore.upkeep import upkeep_of
from seedwork.bus import Bus
from seedwork.chassis.disk import Disk, DiskPart, Folder
from seedwork.chassis.service import Service
from services.deployer.contract import ReleaseDeployed, ReleaseRetired
from services.registry import api, handlers, models
from services.registry.adapters.own_registry import OtherStore, OwnRegistry
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
from services.registry.ports import ImageStore
from services.registry.references import References
from services.registry.settings import RegistrySettings

MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: RegistrySettings | None = None, *, bus: Bus | None = None) -> FastAPI:
    """The service, ready to be served; nothing is connected before its lifespan begins."""
    settings = settings or RegistrySettings()
    service = Service("registry", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    images = settings.open_image_store(service.client)
    service.needs("image store", images.probe)
    references = References(service.db, service.clock, shared=not service.db.sole_process)
    collector = Collector(
        images=images, references=references, every_s=settings.reconcile_s, figures=service.metrics.registry
    )
    service.participant.step(
        PublishImage,
        partial(handlers.publish_image, images=images, references=references),
        ok=ImagePublished,
        failed=ImagePublishFailed,
        undo=UnpublishImage,
        undo_handler=partial(handlers.unpublish_image, images=images, references=references),
        undone=ImageUnpublished,
        slots=settings.publish_slots,
        limit_s=settings.publish_timeout_s,
    )
    service.participant.step(
        DropImages,
        partial(handlers.drop_images, images=images, references=references),
        ok=ImagesDropped,
        failed=DropImagesFailed,
    )
    service.participant.on(ReleaseDeployed, handlers.on_release_deployed)
    service.participant.on(ReleaseRetired, partial(handlers.on_release_retired, collector=collector))
    service.on_start(images.open)
    service.on_stop(images.close)
    service.background("collector", collector.run)
    disk = make_disk(settings, service, images)
    service.background("disk", disk.run)
    service.app.include_router(api.router(references))
    service.app.include_router(disk.router())
    return service.app


def make_disk(settings: RegistrySettings, service: Service, images: ImageStore) -> Disk:
    """What the service keeps: its files, and the images where they are."""
    place = settings.image_store_place()
    parts: list[DiskPart] = [Folder("files of registry", service.home, besides=[Path(place)])]
    if not is_registry(place):
        parts.append(Folder("images in the folder", Path(place)))
    elif settings.registry_container is None:
        parts.append(OtherStore(place))
    else:
        own = OwnRegistry(
            container=settings.registry_container,
            url=place,
            images=images,
            upkeep=upkeep_of(place),
            limit_bytes=settings.registry_garbage_bytes,
            clock=service.clock,
        )
        service.on_stop(own.close)
        parts.append(own)
    return Disk(parts, every_s=settings.disk_reclaim_s, clock=service.clock)
