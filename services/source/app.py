"""The wiring of `source`."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from seedwork.bus import Bus
from seedwork.chassis.disk import Disk, Folder
from seedwork.chassis.service import Service
from seedwork.git import GitUrlPolicy
from seedwork.git_credentials import GitCredentials
from services.saga_coordinator.contract import DeploymentSucceeded
from services.source import api, models
from services.source.adapters.git import GitRepositories
from services.source.adapters.lfs import LfsStore
from services.source.adapters.provided import HttpAddOnKinds
from services.source.archives import Archives
from services.source.contract import DiscardSource, FetchSource, SourceDiscarded, SourceFetched, SourceFetchFailed
from services.source.handlers import discard_source, fetch_source, on_succeeded
from services.source.locks import NamedLocks
from services.source.plan import Capabilities
from services.source.settings import SourceSettings
from services.source.sweeper import Sweeper
from services.source.uploads import Uploads

MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: SourceSettings | None = None, *, bus: Bus | None = None) -> FastAPI:
    """The service as an ASGI app; nothing is connected before its lifespan begins."""
    settings = settings or SourceSettings()
    service = Service("source", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus)
    limits = settings.archive_limits()
    archives = Archives(service.db, service.home, NamedLocks(service.home / "locks"))
    uploads = Uploads(service.home)
    policy = GitUrlPolicy(settings.source_allow)
    credentials = GitCredentials.from_setting(settings.source_credentials)
    repositories = GitRepositories(
        service.home / "mirrors",
        policy=policy,
        credentials=credentials,
        limits=limits,
        fetch_timeout_s=settings.source_fetch_timeout_s,
    )
    large_files = LfsStore(
        service.home / "lfs",
        policy=policy,
        credentials=credentials,
        timeout_s=settings.source_fetch_timeout_s,
    )
    sweeper = Sweeper(
        archives=archives,
        uploads=uploads,
        mirrors=repositories,
        large_files=large_files,
        every_s=settings.source_sweep_s,
        upload_keep_days=settings.upload_keep_days,
        mirror_keep_days=settings.mirror_keep_days,
    )
    service.participant.step(
        FetchSource,
        partial(
            fetch_source,
            repositories=repositories,
            uploads=uploads,
            archives=archives,
            limits=limits,
            capabilities=Capabilities(settings.builder),
            large_files=large_files,
            policy=policy,
            addon_kinds=HttpAddOnKinds(lambda: service.client(service.url_of("deployer"))),
        ),
        ok=SourceFetched,
        failed=SourceFetchFailed,
        undo=DiscardSource,
        undo_handler=partial(discard_source, archives=archives),
        undone=SourceDiscarded,
        slots=settings.source_slots,
        limit_s=settings.source_timeout_s,
    )
    service.participant.on(DeploymentSucceeded, partial(on_succeeded, sweeper=sweeper))
    if service.db.sole_process:
        service.on_start(partial(archives.clear_drafts, 0))
    service.background("sweep", sweeper.run)
    service.app.include_router(
        api.router(archives=archives, uploads=uploads, upload_max_bytes=settings.upload_max_bytes)
    )
    files = Folder("files of source", service.home)
    service.app.include_router(Disk([files], every_s=0, clock=service.clock).router())
    return service.app
