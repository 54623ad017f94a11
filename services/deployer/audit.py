"""The audit of an app's secrets: who read values of config vars, and when.

An entry is written before the values leave: what cannot be recorded is not shown. It outlives its app.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access, Caller
from seedwork.messages import new_id
from seedwork.unit_of_work import database_now_ms
from services.deployer.apps import App
from services.deployer.models import audit

KEEP_MS = 2 * 366 * 86_400_000
"""Age in milliseconds at which an entry is deleted: two years."""
_WHAT_CHARS = 500

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row."""

    entry_id: str
    at_ms: int
    team: str
    app_id: str
    app: str
    by: str
    what: str


async def record(conn: AsyncConnection, app: App, caller: Caller, what: str) -> None:
    """Write an entry; old ones are deleted."""
    now_ms = await database_now_ms(conn)
    await conn.execute(
        insert(audit).values(
            entry_id=new_id(),
            at_ms=now_ms,
            team=app.team,
            app_id=app.app_id,
            app=app.name,
            by=caller.name,
            what=what[:_WHAT_CHARS],
        )
    )
    await conn.execute(delete(audit).where(audit.c.at_ms < now_ms - KEEP_MS))
    log.info("config.revealed", app=app.name, team=app.team, by=caller.name)


async def page(
    conn: AsyncConnection, access: Access, *, app_id: str | None, below: str | None, limit: int
) -> Sequence[Entry]:
    """Return entries of the teams, newest first; `below`: older than the entry of that id."""
    query = select(audit).where(access.only(audit.c.team)).order_by(audit.c.entry_id.desc()).limit(limit)
    if app_id is not None:
        query = query.where(audit.c.app_id == app_id)
    if below is not None:
        query = query.where(audit.c.entry_id < below)
    return [Entry(**row) for row in (await conn.execute(query)).mappings()]
