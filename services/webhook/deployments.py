"""Deployments are asked for here: a number, a saga id and the message about it, in the caller's transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.chassis.tracing import current_traceparent
from seedwork.messages import Envelope, envelope, new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import after_commit
from services.webhook.app_settings import settings_of
from services.webhook.contract import DeploymentRequested, Trigger
from services.webhook.models import apps


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody wants to see running."""

    commit: str | None
    """40 hex digits; None: an upload."""
    trigger: Trigger
    requested_by: str
    ref: str | None = None
    source_digest: str | None = None
    parent_id: str | None = None
    """The saga that this one repeats."""
    force: bool = False
    traceparent: str | None = None
    """The trace of the request that led here; the current one, if not given."""


LOCKED_APP = select(apps).where(apps.c.app_id == bindparam("wanted_id")).with_for_update()
"""One app, held until the transaction ends: its numbers are given one after the other."""

APP_REQUESTED = (
    update(apps)
    .where(apps.c.app_id == bindparam("wanted_id"))
    .values(last_number=bindparam("number"), last_commit=bindparam("commit"), tip_commit=bindparam("tip"))
)
"""Writes down what was asked for last."""


def deployment(app: Row[Any], wanted: Wanted, number: int) -> Envelope:
    """The message that asks for a deployment; its correlation id is the new saga's.

    Args:
        app: The app's row.
        wanted: What to deploy.
        number: Its place in the app's order.
    """
    message = DeploymentRequested(
        app=app.name,
        repository=app.repository,
        clone_url=app.clone_url,
        ref=wanted.ref,
        commit=wanted.commit,
        source_digest=wanted.source_digest,
        root=app.root,
        trigger=wanted.trigger,
        number=number,
        parent_id=wanted.parent_id,
        force=wanted.force,
        requested_by=wanted.requested_by,
        settings=settings_of(app),
    )
    return envelope(
        message,
        source="webhook",
        saga_id=new_id(),
        app_id=app.app_id,
        team=app.team,
        app=app.name,
        traceparent=wanted.traceparent or current_traceparent(),
    )


async def request_deployment(
    conn: AsyncConnection, outbox: Outbox, app: Row[Any], wanted: Wanted, *, is_tip: bool = False
) -> str:
    """Give it a number and tell the coordinator, if the transaction commits; the saga's id.

    Args:
        conn: The transaction, in which the app's row was read and is held.
        outbox: Where the message is left.
        app: The app's row; its `last_number` must be that of the database.
        wanted: What to deploy.
        is_tip: Whether its commit is the tip of the app's ref, so that the poller need not ask for it.
    """
    number = app.last_number + 1
    tip = wanted.commit if is_tip else app.tip_commit
    await conn.execute(APP_REQUESTED, {"wanted_id": app.app_id, "number": number, "commit": wanted.commit, "tip": tip})
    message = deployment(app, wanted, number)
    await outbox.add(conn, [message])
    after_commit(conn, lambda: crash.point("webhook.after_commit", wanted.trigger))
    crash.point("webhook.before_commit", wanted.trigger)
    return message.correlationid
