"""The wiring of `registry`."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from seedwork.bus import Bus
from seedwork.chassis.service import Service
from services.deployer.contract import ReleaseDeployed, ReleaseRetired
from services.registry import api, handlers, models
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
from services.registry.settings import RegistrySettings

MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: RegistrySettings | None = None, *, bus: Bus | None = None) -> FastAPI:
    """The service, ready to be served; nothing is connected before its lifespan begins."""
    settings = settings or RegistrySettings()
    service = Service("registry", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    images = settings.open_image_store(service.client)
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
    service.app.include_router(api.router(references))
    return service.app
