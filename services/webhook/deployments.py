"""Deployments are asked for here: a number, a saga id and the message about it, in the caller's transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.chassis.tracing import current_traceparent
from seedwork.messages import envelope, new_id
from seedwork.outbox import Outbox
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
    is_tip: bool = False
    """Whether the commit is the tip of the app's ref, so that the poller need not ask for it."""
    traceparent: str | None = None
    """The trace of the request that led here; the current one, if not given."""


@dataclass(frozen=True, slots=True)
class Started:
    """A deployment that was asked for."""

    saga_id: str
    app_id: str
    number: int


LOCKED_APP = select(apps).where(apps.c.app_id == bindparam("wanted_id")).with_for_update()
"""One app, held until the transaction ends: its numbers are given one after the other."""

_REQUESTED = (
    update(apps)
    .where(apps.c.app_id == bindparam("wanted_id"))
    .values(last_number=bindparam("number"), last_commit=bindparam("commit"), tip_commit=bindparam("tip"))
)


async def request_deployment(conn: AsyncConnection, outbox: Outbox, app: Row[Any], wanted: Wanted) -> Started:
    """Give it a number and tell the coordinator, if the transaction commits.

    Args:
        conn: The transaction, in which the app's row was read and is held.
        outbox: Where the message is left.
        app: The app's row; its `last_number` must be that of the database.
        wanted: What to deploy.
    """
    number = app.last_number + 1
    saga_id = new_id()
    await conn.execute(
        _REQUESTED,
        {
            "wanted_id": app.app_id,
            "number": number,
            "commit": wanted.commit,
            "tip": wanted.commit if wanted.is_tip else app.tip_commit,
        },
    )
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
    )
    await outbox.add(
        conn,
        [
            envelope(
                message,
                source="webhook",
                saga_id=saga_id,
                app_id=app.app_id,
                team=app.team,
                app=app.name,
                traceparent=wanted.traceparent or current_traceparent(),
            )
        ],
    )
    return Started(saga_id, app.app_id, number)
