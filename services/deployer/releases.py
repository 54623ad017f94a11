"""Releases and routes in the database: which release an app has, which one serves, and the write that moves traffic.

The route's row is the truth: its saga's release is `live`. Both, and the config version's state, change in the one
transaction that compares the fence, so a crash at any moment leaves an answer to "what serves?".

All functions run inside a transaction of the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import orjson
from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.unit_of_work import database_now_ms, insert_ignore
from services.deployer import configs, observations
from services.deployer.errors import Fenced, Undone
from services.deployer.models import addons, apps, config_versions, drifts, releases, routes
from services.deployer.ports import Address

KEPT_STATES = ("pending", "live", "superseded")
"""Releases that run, are about to, or can be rolled back to."""

_LOOKED_BACK = 1000
"""Releases that are read to find the last formation with instances: more than an app gets while it is stopped."""

_JSON_COLUMNS = ("formation", "processes", "layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRelease:
    """A row of `releases`."""

    saga_id: str
    app_id: str
    number: int
    kind: str
    commit: str | None
    repository: str
    digest: str
    config_version: int
    formation: Mapping[str, int]
    processes: Sequence[str]
    """Process types that its image has."""
    layers: Sequence[str]
    manifest_hash: str
    state: str
    created_ms: int
    watched_digest: str | None = None
    """Over the files that `watch` names; None: no pattern is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRoute:
    """A row of `routes`."""

    app_id: str
    port: int
    url: str
    fence: int
    saga_id: str | None


# ── releases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def of_saga(conn: AsyncConnection, saga_id: str) -> KnownRelease | None:
    """The saga's release, if it ever had one."""
    return await _one(conn, _releases().where(releases.c.saga_id == saga_id))


async def numbered(conn: AsyncConnection, app_id: str, number: int) -> KnownRelease | None:
    """The app's release of that number."""
    return await _one(conn, _releases().where(releases.c.app_id == app_id, releases.c.number == number))


async def live(conn: AsyncConnection, app_id: str) -> KnownRelease | None:
    """The release that serves."""
    return await _one(conn, _releases().where(releases.c.app_id == app_id, releases.c.state == "live"))


async def before(conn: AsyncConnection, app_id: str, saga_id: str) -> KnownRelease | None:
    """The newest release that was not undone, besides this saga's."""
    query = _releases().where(
        releases.c.app_id == app_id, releases.c.state == "superseded", releases.c.saga_id != saga_id
    )
    return await _one(conn, query.order_by(releases.c.number.desc()).limit(1))


async def last_with_instances(conn: AsyncConnection, app_id: str, processes: Sequence[str]) -> KnownRelease | None:
    """The newest release that was live and had an instance of one of these processes, or None."""
    was_live = releases.c.state.in_(("live", "superseded", "retired"))
    query = _releases().where(releases.c.app_id == app_id, was_live).order_by(releases.c.number.desc())
    for row in await conn.execute(query.limit(_LOOKED_BACK)):
        known = _known(row)
        if any(known.formation.get(name) for name in processes):
            return known
    return None


async def in_states(conn: AsyncConnection, states: Sequence[str], *, app_id: str | None = None) -> list[KnownRelease]:
    """All releases in these states, newest first."""
    query = _releases().where(releases.c.state.in_(states))
    if app_id is not None:
        query = query.where(releases.c.app_id == app_id)
    return [_known(row) for row in await conn.execute(query.order_by(releases.c.number.desc()))]


async def page(conn: AsyncConnection, app_id: str, *, below: int | None, limit: int) -> list[KnownRelease]:
    """Newest first, beginning below that number."""
    query = _releases().where(releases.c.app_id == app_id)
    if below is not None:
        query = query.where(releases.c.number < below)
    return [_known(row) for row in await conn.execute(query.order_by(releases.c.number.desc()).limit(limit))]


async def next_number(conn: AsyncConnection, app_id: str) -> int:
    """Of a new release; undone and retired ones keep theirs."""
    top = select(func.max(releases.c.number)).where(releases.c.app_id == app_id)
    return int((await conn.execute(top)).scalar_one() or 0) + 1


async def add(conn: AsyncConnection, release: KnownRelease) -> None:
    """Insert it."""
    row = {each.name: getattr(release, each.name) for each in fields(release)}
    for name in _JSON_COLUMNS:
        row[name] = orjson.dumps(row[name]).decode()
    await conn.execute(insert(releases).values(**row))


async def refuse_for_ever(conn: AsyncConnection, app_id: str, saga_id: str) -> None:
    """A saga was undone before it had a release: whoever still works on it finds this row and stops."""
    row = {
        "saga_id": saga_id,
        "app_id": app_id,
        "number": None,
        "kind": "deploy",
        "repository": "",
        "digest": "",
        "config_version": 0,
        "formation": "{}",
        "processes": "[]",
        "layers": "[]",
        "manifest_hash": "",
        "state": "undone",
        "created_ms": await database_now_ms(conn),
    }
    await insert_ignore(conn, releases, [row])


async def is_undone(conn: AsyncConnection, saga_id: str) -> bool:
    """Whether an undo of this saga has begun here."""
    query = select(releases.c.saga_id).where(releases.c.saga_id == saga_id, releases.c.state == "undone")
    return (await conn.execute(query)).first() is not None


async def observed_until(conn: AsyncConnection, saga_id: str, first_ms: int) -> int:
    """Return when the observation of this saga's release ends; `first_ms` is stored where none is yet."""
    this = releases.c.saga_id == saga_id
    await conn.execute(
        update(releases).where(this, releases.c.observe_until_ms.is_(None)).values(observe_until_ms=first_ms)
    )
    return int((await conn.execute(select(releases.c.observe_until_ms).where(this))).scalar_one())


async def observing_until(conn: AsyncConnection, saga_id: str) -> int | None:
    """Return when the observation of this saga's release ends; None: it has not begun."""
    query = select(releases.c.observe_until_ms).where(releases.c.saga_id == saga_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def undo(conn: AsyncConnection, release: KnownRelease) -> None:
    """A release that does not serve is given up, with the config version that was made for it."""
    await conn.execute(update(releases).where(releases.c.saga_id == release.saga_id).values(state="undone"))
    await configs.give_up(conn, release.app_id, release.saga_id)


async def retire_beyond(conn: AsyncConnection, app_id: str, keep: int) -> list[KnownRelease]:
    """Superseded releases beyond the `keep` newest are retired; which ones."""
    old = (await in_states(conn, ("superseded",), app_id=app_id))[keep:]
    if old:
        await conn.execute(
            update(releases).where(releases.c.saga_id.in_([each.saga_id for each in old])).values(state="retired")
        )
    return old


async def drop_app(conn: AsyncConnection, app_id: str) -> None:
    """Remove everything of the app."""
    await observations.drop(conn, app_id)
    for table in (routes, releases, config_versions, addons, drifts, apps):
        await conn.execute(delete(table).where(table.c.app_id == app_id))


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def route_of(conn: AsyncConnection, app_id: str) -> KnownRoute | None:
    """The app's route, if it was ever deployed."""
    row = (await conn.execute(select(routes).where(routes.c.app_id == app_id))).one_or_none()
    return _route(row) if row else None


async def all_routes(conn: AsyncConnection) -> list[KnownRoute]:
    """Of every app."""
    return [_route(row) for row in await conn.execute(select(routes))]


async def add_route(conn: AsyncConnection, app_id: str, address: Address) -> None:
    """Remember the app's address; nobody serves it yet."""
    row = {"app_id": app_id, "port": address.port, "url": address.url, "fence": 0, "saga_id": None}
    await insert_ignore(conn, routes, [{**row, "moved_ms": await database_now_ms(conn)}])


async def move_traffic(
    conn: AsyncConnection, release: KnownRelease, *, fence: int, warm: KnownRelease | None = None
) -> None:
    """New requests are this release's from here on; what was live is superseded.

    Args:
        conn: The caller's transaction.
        release: Which one.
        fence: Under which the traffic moves.
        warm: The release before, which keeps running until this one was observed; None: nothing is observed.

    Raises:
        Fenced: Traffic was moved under a higher fence.
        Undone: The release was undone.
    """
    await _write_route(conn, release.app_id, release.saga_id, fence=fence)
    known = await of_saga(conn, release.saga_id)
    if known is None or known.state != "live":  # else it was moved before, and its observation may have ended
        await observations.begin(conn, release.app_id, release.saga_id, warm.saga_id if warm else None)
    others = (releases.c.app_id == release.app_id) & (releases.c.state == "live")
    await conn.execute(update(releases).where(others, releases.c.saga_id != release.saga_id).values(state="superseded"))
    allowed = update(releases).where(releases.c.saga_id == release.saga_id, releases.c.state.in_(KEPT_STATES))
    if not (await conn.execute(allowed.values(state="live"))).rowcount:
        raise Undone(f"Release {release.number} gets no traffic", why="it was undone meanwhile")
    await configs.bring_live(conn, release.app_id, release.config_version)
    await conn.execute(
        update(addons)
        .where(addons.c.app_id == release.app_id, addons.c.saga_id == release.saga_id, addons.c.state == "pending")
        .values(state="live")
    )


async def move_back(conn: AsyncConnection, release: KnownRelease, previous: KnownRelease | None, *, fence: int) -> None:
    """The undo of a live release: `previous` (None: nobody) gets the traffic, and `release` is undone.

    Raises:
        Fenced: Traffic was moved under a higher fence.
    """
    await undo(conn, release)
    if release.kind == "deploy":
        await configs.wait_again(conn, release.app_id, release.config_version)
    if previous is not None:
        await move_traffic(conn, previous, fence=fence)
    else:
        await _write_route(conn, release.app_id, None, fence=fence)
        await observations.drop(conn, release.app_id)


async def _write_route(conn: AsyncConnection, app_id: str, saga_id: str | None, *, fence: int) -> None:
    """The write that moves traffic, and compares the fence in doing so (DESIGN, section 3.3)."""
    moved = await conn.execute(
        update(routes)
        .where(routes.c.app_id == app_id, routes.c.fence <= fence)
        .values(fence=fence, saga_id=saga_id, moved_ms=await database_now_ms(conn))
    )
    if not moved.rowcount:
        raise Fenced(
            "The traffic stays where it is",
            why="a newer deployment of the app has moved it, or the app was removed",
            todo="Nothing is to be done: the newer one counts.",
        )


def _releases() -> Select[Any]:
    return select(releases).where(releases.c.number.is_not(None))


async def _one(conn: AsyncConnection, query: Select[Any]) -> KnownRelease | None:
    row = (await conn.execute(query)).first()
    return _known(row) if row else None


def _known(row: Any) -> KnownRelease:
    found = {each.name: getattr(row, each.name) for each in fields(KnownRelease)}
    return KnownRelease(**{**found, **{name: orjson.loads(found[name]) for name in _JSON_COLUMNS}})


def _route(row: Any) -> KnownRoute:
    return KnownRoute(**{each.name: getattr(row, each.name) for each in fields(KnownRoute)})
