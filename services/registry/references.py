"""Who holds which image, in SQL: references in and out, and the lock under which an image comes or goes.

An image stays as long as a reference `(app_id, digest, saga_id)` to it exists. Whoever adds or removes bytes holds the
lock of their repository: references are taken before bytes are brought, and dropped after they are gone, so that a
crash in between leaves a row by which the next attempt finds the rest.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access
from seedwork.clock import Clock
from seedwork.messages import new_id
from seedwork.unit_of_work import Database, database_now_ms, insert_ignore
from services.registry import errors
from services.registry.models import image_references, images, kernel, repositories

LOCK_S = 60.0
"""Seconds after which the lock of a dead replica is free. Work under it takes milliseconds, on a remote registry
seconds, and is cut off well before."""
_WORK_S = 45.0
_POLL_S = 0.05
Taking = Callable[[AsyncConnection], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A saga holds an image."""

    app_id: str
    digest: str
    saga_id: str
    repository: str
    commit: str | None = None
    number: int | None = None
    """Of the saga's release, once it is deployed."""
    taken_ms: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it one reference."""
        return self.app_id, self.digest, self.saga_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An image that was published and read back."""

    repository: str
    digest: str
    app_id: str
    app: str
    team: str
    size_bytes: int
    published_ms: int


def tags_of(references: Iterable[Reference]) -> Mapping[str, tuple[str, ...]]:
    """The tags of each digest of one repository: each commit names the image that was taken last for it."""
    newest: dict[str, Reference] = {}
    for each in references:
        if each.commit is not None:
            known = newest.get(each.commit, each)
            newest[each.commit] = max(known, each, key=lambda one: (one.taken_ms, one.saga_id))
    tags: dict[str, tuple[str, ...]] = {}
    for commit, reference in sorted(newest.items()):
        tags[reference.digest] = (*tags.get(reference.digest, ()), commit)
    return tags


class References:
    """The references of this service's database.

    Args:
        db: The database.
        clock: For waiting.
        shared: Whether other processes work on this database; else a lock in memory is enough.
    """

    def __init__(self, db: Database, clock: Clock, *, shared: bool) -> None:
        self._db = db
        self._clock = clock
        self._shared = shared
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- the lock -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def locked(self, repository: str) -> AsyncIterator[None]:
        """Be the only one who brings or removes images of the repository.

        Raises:
            Unavailable: Another replica has it all the time, or the work took so long that it may lose the lock.
        """
        async with self._locked(repository, None):
            yield

    @asynccontextmanager
    async def taken(self, reference: Reference, *, step: str) -> AsyncIterator[None]:
        """Hold the image for good, and for now the lock of its repository, to bring it; the same again is no change.

        Raises:
            FinalError: The saga's step was undone already (code `undone`).
            Unavailable: As `locked`.
        """
        async with self._locked(reference.repository, lambda conn: _take(conn, reference, step)):
            yield

    @asynccontextmanager
    async def _locked(self, repository: str, take: Taking | None) -> AsyncIterator[None]:
        lock = self._locks.setdefault(repository, asyncio.Lock())
        async with lock:
            if not self._shared:
                if take is not None:
                    await self._take_alone(repository, take)
                yield
                return
            owner = new_id()
            await self._acquire(repository, owner, take)
            try:
                async with asyncio.timeout(_WORK_S):
                    yield
            except TimeoutError as error:
                raise errors.busy(repository, _WORK_S) from error
            finally:
                await asyncio.shield(self._db.write(lambda conn: _unlock(conn, repository, owner)))

    async def _take_alone(self, repository: str, take: Taking) -> None:
        async def work(conn: AsyncConnection) -> None:
            await _know(conn, repository)
            await take(conn)

        await self._db.write(work)

    async def _acquire(self, repository: str, owner: str, take: Taking | None) -> None:
        """The lock, and in the same commit what is taken under it."""

        async def work(conn: AsyncConnection) -> bool:
            ours = await _lock(conn, repository, owner)
            if ours and take is not None:
                await take(conn)
            return ours

        for _ in range(int(LOCK_S / _POLL_S) + 100):
            if await self._db.write(work):
                return
            await self._clock.sleep(_POLL_S)
        raise errors.busy(repository, LOCK_S)

    # --- publishing -----------------------------------------------------------------------------------------------

    async def record(self, conn: AsyncConnection, image: Published) -> None:
        """Write down, in the transaction of the outcome, that the image is published."""
        row = {name: getattr(image, name) for name in Published.__slots__}
        await insert_ignore(conn, images, [{**row, "published_ms": await database_now_ms(conn)}])

    # --- looking --------------------------------------------------------------------------------------------------

    async def of_saga(self, saga_id: str) -> Sequence[Reference]:
        """What the saga holds."""
        return await self._where(image_references.c.saga_id == saga_id)

    async def of_app(self, app_id: str) -> Sequence[Reference]:
        """What all sagas of the app hold, oldest first."""
        return await self._where(image_references.c.app_id == app_id)

    async def of_repository(self, repository: str) -> Sequence[Reference]:
        """Who holds images of the repository, of whichever app."""
        return await self._where(image_references.c.repository == repository)

    async def of_images(self, found: Iterable[Published]) -> Sequence[Reference]:
        """Who holds images of the repositories in which these are."""
        return await self._where(image_references.c.repository.in_({each.repository for each in found}))

    async def _where(self, condition: ColumnElement[bool]) -> Sequence[Reference]:
        query = select(image_references).where(condition).order_by(image_references.c.taken_ms)

        async def work(conn: AsyncConnection) -> list[Reference]:
            return [Reference(**row._mapping) for row in (await conn.execute(query)).all()]  # noqa: SLF001  SQLAlchemy's public name

        return await self._db.read(work)

    async def published(
        self, *, access: Access, app: str | None, after: tuple[int, str, str] | None, limit: int
    ) -> Sequence[Published]:
        """Published images, newest first.

        Args:
            access: Whose images.
            app: Of this app only, by name or identity.
            after: `(published_ms, digest, repository)` of the last one seen.
            limit: At most so many.
        """
        query = select(images).order_by(images.c.published_ms.desc(), images.c.digest, images.c.repository).limit(limit)
        if access.teams is not None:
            query = query.where(access.only(images.c.team))
        if app is not None:
            query = query.where(or_(images.c.app == app, images.c.app_id == app))
        if after is not None:
            at_ms, digest, repository = after
            beyond = tuple_(images.c.digest, images.c.repository) > (digest, repository)
            query = query.where(or_(images.c.published_ms < at_ms, and_(images.c.published_ms == at_ms, beyond)))

        async def work(conn: AsyncConnection) -> list[Published]:
            return [Published(**row._mapping) for row in (await conn.execute(query)).all()]  # noqa: SLF001  likewise

        return await self._db.read(work)

    async def published_in(self, repository: str) -> frozenset[str]:
        """The digests that were published in the repository."""
        return frozenset(await self._column(select(images.c.digest).where(images.c.repository == repository)))

    async def repositories(self) -> Sequence[str]:
        """Every repository that is ours."""
        return await self._column(select(repositories.c.repository).order_by(repositories.c.repository))

    async def repositories_of(self, app_id: str) -> Sequence[str]:
        """The repositories in which the app has published images."""
        return await self._column(select(images.c.repository).where(images.c.app_id == app_id).distinct())

    async def repositories_to_collect(self) -> Sequence[str]:
        """The repositories in which a published image is not held any more."""
        held = exists().where(
            image_references.c.repository == images.c.repository, image_references.c.digest == images.c.digest
        )
        # No DISTINCT: MySQL 9.7 then looks at the first image of each repository only ("skip scan for deduplication").
        return sorted(set(await self._column(select(images.c.repository).where(~held))))

    async def _column(self, query: Any) -> Sequence[str]:
        async def work(conn: AsyncConnection) -> list[str]:
            return list((await conn.execute(query)).scalars())

        return await self._db.read(work)

    # --- dropping -------------------------------------------------------------------------------------------------

    async def drop(self, references: Sequence[Reference]) -> None:
        """Let go; images that nobody holds now are not listed as published any more."""

        async def work(conn: AsyncConnection) -> None:
            for each in references:
                await conn.execute(delete(image_references).where(_is(each)))
                await _forget_unheld(conn, each.repository, each.digest)

        await self._db.write(work)

    async def forget(self, repository: str, digests: Iterable[str]) -> None:
        """List images as published no more, unless somebody holds them."""
        gone = list(digests)

        async def work(conn: AsyncConnection) -> None:
            for digest in gone:
                await _forget_unheld(conn, repository, digest)

        if gone:
            await self._db.write(work)


async def retire(conn: AsyncConnection, *, app_id: str, digest: str, saga_id: str) -> None:
    """Drop the reference of a release that nobody can roll back to; its bytes are collected later."""
    reference = Reference(app_id=app_id, digest=digest, saga_id=saga_id, repository="")
    await conn.execute(delete(image_references).where(_is(reference)))


async def number(conn: AsyncConnection, *, app_id: str, digest: str, saga_id: str, number: int) -> None:
    """Note which release the saga's image became."""
    reference = Reference(app_id=app_id, digest=digest, saga_id=saga_id, repository="")
    await conn.execute(update(image_references).where(_is(reference)).values(number=number))


def _is(reference: Reference) -> ColumnElement[bool]:
    columns = image_references.c
    return and_(
        columns.app_id == reference.app_id,
        columns.digest == reference.digest,
        columns.saga_id == reference.saga_id,
    )


async def _forget_unheld(conn: AsyncConnection, repository: str, digest: str) -> None:
    held = select(image_references.c.saga_id).where(
        image_references.c.repository == repository, image_references.c.digest == digest
    )
    if (await conn.execute(held.limit(1))).first() is None:
        await conn.execute(delete(images).where(images.c.repository == repository, images.c.digest == digest))


async def _know(conn: AsyncConnection, repository: str) -> None:
    await insert_ignore(conn, repositories, [{"repository": repository, "lock_until_ms": 0}])


async def _take(conn: AsyncConnection, reference: Reference, step: str) -> None:
    # The row is locked until the commit: an undo is accepted before, and seen here, or after, and sees this.
    job = select(kernel.jobs.c.tombstone_ms).where(
        kernel.jobs.c.saga_id == reference.saga_id, kernel.jobs.c.step == step
    )
    if (await conn.execute(job.with_for_update(read=True))).scalar_one_or_none() is not None:
        raise errors.undone(reference.saga_id)
    row = {name: getattr(reference, name) for name in Reference.__slots__}
    await insert_ignore(conn, image_references, [{**row, "taken_ms": await database_now_ms(conn)}])


async def _lock(conn: AsyncConnection, repository: str, owner: str) -> bool:
    now_ms = await database_now_ms(conn)
    await _know(conn, repository)
    free = and_(repositories.c.repository == repository, repositories.c.lock_until_ms <= now_ms)
    taken = await conn.execute(
        update(repositories).where(free).values(lock_owner=owner, lock_until_ms=now_ms + int(LOCK_S * 1000))
    )
    return taken.rowcount == 1


async def _unlock(conn: AsyncConnection, repository: str, owner: str) -> None:
    ours = and_(repositories.c.repository == repository, repositories.c.lock_owner == owner)
    await conn.execute(update(repositories).where(ours).values(lock_owner=None, lock_until_ms=0))
