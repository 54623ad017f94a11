"""Staged images and who holds them: an image goes when no saga of its app holds it any more.

A reference is written before the bytes are stored and goes after they are removed: so there is never an image that
nobody knows of. Who removes one says so in its own reference first, where nobody else has one, and until that is gone
(or its remover for dead) nobody takes a new one: so no image is removed under a saga that just took it, in whichever
replica. Both look at all references of the image, locked until they commit.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import structlog
from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.clock import Clock
from seedwork.errors import KnarrError, RetryableError, Unavailable
from seedwork.messages import Envelope
from seedwork.unit_of_work import Database, after_commit, database_now_ms, insert_ignore
from services.builder.models import staged
from services.builder.ports import staging_repository
from services.saga_coordinator.contract import DeploymentSucceeded

COLLECT_S = 60.0
"""How often released images are looked for without being told: what a crash left."""
REMOVAL_S = 60.0
"""Seconds after which a replica that removes an image is taken for dead. It takes milliseconds, with a remote registry
seconds, and is cut off well before."""
_WORK_S = 45.0
_POLL_S = 0.05

log = structlog.get_logger(__name__)


class Staging:
    """The staged images of all builders on one database."""

    def __init__(self, db: Database, images: ImageStore, clock: Clock) -> None:
        self._db = db
        self._images = images
        self._clock = clock
        self._released = asyncio.Event()

    async def hold(self, app_id: str, digest: str, saga_id: str) -> None:
        """Take the saga's reference; one to another digest, of an earlier attempt, is dropped."""

        async def write(conn: AsyncConnection) -> str | None:
            new = await insert_ignore(conn, staged, [{"saga_id": saga_id, "app_id": app_id, "digest": digest}])
            if await _is_being_removed(conn, await _references(conn, app_id, digest)):
                if new:
                    await _delete(conn, saga_id)
                return None
            if new:
                return digest
            known = await _of_saga(conn, saga_id)
            return known.digest if known is not None else None

        while (held := await self._db.write(write)) != digest:
            if held is None:
                await self._clock.sleep(_POLL_S)
            else:
                await self.drop(saga_id)

    async def drop(self, saga_id: str) -> tuple[str, bool] | None:
        """Drop the saga's reference; the image (`staging/…@sha256:…`) and whether it went. None: there was none.

        Raises:
            Unavailable: The image store does not answer; the reference stays.
        """
        while (found := await self._db.write(lambda conn: _let_go(conn, saga_id))) is not None:
            app_id, digest, left = found
            repository = staging_repository(app_id)
            if left == "to another":
                await self._clock.sleep(_POLL_S)
                continue
            if left == "to us":
                await self._remove(repository, digest, saga_id)
            return f"{repository}@{digest}", left == "to us"
        return None

    async def _remove(self, repository: str, digest: str, saga_id: str) -> None:
        """Remove what only that saga refers to, and its reference."""
        try:
            async with asyncio.timeout(_WORK_S):
                await self._images.remove(repository, digest)
        except TimeoutError as error:
            raise Unavailable(
                f"The image {repository}@{digest} could not be removed in time",
                why=f"the image store took longer than {_WORK_S:g} s",
                todo="It is tried again; if it stays so, look at the image store.",
            ) from error
        except KnarrError:
            await self._db.write(lambda conn: _stay(conn, saga_id))
            raise
        await self._db.write(lambda conn: _delete(conn, saga_id))

    async def nobody_removes(self) -> None:
        """Where one process has the database, and has just begun: whoever was removing is dead."""
        await self._db.write(lambda conn: conn.execute(update(staged).values(removing_ms=None)))

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


Left = Literal["with others", "to us", "to another"]
"""Who is to see to the image: nobody, as other sagas hold it; whoever asked; or a replica that removes it already."""


async def _let_go(conn: AsyncConnection, saga_id: str) -> tuple[str, str, Left] | None:
    """The reference is gone, where others hold the image; else it says that the image is being removed."""
    found = await _of_saga(conn, saga_id)
    if found is None:
        return None
    references = await _references(conn, found.app_id, found.digest)
    if saga_id not in {each.saga_id for each in references}:
        return None
    if await _is_being_removed(conn, references):
        return found.app_id, found.digest, "to another"
    if len(references) > 1:
        await _delete(conn, saga_id)
        return found.app_id, found.digest, "with others"
    await conn.execute(
        update(staged).where(staged.c.saga_id == saga_id).values(removing_ms=await database_now_ms(conn))
    )
    return found.app_id, found.digest, "to us"


async def _is_being_removed(conn: AsyncConnection, references: Sequence[Row[Any]]) -> bool:
    since = [each.removing_ms for each in references if each.removing_ms is not None]
    now_ms = await database_now_ms(conn) if since else 0
    return any(abs(now_ms - at_ms) < REMOVAL_S * 1000 for at_ms in since)


async def _references(conn: AsyncConnection, app_id: str, digest: str) -> Sequence[Row[Any]]:
    """All of that image, which nobody else changes before we commit."""
    query = select(staged).where(staged.c.app_id == app_id, staged.c.digest == digest)
    return (await conn.execute(query.with_for_update())).all()


async def _of_saga(conn: AsyncConnection, saga_id: str) -> Row[Any] | None:
    return (await conn.execute(select(staged).where(staged.c.saga_id == saga_id))).one_or_none()


async def _released(conn: AsyncConnection) -> list[str]:
    rows = await conn.execute(select(staged.c.saga_id).where(staged.c.released_ms.is_not(None)))
    return [row.saga_id for row in rows]


async def _stay(conn: AsyncConnection, saga_id: str) -> None:
    await conn.execute(update(staged).where(staged.c.saga_id == saga_id).values(removing_ms=None))


async def _delete(conn: AsyncConnection, saga_id: str) -> None:
    await conn.execute(delete(staged).where(staged.c.saga_id == saga_id))
