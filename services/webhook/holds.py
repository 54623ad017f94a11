"""Holds: while an app is held, its pushes are recorded and not deployed.

A rollback holds its app, so that the next push does not bring the release back that was taken away. An operator holds
and releases an app with `knarr apps hold` and `knarr apps release`. A deployment that is requested by name
(`knarr deploy --app shop --ref main`) is not automatic, and is never held.
"""

from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.messages import Envelope
from services.deployer.contract import ReleaseRequested
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.webhook.models import apps

_RELEASED: dict[str, None] = dict.fromkeys(("held_ms", "held_by", "held_why", "held_commit"))

PUSH_HELD = update(apps).where(apps.c.app_id == bindparam("wanted_id")).values(held_commit=bindparam("held"))
"""Stores the commit of a push that was not deployed."""


def reason(app: Row[Any]) -> str:
    """Return why a push of this app is not deployed, with the command that ends the hold."""
    why = f" ({app.held_why})" if app.held_why else ""
    return f"automatic deployment of {app.name} is held{why}: `knarr apps release {app.name}` ends the hold"


async def hold(
    conn: AsyncConnection, app_id: str, *, now_ms: int, by: str, why: str, saga_id: str | None = None
) -> None:
    """Hold the app. A hold that stands keeps its time and its reason.

    Args:
        conn: The transaction.
        app_id: The app.
        now_ms: The time of the hold, milliseconds since 1970.
        by: The name of the token, or empty.
        why: The reason in words.
        saga_id: The rollback that holds it; the same rollback holds it once, also after a release.
    """
    once = update(apps).where(apps.c.app_id == app_id)
    if saga_id is not None:
        once = once.where(apps.c.held_saga_id.is_distinct_from(saga_id))
        new = await conn.execute(once.values(held_saga_id=saga_id))
        if not new.rowcount:
            return
    values = {"held_ms": now_ms, "held_by": by[:100], "held_why": why[:200], "held_commit": None}
    await conn.execute(update(apps).where(apps.c.app_id == app_id, apps.c.held_ms.is_(None)).values(values))


async def release(conn: AsyncConnection, app_id: str, *, now_ms: int) -> None:
    """End the hold; the poller asks for the tip of the app's ref next."""
    held = (apps.c.app_id == app_id, apps.c.held_ms.is_not(None))
    await conn.execute(update(apps).where(*held).values({**_RELEASED, "next_poll_ms": now_ms}))


async def hold_after_rollback(
    event: ReleaseRequested, envelope: Envelope, conn: AsyncConnection, *, clock: Clock
) -> None:
    """Hold an app whose rollback was requested."""
    if event.kind != "rollback":
        return
    why = "rollback" if event.rollback_to is None else f"rollback to release {event.rollback_to}"
    saga_id = envelope.correlationid
    await hold(conn, envelope.appid, now_ms=clock.now_ms(), by=event.requested_by, why=why, saga_id=saga_id)


async def release_after_failed_rollback(
    event: DeploymentFailed, envelope: Envelope, conn: AsyncConnection, *, clock: Clock
) -> None:
    """End the hold of a rollback that was undone: the release that should go is live, and a push may mend it."""
    if event.saga != "release":
        return
    held = (apps.c.held_saga_id == envelope.correlationid, apps.c.held_why.startswith("rollback"))
    app_id = await conn.scalar(select(apps.c.app_id).where(apps.c.app_id == envelope.appid, *held))
    if app_id is not None:
        await release(conn, app_id, now_ms=clock.now_ms())


async def hold_after_compensation(
    event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection, *, clock: Clock
) -> None:
    """Hold an app whose release a compensation took back: no other event tells that it began."""
    if event.saga == "release" and event.kind == "rollback":
        saga_id = envelope.correlationid
        await hold(conn, envelope.appid, now_ms=clock.now_ms(), by="", why="compensated release", saga_id=saga_id)
