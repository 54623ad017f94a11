"""Two builders on one database: no staged image goes while somebody takes it, in whichever replica."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from ocistore.testing import MemoryImageStore
from seedwork.clock import SystemClock
from seedwork.errors import Unavailable
from seedwork.messages import new_id
from seedwork.testing.servers import database
from seedwork.unit_of_work import Database
from services.builder import staging as module
from services.builder.models import metadata, staged
from services.builder.ports import staging_repository
from services.builder.staging import Staging

APP = "0192f0c1-0000-7000-8000-000000000001"
PLACE = staging_repository(APP)
CONFIG = b'{"rootfs": {"type": "layers", "diff_ids": []}}'
BOUND_S = 30.0


class SlowStore(MemoryImageStore):
    """Its `remove` waits until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.removing = asyncio.Event()
        self.may_remove = asyncio.Event()

    async def remove(self, repository: str, digest: str) -> bool:
        self.removing.set()
        await self.may_remove.wait()
        return await super().remove(repository, digest)


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.stack("MYSQL_URL"))])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with database(request.param, tmp_path, metadata) as found:
        yield found


@pytest.fixture
def images() -> SlowStore:
    return SlowStore()


@pytest.fixture
def one(db: Database, images: SlowStore) -> Staging:
    return Staging(db, images, SystemClock())


@pytest.fixture
def other(db: Database, images: SlowStore) -> Staging:
    return Staging(db, images, SystemClock())


async def put(images: SlowStore) -> str:
    return (await images.put(PLACE, config=CONFIG, layers=())).digest


async def die_removing(staging: Staging, images: SlowStore, saga_id: str) -> None:
    """After it said that it removes the image, and before it has."""
    dropping = asyncio.create_task(staging.drop(saga_id))
    await images.removing.wait()
    dropping.cancel()
    await asyncio.wait([dropping])


async def test_who_takes_an_image_waits_until_it_is_removed(one: Staging, other: Staging, images: SlowStore) -> None:
    """Else what it stores would go with what the first saga had."""
    digest, first, second = await put(images), new_id(), new_id()
    await one.hold(APP, digest, first)
    dropping = asyncio.create_task(one.drop(first))
    await images.removing.wait()
    holding = asyncio.create_task(other.hold(APP, digest, second))
    _, waiting = await asyncio.wait([holding], timeout=0.3)
    assert waiting
    images.may_remove.set()
    async with asyncio.timeout(BOUND_S):
        assert await dropping == (f"{PLACE}@{digest}", True)
        await holding
    await put(images)
    assert await other.drop(second) == (f"{PLACE}@{digest}", True)


async def test_an_image_that_two_hold_goes_with_the_second(one: Staging, other: Staging, images: SlowStore) -> None:
    digest, first, second = await put(images), new_id(), new_id()
    images.may_remove.set()
    await one.hold(APP, digest, first)
    await other.hold(APP, digest, second)
    assert await other.drop(first) == (f"{PLACE}@{digest}", False)
    assert await images.images("staging/") == [(PLACE, digest)]
    assert await one.drop(second) == (f"{PLACE}@{digest}", True)
    assert await images.images("staging/") == []


async def test_of_two_who_drop_one_reference_one_removes(one: Staging, other: Staging, images: SlowStore) -> None:
    """The second one comes back when the first one is done: a newcomer's image is never its victim."""
    digest, saga = await put(images), new_id()
    await one.hold(APP, digest, saga)
    dropping = asyncio.create_task(one.drop(saga))
    await images.removing.wait()
    too = asyncio.create_task(other.drop(saga))
    _, waiting = await asyncio.wait([too], timeout=0.3)
    assert waiting
    images.may_remove.set()
    async with asyncio.timeout(BOUND_S):
        assert (await dropping, await too) == ((f"{PLACE}@{digest}", True), None)


async def test_a_remover_that_died_is_not_waited_for(
    one: Staging, other: Staging, images: SlowStore, db: Database
) -> None:
    digest, dead, saga = await put(images), new_id(), new_id()
    await one.hold(APP, digest, dead)
    await die_removing(one, images, dead)
    long_ago = await db.now_ms() - int(module.REMOVAL_S * 1000) - 1
    await db.write(lambda conn: conn.execute(update(staged).values(removing_ms=long_ago)))
    images.may_remove.set()
    async with asyncio.timeout(BOUND_S):
        await other.hold(APP, digest, saga)
        assert await other.drop(dead) == (f"{PLACE}@{digest}", False)
        assert await other.drop(saga) == (f"{PLACE}@{digest}", True)


async def test_a_process_that_has_the_database_alone_waits_for_nobody(one: Staging, images: SlowStore) -> None:
    """It was killed while it removed, and begins anew."""
    digest, dead, saga = await put(images), new_id(), new_id()
    await one.hold(APP, digest, dead)
    await die_removing(one, images, dead)
    await one.nobody_removes()
    async with asyncio.timeout(BOUND_S):
        await one.hold(APP, digest, saga)
        assert await one.drop(dead) == (f"{PLACE}@{digest}", False)


async def test_a_removal_that_fails_keeps_the_reference(one: Staging, other: Staging, images: SlowStore) -> None:
    """The next one who drops it, or takes it, does not wait for whoever failed."""
    digest, first, second = await put(images), new_id(), new_id()
    images.may_remove.set()
    await one.hold(APP, digest, first)
    images.fail_next["remove"] = [Unavailable("The store is away")]
    with pytest.raises(Unavailable, match="The store is away"):
        await one.drop(first)
    async with asyncio.timeout(BOUND_S):
        await other.hold(APP, digest, second)
        assert await other.drop(first) == (f"{PLACE}@{digest}", False)


async def test_a_removal_that_takes_too_long_is_cut_off(
    one: Staging, images: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before another replica takes this one for dead."""
    assert module._WORK_S < module.REMOVAL_S
    monkeypatch.setattr(module, "_WORK_S", 0.2)
    digest, saga = await put(images), new_id()
    await one.hold(APP, digest, saga)
    with pytest.raises(Unavailable, match="could not be removed in time"):
        await one.drop(saga)
    assert await images.images("staging/") == [(PLACE, digest)]


async def test_an_attempt_with_another_image_lets_go_of_the_first(one: Staging, images: SlowStore) -> None:
    digest, saga = await put(images), new_id()
    images.may_remove.set()
    await one.hold(APP, "sha256:" + "0" * 64, saga)
    await one.hold(APP, digest, saga)
    assert await one.drop(saga) == (f"{PLACE}@{digest}", True)
