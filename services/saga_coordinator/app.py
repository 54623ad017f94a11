"""The wiring of `saga_coordinator`."""

from functools import partial
from pathlib import Path

from fastapi import FastAPI

from seedwork.bus import Bus
from seedwork.chassis.service import Service
from seedwork.messages import Catalog
from seedwork.saga import Definitions
from services.saga_coordinator import api, models
from services.saga_coordinator.audit import Audit
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.saga_coordinator.engine import SUBSCRIPTION, Engine
from services.saga_coordinator.feed import Feed
from services.saga_coordinator.queries import versions_of
from services.saga_coordinator.retention import Retention
from services.saga_coordinator.sagas import DEFINITIONS
from services.saga_coordinator.settings import CoordinatorSettings

MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(
    settings: CoordinatorSettings | None = None, *, bus: Bus | None = None, definitions: Definitions = DEFINITIONS
) -> FastAPI:
    """The coordinator as an app; nothing is connected before its lifespan."""
    settings = settings or CoordinatorSettings()
    service = Service(
        "saga_coordinator",
        settings,
        metadata=models.metadata,
        migrations=MIGRATIONS,
        bus=bus,
        catalog=Catalog([*definitions.messages(), *definitions.commands(), DeploymentSucceeded, DeploymentFailed]),
    )
    feed = Feed()
    engine = Engine(
        db=service.db,
        outbox=service.outbox,
        bus=service.bus,
        clock=service.clock,
        definitions=definitions,
        hold_s=settings.saga_hold_s,
        batch=settings.saga_batch,
        on_change=feed.ring,
    )
    audit = Audit(service.db, service.clock, service.metrics.registry)
    retention = Retention(service.db, service.clock, keep_days=settings.saga_keep_days)
    service.takes(SUBSCRIPTION, definitions.messages())
    service.on_start(engine.open)
    service.background("timers", engine.run_timers)
    service.background("audit", audit.run)
    service.background("retention", retention.run)
    if not service.db.sole_process:
        service.background("feed", partial(feed.watch, partial(versions_of, service.db), service.clock))
    service.app.include_router(
        api.router(db=service.db, engine=engine, feed=feed, definitions=definitions, stopping=service.stopping)
    )
    service.app.state.audit = audit
    service.app.state.retention = retention
    service.app.state.feed = feed
    return service.app
