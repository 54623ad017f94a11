"""Apps in the database: names, how long releases are observed, and numbers of instances that persons set.

All functions run inside a transaction of the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access
from seedwork.errors import InvalidInput
from seedwork.unit_of_work import database_now_ms, insert_ignore
from services.deployer.models import apps


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app as this service knows it."""

    app_id: str
    name: str
    team: str


async def know_app(conn: AsyncConnection, app: App) -> None:
    """Insert the app, or take over its name and team."""
    row = {"app_id": app.app_id, "name": app.name, "team": app.team}
    if not await insert_ignore(conn, apps, [{**row, "created_ms": await database_now_ms(conn)}]):
        await conn.execute(update(apps).where(apps.c.app_id == app.app_id).values(name=app.name, team=app.team))


async def find_app(conn: AsyncConnection, name_or_id: str, access: Access, *, team: str | None = None) -> App | None:
    """Find an app by id or name; among several of one name those of `team` count first, then the newest.

    Raises:
        InvalidInput: Several teams have an app of that name, and `team` is none of them.
    """
    query = select(apps).where((apps.c.app_id == name_or_id) | (apps.c.name == name_or_id), access.only(apps.c.team))
    rows = (await conn.execute(query.order_by(apps.c.team != team, apps.c.app_id.desc()))).all()
    if not rows:
        return None
    row = rows[0]
    if row.team != team and len({each.team for each in rows}) > 1:
        raise InvalidInput(f"Several teams have an app {name_or_id[:60]!r}", todo="Use the app's id.")
    return App(app_id=row.app_id, name=row.name, team=row.team)


async def all_apps(conn: AsyncConnection) -> Mapping[str, App]:
    """By id."""
    rows = await conn.execute(select(apps))
    return {row.app_id: App(app_id=row.app_id, name=row.name, team=row.team) for row in rows}


# ── observation ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def set_observe_s(conn: AsyncConnection, app_id: str, seconds: float | None) -> None:
    """Store the length of the observation; None: the platform's default."""
    await conn.execute(update(apps).where(apps.c.app_id == app_id).values(observe_s=seconds))


async def observe_s(conn: AsyncConnection, app_id: str) -> float | None:
    """Return the length of the observation in seconds; None: the platform's default."""
    return (await conn.execute(select(apps.c.observe_s).where(apps.c.app_id == app_id))).scalar_one_or_none()


async def note_newest(conn: AsyncConnection, app_id: str, saga_id: str) -> None:
    """Store the newest saga of the app. Ids of sagas are ordered by time, so an older one changes nothing."""
    older = or_(apps.c.newest_saga.is_(None), apps.c.newest_saga < saga_id)
    await conn.execute(update(apps).where(apps.c.app_id == app_id, older).values(newest_saga=saga_id))


async def newest_saga(conn: AsyncConnection, app_id: str) -> str | None:
    """Return the newest saga that was requested for the app."""
    return (await conn.execute(select(apps.c.newest_saga).where(apps.c.app_id == app_id))).scalar_one_or_none()


# ── numbers of instances ─────────────────────────────────────────────────────────────────────────────────────────────


async def scale_of(conn: AsyncConnection, app_id: str) -> Mapping[str, int]:
    """Return the numbers of instances that persons set, by process type."""
    text = (await conn.execute(select(apps.c.scale).where(apps.c.app_id == app_id))).scalar_one_or_none()
    scale: Mapping[str, int] = orjson.loads(text) if text else {}
    return scale


async def note_scale(conn: AsyncConnection, app_id: str, wanted: Mapping[str, int]) -> None:
    """Store numbers of instances: a process type that disappears and comes back gets its number again."""
    scale = {**await scale_of(conn, app_id), **wanted}
    await conn.execute(update(apps).where(apps.c.app_id == app_id).values(scale=orjson.dumps(scale).decode()))
