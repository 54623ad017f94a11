"""The rows of builds: what is built for which saga, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access
from seedwork.messages import Envelope
from seedwork.participant import Work
from seedwork.unit_of_work import Database, database_now_ms
from services.builder.contract import BuildImage, BuiltLayer, RebaseImage
from services.builder.models import builds, kernel
from services.builder.ports import Built

State = Literal["running", "succeeded", "failed", "discarded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One saga's build: its newest attempt."""

    saga_id: str
    app_id: str
    app: str
    commit: str | None
    state: State
    digest: str | None
    layers: tuple[BuiltLayer, ...]
    error: str | None
    started_ms: int
    ended_ms: int | None


class Builds:
    """The table."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, saga_id: str, access: Access) -> Build | None:
        """Return the saga's build; None: there is none, or it is another team's."""
        query = select(builds).where(builds.c.saga_id == saga_id, access.only(builds.c.team))

        async def find(conn: AsyncConnection) -> Build | None:
            row = (await conn.execute(query)).mappings().one_or_none()
            return _build(row) if row else None

        return await self._db.read(find)

    async def visible(self, saga_id: str, access: Access) -> bool:
        """Return whether the saga has a build of these teams, also one that waits for a slot and has no row yet."""

        async def find(conn: AsyncConnection) -> bool:
            team = (await conn.execute(select(builds.c.team).where(builds.c.saga_id == saga_id))).scalar_one_or_none()
            if team is not None:
                return access.sees(team)
            commands = (await conn.execute(select(kernel.jobs.c.command).where(kernel.jobs.c.saga_id == saga_id))).all()
            teams = {Envelope.from_json(row.command).team for row in commands if row.command}
            return bool(teams) and all(map(access.sees, teams))

        return await self._db.read(find)

    async def goes_on(self, saga_id: str) -> bool:
        """Return whether something will still be printed: it waits for a slot, or is being built."""

        async def find(conn: AsyncConnection) -> bool:
            jobs = kernel.jobs.c
            row = (
                await conn.execute(
                    select(jobs.state, jobs.tombstone_ms, jobs.lease_until_ms).where(jobs.saga_id == saga_id)
                )
            ).one_or_none()
            if row is None or row.state not in ("queued", "running"):
                return False
            return row.tombstone_ms is None or row.lease_until_ms is not None

        return await self._db.read(find)

    async def begin(self, command: BuildImage | RebaseImage, work: Work) -> None:
        """Store a new attempt; a rebase is one whose source is an image."""
        source_digest = command.source_digest if isinstance(command, BuildImage) else command.digest

        async def write(conn: AsyncConnection) -> None:
            values = {
                "app_id": work.app_id,
                "app": command.app,
                "team": work.team,
                "commit": command.commit,
                "source_digest": source_digest,
                "state": "running",
                "attempt": work.attempt,
                "digest": None,
                "layers": "[]",
                "error": None,
                "started_ms": await database_now_ms(conn),
                "ended_ms": None,
            }
            known = await conn.execute(update(builds).where(builds.c.saga_id == work.saga_id).values(values))
            if not known.rowcount:
                await conn.execute(insert(builds).values(saga_id=work.saga_id, **values))

        await self._db.write(write)

    async def succeeded(self, conn: AsyncConnection, saga_id: str, built: Built) -> None:
        """It has its image; in the transaction of the outcome."""
        layers = orjson.dumps([layer.model_dump() for layer in built.layers]).decode()
        await self._end(conn, saga_id, {"state": "succeeded", "digest": built.digest, "layers": layers})

    async def failed(self, saga_id: str, error: str) -> None:
        """This attempt did not succeed."""
        await self._db.write(lambda conn: self._end(conn, saga_id, {"state": "failed", "error": error}))

    async def discarded(self, conn: AsyncConnection, saga_id: str) -> None:
        """It was undone; in the transaction of the outcome."""
        await self._end(conn, saga_id, {"state": "discarded"})

    async def _end(self, conn: AsyncConnection, saga_id: str, values: Mapping[str, Any]) -> None:
        ended_ms = await database_now_ms(conn)
        await conn.execute(update(builds).where(builds.c.saga_id == saga_id).values(**values, ended_ms=ended_ms))


def _build(row: Mapping[Any, Any]) -> Build:
    return Build(
        saga_id=row["saga_id"],
        app_id=row["app_id"],
        app=row["app"],
        commit=row["commit"],
        state=row["state"],
        digest=row["digest"],
        layers=tuple(BuiltLayer.model_validate(each) for each in orjson.loads(row["layers"])),
        error=row["error"],
        started_ms=row["started_ms"],
        ended_ms=row["ended_ms"],
    )
