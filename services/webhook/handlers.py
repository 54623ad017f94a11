"""What the intake hears: that an app is gone."""

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.unit_of_work import after_commit
from services.saga_coordinator.contract import DeploymentSucceeded
from services.webhook.directory import Directory
from services.webhook.models import apps


async def forget_removed_app(
    event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection, *, directory: Directory
) -> None:
    """A `remove` saga has ended: the app's name is free, and its secret is gone."""
    if event.saga != "remove":
        return
    await conn.execute(
        update(apps)
        .where(apps.c.app_id == envelope.appid, apps.c.state == "removing")
        .values(state="removed", name_key=None, webhook_secret="")
    )
    after_commit(conn, directory.forget)
