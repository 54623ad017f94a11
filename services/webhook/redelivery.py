"""Deliveries as they are shown, and sending one again: deliberate, so nothing is a duplicate and order does not matter.

A delivery that is sent again starts a new deployment for each app that it started one for, linked to the latest of
them, and for each app that holds the secret which signed it: an app that was made too late can be caught up.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import EVERY_TEAM, Access, Caller
from seedwork.chassis.paging import Paging
from seedwork.errors import Conflict, NotFound, TooLarge, Unauthenticated
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.webhook import github
from services.webhook.deployments import Wanted, request_deployment
from services.webhook.directory import Directory, Picture
from services.webhook.github import Push
from services.webhook.judging import Arrival
from services.webhook.models import apps, deliveries, delivery_deployments
from services.webhook.verifying import candidates_of

_SHOWN = tuple(each for each in deliveries.c if each.name not in {"headers", "body"})


@dataclass(frozen=True, slots=True)
class Delivery:
    """A stored delivery and its deployments, the first one first."""

    row: Row[*tuple[Any, ...]]
    deployments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Again:
    """A stored delivery on its way through once more."""

    delivery_id: str
    row: Row[*tuple[Any, ...]]
    arrival: Arrival
    push: Push
    holders: frozenset[bytes]
    picture: Picture
    caller: Caller


class Deliveries:
    """What arrived and what became of it."""

    def __init__(self, db: Database, outbox: Outbox, directory: Directory) -> None:
        self._db = db
        self._outbox = outbox
        self._directory = directory

    async def page(self, paging: Paging, access: Access) -> Sequence[Delivery]:
        """Return up to `paging.limit + 1` deliveries, the newest first."""
        query = select(*_SHOWN).order_by(deliveries.c.delivery_id.desc()).limit(paging.limit + 1)
        if access.teams is not None:
            query = query.where(access.only(deliveries.c.team))
        if after := paging.after("id", str):
            query = query.where(deliveries.c.delivery_id < after)

        async def load(conn: AsyncConnection) -> Sequence[Delivery]:
            rows = (await conn.execute(query)).all()
            linked = await _linked(conn, [row.delivery_id for row in rows], access)
            return [Delivery(row, tuple(linked.get(row.delivery_id, ()))) for row in rows]

        return await self._db.read(load)

    async def get(self, delivery_id: str, access: Access) -> Delivery:
        """One delivery.

        Raises:
            NotFound: No such delivery, or it is another team's.
        """

        async def load(conn: AsyncConnection) -> Delivery:
            row = (await conn.execute(select(*_SHOWN).where(deliveries.c.delivery_id == delivery_id))).one_or_none()
            if row is None or not access.sees(row.team):
                raise _unknown(delivery_id)
            linked = await _linked(conn, [delivery_id], access)
            return Delivery(row, tuple(linked.get(delivery_id, ())))

        return await self._db.read(load)

    async def redeliver(self, delivery_id: str, caller: Caller) -> tuple[str, ...]:
        """Start new deployments from a stored delivery; their saga ids, one at least.

        Raises:
            NotFound: No such delivery, or it is another team's.
            Conflict: It starts nothing; the text says why.
        """
        row = await self._db.read(partial(_stored, delivery_id=delivery_id, access=caller.access))
        if row is None:
            raise _unknown(delivery_id)
        if not row.body:
            raise _nothing_to_start("its body is not kept any more: it is older than KNARR_DELIVERY_BODY_KEEP_DAYS")
        arrival = Arrival(orjson.loads(row.headers), row.body)
        push = github.read_event(arrival.event, arrival.body, arrival.content_type)
        if not isinstance(push, Push) or push.commit is None:
            raise _nothing_to_start(row.reason or f"it is no push of a commit, but {row.event}")
        picture = await self._directory.newer(await self._directory.picture())
        digest = github.signature(arrival.headers.get("x-hub-signature-256")) or ""
        holders: frozenset[bytes] = frozenset()
        with contextlib.suppress(Unauthenticated, TooLarge):  # then the apps that it led to before are the only ones
            candidates = candidates_of(picture, (github.repository_key(push.repository),), len(arrival.body))
            holders = await asyncio.to_thread(github.signers, candidates, arrival.body, digest)
        again = _Again(delivery_id, row, arrival, push, holders, picture, caller)
        started = await self._db.write(partial(self._start, again=again))
        if not started:
            raise _nothing_to_start("none of its apps is active, follows its ref and holds the secret that signed it")
        return started

    async def _start(self, conn: AsyncConnection, *, again: _Again) -> tuple[str, ...]:
        parents = await self._parents(conn, again.delivery_id)
        links = [
            await self._start_one(conn, again, app, parents.get(app.app_id))
            for app in await _apps_concerned(conn, again, list(parents))
            if _is_concerned(app, again, parents)
        ]
        if not links:
            return ()
        count = sum(1 for _ in (await _linked(conn, [again.delivery_id], EVERY_TEAM)).get(again.delivery_id, ()))
        rows = [link | {"position": count + index} for index, link in enumerate(links)]
        await conn.execute(insert(delivery_deployments), rows)
        await conn.execute(
            update(deliveries)
            .where(deliveries.c.delivery_id == again.delivery_id, deliveries.c.status.in_(("ignored", "held")))
            .values(status="accepted", reason=None)
        )
        return tuple(link["saga_id"] for link in links)

    async def _start_one(
        self, conn: AsyncConnection, again: _Again, app: Row[Any], parent_id: str | None
    ) -> dict[str, Any]:
        wanted = Wanted(
            commit=again.push.commit,
            ref=again.push.ref,
            trigger="push",
            requested_by=again.caller.name,
            parent_id=parent_id,
            force=True,
        )
        saga_id = await request_deployment(conn, self._outbox, app, wanted)
        provider_id, body_sha256 = again.arrival.provider_id, again.row.body_sha256
        first = not await _came_before(conn, app.app_id, provider_id, body_sha256)
        return {
            "delivery_id": again.delivery_id,
            "saga_id": saga_id,
            "app_id": app.app_id,
            "provider_id": provider_id if first else None,
            "body_sha256": body_sha256 if first else None,
        }

    async def _parents(self, conn: AsyncConnection, delivery_id: str) -> Mapping[str, str]:
        """The latest deployment of each app that this delivery led to."""
        links = delivery_deployments.c
        rows = await conn.execute(
            select(links.app_id, links.saga_id).where(links.delivery_id == delivery_id).order_by(links.position)
        )
        return {row.app_id: row.saga_id for row in rows}


async def _apps_concerned(conn: AsyncConnection, again: _Again, linked: Sequence[str]) -> Sequence[Row[Any]]:
    key = github.repository_key(again.push.repository)
    query = select(apps).where(or_(apps.c.app_id.in_(linked), apps.c.repository_key == key))
    return (await conn.execute(query.order_by(apps.c.app_id).with_for_update())).all()


def _is_concerned(app: Row[Any], again: _Again, parents: Mapping[str, str]) -> bool:
    if app.state != "active" or not again.caller.access.sees(app.team):
        return False
    if app.app_id in parents:
        return True
    holds = again.picture.secrets.get((app.app_id, app.secret_version)) in again.holders
    return holds and bool(app.ref == again.push.ref)


async def _came_before(conn: AsyncConnection, app_id: str, provider_id: str | None, body_sha256: str) -> bool:
    """Whether the app got a deployment by this body or this delivery id: then that one stays the first."""
    links = delivery_deployments.c
    same = links.body_sha256 == body_sha256
    if provider_id is not None:
        same = or_(same, links.provider_id == provider_id)
    return await conn.scalar(select(links.saga_id).where(links.app_id == app_id, same).limit(1)) is not None


async def _stored(conn: AsyncConnection, *, delivery_id: str, access: Access) -> Row[*tuple[Any, ...]] | None:
    query = select(deliveries).where(deliveries.c.delivery_id == delivery_id, access.only(deliveries.c.team))
    return (await conn.execute(query)).one_or_none()


async def _linked(conn: AsyncConnection, delivery_ids: Sequence[str], access: Access) -> Mapping[str, Sequence[str]]:
    """Return the sagas of the teams' apps by delivery: one delivery may have led to deployments of several teams."""
    links = delivery_deployments.c
    query = select(links.delivery_id, links.saga_id).where(links.delivery_id.in_(delivery_ids))
    if access.teams is not None:
        query = query.join(apps, apps.c.app_id == links.app_id).where(access.only(apps.c.team))
    rows = await conn.execute(query.order_by(links.delivery_id, links.position))
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.delivery_id, []).append(row.saga_id)
    return found


def _unknown(delivery_id: str) -> NotFound:
    return NotFound(f"There is no delivery {delivery_id[:60]!r}", todo="Run `knarr webhook deliveries` to list them.")


def _nothing_to_start(why: str) -> Conflict:
    return Conflict(
        "Sending this delivery again starts nothing",
        why=why,
        todo="Push again, or deploy a folder with `knarr deploy DIR --app APP`.",
    )
