"""Staged images and who holds them: an image goes when no saga of its app holds it any more.

A reference is written before the bytes are stored and goes after they are removed, both under the image's lock: so
there is never an image that nobody knows of, and never one removed under a saga that just took it. The lock is this
process's, since the `layers` builder of a machine is one process.
"""

import asyncio

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.clock import Clock
from seedwork.errors import RetryableError
from seedwork.messages import Envelope
from seedwork.unit_of_work import Database, after_commit, database_now_ms, insert_ignore
from services.builder.locks import Locks
from services.builder.models import staged
from services.builder.ports import staging_repository
from services.saga_coordinator.contract import DeploymentSucceeded

COLLECT_S = 60.0
"""How often released images are looked for without being told: what a crash left."""

log = structlog.get_logger(__name__)


class Staging:
    """The staged images of one builder."""

    def __init__(self, db: Database, images: ImageStore, clock: Clock) -> None:
        self._db = db
        self._images = images
        self._clock = clock
        self._locks = Locks()
        self._released = asyncio.Event()

    async def hold(self, app_id: str, digest: str, saga_id: str) -> None:
        """Take the saga's reference; one to another digest, of an earlier attempt, is dropped."""
        row = {"saga_id": saga_id, "app_id": app_id, "digest": digest}

        async def write(conn: AsyncConnection) -> str | None:
            return None if await insert_ignore(conn, staged, [row]) else await _digest_of(conn, saga_id)

        while True:
            async with self._locks.of(f"{app_id} {digest}"):
                if await self._db.write(write) in (None, digest):
                    return
            await self.drop(saga_id)

    async def drop(self, saga_id: str) -> tuple[str, bool] | None:
        """Drop the saga's reference; the image (`staging/…@sha256:…`) and whether it went. None: there was none."""
        found = await self._db.read(lambda conn: _row_of(conn, saga_id))
        if found is None:
            return None
        app_id, digest = found
        repository = staging_repository(app_id)
        async with self._locks.of(f"{app_id} {digest}"):
            others = await self._db.read(lambda conn: _others(conn, app_id, digest, saga_id))
            if not others:
                await self._images.remove(repository, digest)
            await self._db.write(lambda conn: _delete(conn, saga_id))
        return f"{repository}@{digest}", not others

    async def release(self, _event: DeploymentSucceeded, envelope: Envelope, conn: AsyncConnection) -> None:
        """The image has its permanent place: the saga needs the staged one no more."""
        now_ms = await database_now_ms(conn)
        await conn.execute(update(staged).where(staged.c.saga_id == envelope.correlationid).values(released_ms=now_ms))
        after_commit(conn, self._released.set)

    async def collect(self) -> int:
        """Drop every reference that was released; how many."""
        released = await self._db.read(_released)
        for saga_id in released:
            await self.drop(saga_id)
        return len(released)

    async def run(self) -> None:
        """Collect, for ever: when something was released, and from time to time."""
        while True:
            self._released.clear()
            try:
                await self.collect()
            except RetryableError as error:
                log.warning("staged images could not be collected; they will be", error=error.message)
            try:
                async with asyncio.timeout(COLLECT_S):
                    await self._released.wait()
            except TimeoutError:
                continue


async def _digest_of(conn: AsyncConnection, saga_id: str) -> str | None:
    found = await _row_of(conn, saga_id)
    return found[1] if found else None


async def _row_of(conn: AsyncConnection, saga_id: str) -> tuple[str, str] | None:
    row = (await conn.execute(select(staged).where(staged.c.saga_id == saga_id))).one_or_none()
    return (row.app_id, row.digest) if row else None


async def _others(conn: AsyncConnection, app_id: str, digest: str, saga_id: str) -> int:
    held = select(func.count()).select_from(staged)
    held = held.where(staged.c.app_id == app_id, staged.c.digest == digest, staged.c.saga_id != saga_id)
    return int((await conn.execute(held)).scalar_one())


async def _released(conn: AsyncConnection) -> list[str]:
    rows = await conn.execute(select(staged.c.saga_id).where(staged.c.released_ms.is_not(None)))
    return [row.saga_id for row in rows]


async def _delete(conn: AsyncConnection, saga_id: str) -> None:
    await conn.execute(delete(staged).where(staged.c.saga_id == saga_id))
