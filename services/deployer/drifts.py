"""Differences between what releases want and what runs, as the API shows them: found by the runtime, stored here.

All functions run inside a transaction of the caller.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.unit_of_work import insert_ignore
from services.deployer.models import drifts
from services.deployer.ports import Drift

SHOWN = 20
"""Differences of one app that are kept."""
_WHAT_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDrift:
    """A row of `drifts`."""

    saga_id: str
    what: str
    at_ms: int
    repaired_ms: int | None


async def of_app(conn: AsyncConnection, app_id: str) -> list[KnownDrift]:
    """Return the latest differences of an app, newest first."""
    query = select(drifts).where(drifts.c.app_id == app_id).order_by(drifts.c.at_ms.desc()).limit(SHOWN)
    return [
        KnownDrift(saga_id=row.saga_id, what=row.what, at_ms=row.at_ms, repaired_ms=row.repaired_ms)
        for row in await conn.execute(query)
    ]


async def record(conn: AsyncConnection, drift: Drift) -> None:
    """Store what a comparison found: one row for each difference, however often it is seen."""
    what = drift.what[:_WHAT_CHARS]
    row = {"app_id": drift.app_id, "key": _key(drift, what), "saga_id": drift.saga_id, "what": what}
    seen = {"at_ms": drift.at_ms, "repaired_ms": drift.at_ms if drift.repaired else None}
    if not await insert_ignore(conn, drifts, [{**row, **seen}]):
        this = update(drifts).where(drifts.c.app_id == drift.app_id, drifts.c.key == row["key"])
        await conn.execute(this.values(repaired_ms=seen["repaired_ms"]) if drift.repaired else this.values(**seen))
    await _forget_old(conn, drift.app_id)


async def _forget_old(conn: AsyncConnection, app_id: str) -> None:
    mine = drifts.c.app_id == app_id
    if int((await conn.execute(select(func.count()).select_from(drifts).where(mine))).scalar_one()) <= SHOWN:
        return
    keys = [row.key for row in await conn.execute(select(drifts.c.key).where(mine).order_by(drifts.c.at_ms.desc()))]
    await conn.execute(delete(drifts).where(mine, drifts.c.key.in_(keys[SHOWN:])))


def _key(drift: Drift, what: str) -> str:
    return hashlib.sha256(f"{drift.saga_id} {what}".encode()).hexdigest()
