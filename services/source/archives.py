"""Archives by digest, and who holds them: a finished tar in, its bytes for as long as a saga needs them.

Order makes it right. To keep: first the reference is committed, then the bytes are put in place under the digest's
lock. To drop: under the same lock the references go, and with the last one the bytes. So whoever drops sees every
reference whose owner relies on bytes that are there; an owner that comes later brings its own.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.archives import NormalTar
from seedwork.errors import NotFound
from seedwork.messages import new_id
from seedwork.threads import in_thread
from seedwork.unit_of_work import Database, database_now_ms, insert_ignore
from services.source import files
from services.source.locks import NamedLocks
from services.source.models import archive_references as references
from services.source.models import kernel


@dataclass(frozen=True, slots=True)
class Dropped:
    """One reference less."""

    digest: str
    bytes_removed: bool
    """False: others hold the bytes, or they were gone already."""


class Archives:
    """The archives of this installation, below one folder."""

    def __init__(self, db: Database, home: Path, locks: NamedLocks) -> None:
        """Take the service's database, its folder, and the locks of digests."""
        self._db = db
        self._folder = home / "archives" / "sha256"
        self._drafts = home / "drafts"
        self._locks = locks
        for folder in (self._folder, self._drafts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.asynccontextmanager
    async def draft(self) -> AsyncIterator[Path]:
        """A name for a new file; what still stands there at the end is removed."""
        path = self._drafts / f"{new_id()}.tar"
        try:
            yield path
        finally:
            await in_thread(lambda _: path.unlink(missing_ok=True))

    async def keep(self, packed: NormalTar, draft: Path, *, app_id: str, saga_id: str) -> None:
        """Hold the archive for this saga; on return its bytes are on disk for good.

        Args:
            packed: What is in the draft.
            draft: Its file; it is moved to its place, or stays behind where the same bytes are there already.
            app_id: The app.
            saga_id: Who holds it.

        Raises:
            StorageFull: No room.
        """
        row = {"saga_id": saga_id, "digest": packed.digest, "app_id": app_id}

        async def hold(conn: AsyncConnection) -> None:
            await insert_ignore(conn, references, [{**row, "at_ms": await database_now_ms(conn)}])

        await self._db.write(hold)
        async with self._locks.hold(_stripe(packed.digest)):
            await in_thread(lambda _: files.settle(draft, self._path(packed.digest), packed.size_bytes))

    async def drop(self, saga_id: str) -> Sequence[Dropped]:
        """Let go of all that this saga holds; what nobody holds any more is removed."""
        held = await self._db.read(lambda conn: _digests(conn, saga_id))
        return [Dropped(digest, await self._drop(saga_id, digest)) for digest in held]

    async def _drop(self, saga_id: str, digest: str) -> bool:
        async def let_go(conn: AsyncConnection) -> bool:
            mine = (references.c.saga_id == saga_id) & (references.c.digest == digest)
            await conn.execute(delete(references).where(mine))
            return await _is_held(conn, digest)

        async with self._locks.hold(_stripe(digest)):
            if await self._db.write(let_go):
                return False
            return await in_thread(lambda _: files.remove(self._path(digest)))

    def open(self, digest: str) -> BinaryIO:
        """The archive's bytes; they can be read to their end even if the archive goes meanwhile. Blocks shortly.

        Raises:
            NotFound: There is no such archive.
        """
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotFound(
                f"There is no archive {digest}",
                why="it was never here, or its deployment has ended",
                todo="Deploy the commit again.",
            ) from error

    async def sweep(self) -> int:
        """Remove what nobody holds: references of sagas that were undone, then bytes without a reference."""
        await self._db.write(_forget_the_undone)
        names = await in_thread(lambda _: sorted(path.name for path in self._folder.iterdir()))
        held = await self._db.read(_held)
        removed = 0
        for digest in [f"sha256:{name}" for name in names]:
            if digest not in held:
                removed += await self._remove_if_free(digest)
        return removed

    async def _remove_if_free(self, digest: str) -> bool:
        async with self._locks.hold(_stripe(digest)):
            if await self._db.read(lambda conn: _is_held(conn, digest)):
                return False
            return await in_thread(lambda _: files.remove(self._path(digest)))

    async def clear_drafts(self, older_than_s: float) -> None:
        """Remove what a killed process left half-made."""
        await in_thread(lambda _: files.remove_older(self._drafts, older_than_s))

    def _path(self, digest: str) -> Path:
        return self._folder / files.hex_of(digest)


async def forget(conn: AsyncConnection, saga_id: str) -> None:
    """Let go of what this saga holds, in a transaction of the caller; the next sweep removes the bytes."""
    await conn.execute(delete(references).where(references.c.saga_id == saga_id))


async def _digests(conn: AsyncConnection, saga_id: str) -> list[str]:
    query = select(references.c.digest).where(references.c.saga_id == saga_id)
    return list((await conn.execute(query)).scalars())


async def _held(conn: AsyncConnection) -> set[str]:
    return set((await conn.execute(select(references.c.digest).distinct())).scalars())


async def _is_held(conn: AsyncConnection, digest: str) -> bool:
    query = select(func.count()).select_from(references).where(references.c.digest == digest)
    return bool((await conn.execute(query)).scalar_one())


async def _forget_the_undone(conn: AsyncConnection) -> None:
    """A worker that slept through its own undo may have written its reference after it."""
    jobs = kernel.jobs.c
    undone = select(jobs.saga_id).where(jobs.tombstone_ms.is_not(None), jobs.undo_state == "done")
    await conn.execute(delete(references).where(references.c.saga_id.in_(undone)))


def _stripe(digest: str) -> str:
    """256 locks for all digests: their files stay, so there is a fixed number of them."""
    return files.hex_of(digest)[:2]
