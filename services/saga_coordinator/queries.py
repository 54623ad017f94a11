"""What people ask of the sagas: lists by index, a saga with what it waits for, its log, and the audit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access
from seedwork.chassis.paging import Paging
from seedwork.errors import NotFound
from seedwork.lanes import Lane
from seedwork.saga import OPEN, SagaState
from seedwork.saga_records import from_json
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import lanes, saga_log, sagas, timers
from services.saga_coordinator.store import find, lane_from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What `GET /sagas` can be narrowed by; None: any."""

    state: str | None = None
    app: str | None = None
    """Name or id."""
    commit: str | None = None
    step: str | None = None
    needs_attention: bool | None = None
    since_ms: int | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A saga, and who has the lane that it waits for."""

    saga: SagaState
    holder: SagaState | None = None


def list_query(filters: Filters, paging: Paging, access: Access) -> Select[Any]:
    """One page and one more of the teams' sagas, newest first; each filter is the beginning of an index."""
    columns = sagas.c
    query = select(columns.origin, columns.body)
    if access.teams is not None:
        query = query.where(access.only(columns.team))
    if filters.app is not None:
        by_id = len(filters.app) == 36 and filters.app.count("-") == 4
        query = query.where((columns.app_id if by_id else columns.app) == filters.app)
    exact = {
        columns.state: filters.state,
        columns.commit_id: filters.commit,
        columns.step: filters.step,
        columns.needs_attention: filters.needs_attention,
    }
    for column, value in exact.items():
        if value is not None:
            query = query.where(column == value)
    if filters.since_ms is not None:
        query = query.where(columns.created_ms >= filters.since_ms)
    if filters.until_ms is not None:
        query = query.where(columns.created_ms < filters.until_ms)
    created_ms, saga_id = paging.after("created_ms", int), paging.after("id", str)
    if created_ms is not None:
        # MySQL finds the beginning of a range by a column, and not by a pair
        query = query.where(columns.created_ms <= created_ms)
        query = query.where(tuple_(columns.created_ms, columns.id) < (created_ms, saga_id))
    return query.order_by(columns.created_ms.desc(), columns.id.desc()).limit(paging.limit + 1)


async def list_sagas(conn: AsyncConnection, filters: Filters, paging: Paging, access: Access) -> list[Found]:
    """A page of sagas, and one more if there are more."""
    rows = await conn.execute(list_query(filters, paging, access))
    return await _with_holders(conn, [from_json(row.origin, row.body) for row in rows])


async def one_saga(conn: AsyncConnection, saga_id: str, access: Access) -> Found | None:
    """Return that saga; None: there is none of this id, or it is another team's."""
    found = [saga for saga in (await find(conn, [saga_id])).values() if access.sees(saga.origin.team)]
    return (await _with_holders(conn, found))[0] if found else None


def unknown_saga(saga_id: str) -> NotFound:
    """Return the one answer for a saga that does not exist and for another team's."""
    return NotFound(
        f"There is no saga {saga_id[:60]!r}",
        todo="Run `knarr sagas list` to list them. A new one appears after a few milliseconds.",
    )


async def _with_holders(conn: AsyncConnection, page: Sequence[SagaState]) -> list[Found]:
    apps = {saga.origin.app_id for saga in page if saga.state == "QUEUED"}
    if not apps:
        return [Found(saga) for saga in page]
    rows = await conn.execute(select(lanes.c.app_id, lanes.c.holder).where(lanes.c.app_id.in_(apps)))
    holder_ids = {row.app_id: row.holder for row in rows if row.holder is not None}
    holders = await find(conn, list(holder_ids.values()))
    return [_found(saga, holders.get(holder_ids.get(saga.origin.app_id, ""))) for saga in page]


def _found(saga: SagaState, holder: SagaState | None) -> Found:
    waits = saga.state == "QUEUED" and holder is not None and holder.id != saga.id
    return Found(saga, holder if waits else None)


async def versions_of(db: Database, saga_ids: Sequence[str]) -> dict[str, int]:
    """How often each of these sagas was changed; without those that are not there."""
    query = select(sagas.c.id, sagas.c.version).where(sagas.c.id.in_(saga_ids))

    async def look(conn: AsyncConnection) -> dict[str, int]:
        return {row.id: row.version for row in await conn.execute(query)}

    return await db.read(look)


async def log_page(
    conn: AsyncConnection, saga_id: str, after_seq: int, limit: int, access: Access
) -> list[dict[str, Any]]:
    """Entries after that one, oldest first; none of another team's saga."""
    query = (
        select(saga_log)
        .where(saga_log.c.saga_id == saga_id, saga_log.c.seq > after_seq)
        .where(*_of_visible_saga(saga_id, access))
        .order_by(saga_log.c.seq)
        .limit(limit)
    )
    return [dict(row) for row in (await conn.execute(query)).mappings()]


def _of_visible_saga(saga_id: str, access: Access) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that the saga's team is visible; none for a caller who sees every team."""
    if access.teams is None:
        return ()
    return (exists().where(sagas.c.id == saga_id, access.only(sagas.c.team)),)


async def forgotten(conn: AsyncConnection) -> list[str]:
    """The audit: what nothing and nobody will move, one sentence each; always empty, or knarr has a bug.

    A saga that has not ended must have a timer (an open command has one), a lane ahead of it, or a person to wait for;
    a lane must be held by a saga that has not ended, or stand empty.
    """
    return await _forgotten_sagas(conn) + await _forgotten_lanes(conn)


async def _forgotten_sagas(conn: AsyncConnection) -> list[str]:
    query = (
        select(sagas.c.origin, sagas.c.body, lanes.c.body.label("lane"))
        .outerjoin(timers, timers.c.saga_id == sagas.c.id)
        .outerjoin(lanes, lanes.c.app_id == sagas.c.app_id)
        .where(sagas.c.state.in_(OPEN), timers.c.id.is_(None))
    )
    found = []
    for row in await conn.execute(query):
        saga = from_json(row.origin, row.body)
        lane = lane_from_json(row.lane) if row.lane else Lane(app_id=saga.origin.app_id)
        waits_in_lane = saga.state == "QUEUED" and lane.is_waiting(saga.id) and lane.holder is not None
        if not (waits_in_lane or saga.state == "STUCK" or saga.pause is not None):
            found.append(f"saga {saga.id} is {saga.state} and waits for nothing")
    return found


async def _forgotten_lanes(conn: AsyncConnection) -> list[str]:
    query = (
        select(lanes.c.app_id, lanes.c.holder, sagas.c.state)
        .outerjoin(sagas, sagas.c.id == lanes.c.holder)
        .where(and_(lanes.c.holder.is_not(None), or_(sagas.c.id.is_(None), sagas.c.state.not_in(OPEN))))
    )
    rows = await conn.execute(query)
    return [f"the lane of app {row.app_id} is held by saga {row.holder}, which is {row.state}" for row in rows]
