"""The intake, wired."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from seedwork.bus import Bus
from seedwork.chassis.service import Service
from seedwork.clock import Clock
from seedwork.git import GitUrlPolicy
from seedwork.git_credentials import GitCredentials
from seedwork.messages import Catalog
from services.deployer.contract import ReleaseRequested
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.webhook import api, models, tokens_api
from services.webhook.adapters.git_refs import GitRefs
from services.webhook.adapters.source_http import HttpSourceArchive
from services.webhook.apps import Apps
from services.webhook.contract import AppChanged, AppCreated, AppRemovalRequested, DeploymentRequested
from services.webhook.directory import Directory
from services.webhook.handlers import end_of_saga, end_of_undone_saga
from services.webhook.holds import hold_after_rollback
from services.webhook.intake import Intake
from services.webhook.polling import Poller, Schedule
from services.webhook.ports import RemoteRefs, SourceArchive
from services.webhook.redelivery import Deliveries
from services.webhook.requests import Requests
from services.webhook.retention import BodyRetention
from services.webhook.settings import WebhookSettings
from services.webhook.tokens import Tokens
from services.webhook.vault import Vault

MIGRATIONS = Path(__file__).parent / "migrations"
TELLS = Catalog([AppCreated, AppChanged, AppRemovalRequested, DeploymentRequested])


def create_app(
    settings: WebhookSettings | None = None,
    *,
    bus: Bus | None = None,
    clock: Clock | None = None,
    refs: RemoteRefs | None = None,
    archives: SourceArchive | None = None,
) -> FastAPI:
    """The service's app; nothing is connected before its lifespan. `clock`, `refs`, `archives`: for tests."""
    settings = settings or WebhookSettings()
    service = Service(
        "webhook", settings, metadata=models.metadata, migrations=MIGRATIONS, bus=bus, catalog=TELLS, clock=clock
    )
    db, outbox, clock = service.db, service.outbox, service.clock
    policy = GitUrlPolicy(settings.source_allow)
    credentials = GitCredentials.from_setting(settings.source_credentials)
    refs = refs or GitRefs(policy, credentials=credentials, timeout_s=settings.poll_timeout_s)
    archives = archives or HttpSourceArchive(service.client, service.url_of("source"))
    vault = Vault.open(settings.secret_key, service.home / "secret.key")
    schedule = Schedule(settings.poll_s)
    directory = Directory(db, vault, clock)
    apps = Apps(db, outbox, clock, vault=vault, directory=directory, policy=policy, schedule=schedule, refs=refs)
    requests = Requests(
        db, outbox, clock, refs=refs, archives=archives, policy=policy, uploads=service.home / "uploads"
    )
    poller = Poller(db, outbox, clock, refs=refs, schedule=schedule, at_once=settings.poll_at_once)

    service.participant.on(DeploymentSucceeded, partial(end_of_saga, directory=directory, clock=clock))
    service.participant.on(DeploymentFailed, partial(end_of_undone_saga, clock=clock))
    service.participant.on(ReleaseRequested, partial(hold_after_rollback, clock=clock))
    service.on_start(requests.clean)
    service.background("poll", poller.run)
    bodies = BodyRetention(db, clock, keep_days=settings.delivery_body_keep_days)
    service.background("bodies", bodies.run)
    service.app.state.bodies = bodies
    service.open_path("/github-webhook")  # tunnels and proxies send it under their own names
    tokens = Tokens(db, clock)
    service.auth.read_granted_by(tokens.known)
    service.app.include_router(tokens_api.router(tokens, service.auth))
    service.app.include_router(
        api.router(
            intake=Intake(db, outbox, directory, clock),
            apps=apps,
            requests=requests,
            deliveries=Deliveries(db, outbox, directory),
            coordinator_url=service.url_of("saga_coordinator"),
            limits=api.Limits(
                upload_max_bytes=settings.upload_max_bytes,
                source_max_bytes=settings.source_max_bytes,
                source_max_entries=settings.source_max_entries,
            ),
        )
    )
    return service.app
