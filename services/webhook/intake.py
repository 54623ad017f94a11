"""A webhook in; verified, stored, judged, and its deployments asked for, in one transaction before the answer.

A delivery that no secret verifies leaves no trace. A verified one is stored whatever becomes of it, with the reason.
Per app, the same body or the same delivery id starts one deployment, for ever; so does a push that the poller found
before its webhook came. Webhooks that arrive together are written together, by a handful of statements.
To send a stored delivery again, on purpose, is `redelivery.py`.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.chassis.tracing import current_traceparent
from seedwork.clock import Clock
from seedwork.errors import Unavailable
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Batched, Database
from services.webhook import github
from services.webhook.deployments import APP_REQUESTED
from services.webhook.directory import Directory, Picture
from services.webhook.holds import PUSH_HELD
from services.webhook.judging import Answer, Arrival, Case, Desk, Judgement
from services.webhook.models import apps, deliveries, delivery_deployments
from services.webhook.verifying import Gone, Verifier, unverified

_LOOKS = 5
"""Each look but the first means that an app changed in the last milliseconds."""

_INLINE_BYTES = 64 * 1024
"""Reading this much takes some 0.1 ms; more of it goes to a thread."""

# Built once: putting a statement together costs more than running it.
_links = delivery_deployments.c
_APPS = (
    select(apps)
    .where(apps.c.repository_key.in_(bindparam("keys", expanding=True)), apps.c.state != "removed")
    .order_by(apps.c.app_id)
    .with_for_update()
)
_EARLIER = (
    select(_links.app_id, _links.saga_id, _links.body_sha256, _links.provider_id)
    .where(
        or_(
            and_(
                _links.app_id.in_(bindparam("app_ids", expanding=True)),
                _links.body_sha256.in_(bindparam("bodies", expanding=True)),
            ),
            and_(
                _links.app_id.in_(bindparam("app_ids", expanding=True)),
                _links.provider_id.in_(bindparam("provider_ids", expanding=True)),
            ),
        )
    )
    .order_by(_links.saga_id.desc())
)
_INSERT_DELIVERIES = insert(deliveries)
_INSERT_LINKS = insert(delivery_deployments)


async def _never() -> bool:
    return False


class Intake:
    """Takes webhooks in."""

    def __init__(self, db: Database, outbox: Outbox, directory: Directory, clock: Clock) -> None:
        self._outbox = outbox
        self._directory = directory
        self._clock = clock
        self._verifier = Verifier(directory)
        self._writes: Batched[Case, Judgement] = Batched(db, self._store)

    async def receive(self, arrival: Arrival, gone: Gone = _never) -> Answer:
        """Judge and store a webhook.

        Args:
            arrival: The request.
            gone: Whether its sender has gone: then a signature that waits for its turn is not compared.

        Raises:
            Unauthenticated: No app's secret made its signature; nothing was stored.
            InvalidInput: It is signed, but it cannot be read; nothing was stored.
            DatabaseUnavailable: It could not be stored.
        """
        picture = await self._directory.picture()
        for _ in range(_LOOKS):
            picture, holders = await self._verifier.verified(arrival, picture, gone)
            judgement = await self._writes.write(await _case(arrival, picture, holders))
            if isinstance(judgement, Answer):
                crash.point("webhook.after_commit", arrival.event or "")
                return judgement
            if judgement == "unverified":
                raise unverified("no app of this repository has the secret that makes its signature")
            picture = await self._directory.newer(picture)
        raise Unavailable("The delivery could not be judged", why="its apps change too quickly", todo="Send it again.")

    async def _store(self, conn: AsyncConnection, cases: Sequence[Case]) -> Sequence[Judgement]:
        """Everything about these deliveries, in one transaction that holds their apps."""
        rows = await _apps_of(conn, cases)
        desk = Desk(rows, await _earlier(conn, rows, cases), self._clock.now_ms())
        judgements = [desk.take(case) for case in cases]
        if desk.deliveries:
            await conn.execute(_INSERT_DELIVERIES, desk.deliveries)
        if desk.links:
            await conn.execute(_INSERT_LINKS, desk.links)
        if desk.changed_apps:
            await conn.execute(APP_REQUESTED, desk.changed_apps)
        if desk.held_apps:
            await conn.execute(PUSH_HELD, desk.held_apps)
        await self._outbox.add(conn, desk.messages)
        crash.point("webhook.before_commit", cases[0].arrival.event or "")
        return judgements


async def _case(arrival: Arrival, picture: Picture, holders: frozenset[bytes]) -> Case:
    """What a verified delivery says."""

    def read() -> Case:
        event = github.read_event(arrival.event, arrival.body, arrival.content_type)
        return Case(arrival, event, holders, picture, hashlib.sha256(arrival.body).hexdigest(), traceparent)

    traceparent = current_traceparent()
    return read() if len(arrival.body) <= _INLINE_BYTES else await asyncio.to_thread(read)


async def _apps_of(conn: AsyncConnection, cases: Sequence[Case]) -> Sequence[Row[Any]]:
    """The apps of the repositories that the deliveries name, held until the transaction ends."""
    keys = {case.repository_key for case in cases if case.repository_key is not None}
    return (await conn.execute(_APPS, {"keys": sorted(keys)})).all() if keys else []


async def _earlier(
    conn: AsyncConnection, rows: Sequence[Row[Any]], cases: Sequence[Case]
) -> Sequence[tuple[str, str, str | None, str | None]]:
    """The deployments that these apps got by the same bodies or ids; newest first, so that the oldest one stays."""
    if not rows:
        return []
    wanted = {
        "app_ids": [row.app_id for row in rows],
        "bodies": [case.body_sha256 for case in cases],
        "provider_ids": [case.arrival.provider_id for case in cases if case.arrival.provider_id is not None],
    }
    found = await conn.execute(_EARLIER, wanted)
    return [(row.app_id, row.saga_id, row.body_sha256, row.provider_id) for row in found]
