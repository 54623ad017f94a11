"""What the intake hears: that an app is gone, or is not going after all."""

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.messages import Envelope
from seedwork.unit_of_work import after_commit
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.webhook.directory import Directory
from services.webhook.holds import hold_after_compensation, release_after_failed_rollback
from services.webhook.models import apps


async def forget_removed_app(
    event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection, *, directory: Directory
) -> None:
    """A `remove` saga has ended: the app's name is free, and its secret is gone."""
    if event.saga != "remove":
        return
    await conn.execute(
        update(apps)
        .where(apps.c.app_id == envelope.appid, apps.c.state != "removed")
        .values(state="removed", name_key=None, webhook_secret="")
    )
    after_commit(conn, directory.forget)


async def end_of_saga(
    event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection, *, directory: Directory, clock: Clock
) -> None:
    """Free the name of an app that was removed; hold an app that was rolled back."""
    await forget_removed_app(event, envelope, conn, directory=directory)
    await hold_after_compensation(event, envelope, conn, clock=clock)


async def end_of_undone_saga(
    event: DeploymentFailed, envelope: Envelope, conn: AsyncConnection, *, clock: Clock
) -> None:
    """Keep an app whose removal was undone; release an app whose rollback was."""
    await keep_app(event, envelope, conn)
    await release_after_failed_rollback(event, envelope, conn, clock=clock)


async def keep_app(event: DeploymentFailed, envelope: Envelope, conn: AsyncConnection) -> None:
    """A `remove` saga was cancelled or given up: the app takes pushes again, and can be removed again."""
    if event.saga != "remove":
        return
    await conn.execute(
        update(apps)
        .where(apps.c.app_id == envelope.appid, apps.c.removal_saga_id == envelope.correlationid)
        .where(apps.c.state == "removing")
        .values(state="active", removal_saga_id=None)
    )
