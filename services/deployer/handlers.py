"""The end of an app, and what this service learns from events of others."""

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.participant import Work
from services.deployer import apps, configs, observations, releases
from services.deployer.apps import App
from services.deployer.contract import AppRetired, RetireApp
from services.deployer.deployer import Deployer, retired
from services.saga_coordinator.contract import DeploymentFailed
from services.webhook.contract import AppChanged, AppCreated, DeploymentRequested


async def retire_app(_command: RetireApp, *, work: Work, deployer: Deployer) -> AppRetired:
    """Stop everything of the app, drop its route, config and releases."""
    db, runtime, app_id = deployer.db, deployer.runtime, work.app_id
    known = await db.read(lambda conn: releases.in_states(conn, releases.KEPT_STATES, app_id=app_id))
    await runtime.switch(app_id, None, fence=work.fence)
    found: list[str] = []
    for release in known:
        found += await runtime.stop(app_id, release.saga_id)
    found += await deployer.removal.of_app(app_id)
    found += await runtime.forget(app_id)
    if known:
        found.append(f"{len(known)} releases")

    async def drop(conn: AsyncConnection) -> None:
        app = App(app_id=app_id, name=work.app, team=work.team)
        await deployer.outbox.add(conn, [retired(each, app, work.saga_id) for each in known])
        await releases.drop_app(conn, app_id)

    work.with_outcome(drop)
    return AppRetired(found=tuple(found), done=("stopped and removed",) if found else ())


async def on_app(event: AppCreated | AppChanged, message: Envelope, conn: AsyncConnection) -> None:
    """An app was made, renamed, or its observation changed."""
    await apps.know_app(conn, App(app_id=message.appid, name=event.app, team=message.team))
    await apps.set_observe_s(conn, message.appid, event.observe_s)


async def on_requested(event: DeploymentRequested, message: Envelope, conn: AsyncConnection) -> None:
    """A newer saga of the app exists: the release before it is not observed any longer.

    `ReleaseRequested` is this service's own event: it is noted where it is made.
    """
    await apps.know_app(conn, App(app_id=message.appid, name=event.app, team=message.team))
    await apps.note_newest(conn, message.appid, message.correlationid)


async def on_failed(_event: DeploymentFailed, message: Envelope, conn: AsyncConnection) -> None:
    """A saga ended without success, perhaps before it came here: its config change waits no more.

    Where an operator skipped the undo of its release, that one keeps the traffic: the one before is not kept warm.
    """
    await configs.give_up(conn, message.appid, message.correlationid)
    await observations.give_up(conn, message.correlationid)
