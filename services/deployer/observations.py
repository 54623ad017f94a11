"""Observations that are not over: which release is observed, and which one before it stays warm meanwhile.

At most one row per app, written in the transaction that moves the traffic. `open`: the release before keeps running,
also over a restart of this service. `closed`: the observation has passed, and the release before is being stopped.
`given_up`: the saga ended without an undo of its release, so the reconciler stops the release before.

All functions run inside a transaction of the caller.
"""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.deployer.models import observations, releases


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A release that nothing needs warm any more, and that still may run."""

    app_id: str
    saga_id: str
    """Whose observation kept it warm."""
    warm_saga_id: str
    serves: bool
    """True: it has the traffic again, so it is not stopped."""


async def begin(conn: AsyncConnection, app_id: str, saga_id: str, warm_saga_id: str | None) -> None:
    """Replace the app's observation by this saga's; `warm_saga_id` None: there is no release before."""
    await drop(conn, app_id)
    if warm_saga_id is not None:
        row = {"app_id": app_id, "saga_id": saga_id, "warm_saga_id": warm_saga_id, "state": "open"}
        await conn.execute(insert(observations).values(**row))


async def close(conn: AsyncConnection, saga_id: str) -> None:
    """The observation of this saga's release has passed."""
    await conn.execute(update(observations).where(observations.c.saga_id == saga_id).values(state="closed"))


async def give_up(conn: AsyncConnection, saga_id: str) -> None:
    """This saga ended without success, and its release may have the traffic still."""
    await conn.execute(update(observations).where(observations.c.saga_id == saga_id).values(state="given_up"))


async def end(conn: AsyncConnection, saga_id: str) -> None:
    """The release before has stopped, or serves again."""
    await conn.execute(delete(observations).where(observations.c.saga_id == saga_id))


async def drop(conn: AsyncConnection, app_id: str) -> None:
    """Forget the app's observation."""
    await conn.execute(delete(observations).where(observations.c.app_id == app_id))


async def is_closed(conn: AsyncConnection, saga_id: str) -> bool:
    """Whether the observation of this saga's release has passed, in an earlier run that was interrupted after it."""
    query = select(observations.c.state).where(observations.c.saga_id == saga_id)
    return (await conn.execute(query)).scalar_one_or_none() == "closed"


async def warm(conn: AsyncConnection) -> dict[str, str]:
    """Return the saga whose release stays warm, by the saga whose release is observed."""
    query = (
        select(observations.c.saga_id, observations.c.warm_saga_id)
        .join(releases, releases.c.saga_id == observations.c.warm_saga_id)
        .where(observations.c.state == "open", releases.c.state == "superseded")
    )
    return {str(row.saga_id): str(row.warm_saga_id) for row in await conn.execute(query)}


async def is_needed(conn: AsyncConnection, warm_saga_id: str) -> bool:
    """Whether this saga's release is to run: it stays warm, or it has the traffic again."""
    query = select(releases.c.saga_id).where(releases.c.saga_id == warm_saga_id, releases.c.state == "live")
    return warm_saga_id in (await warm(conn)).values() or (await conn.execute(query)).first() is not None


async def given_up(conn: AsyncConnection) -> list[GivenUp]:
    """Return what is to be stopped."""
    query = (
        select(observations, releases.c.state.label("release_state"))
        .join(releases, releases.c.saga_id == observations.c.warm_saga_id)
        .where(observations.c.state == "given_up")
    )
    return [
        GivenUp(
            app_id=row.app_id,
            saga_id=row.saga_id,
            warm_saga_id=row.warm_saga_id,
            serves=row.release_state == "live",
        )
        for row in await conn.execute(query)
    ]
