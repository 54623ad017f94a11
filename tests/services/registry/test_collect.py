"""What nobody holds goes; what somebody holds and is not there is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from ocistore.testing import put_image
from seedwork.errors import Unavailable
from seedwork.messages import Envelope, Event, envelope, new_id
from seedwork.unit_of_work import Database
from services.deployer.contract import ReleaseDeployed, ReleaseRetired
from services.registry import handlers
from services.registry.collector import Collector
from services.registry.references import Reference
from tests.services.registry.conftest import COMMIT, World


@pytest.fixture
def figures() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def collector(world: World, figures: CollectorRegistry) -> Collector:
    return Collector(images=world.images, references=world.references, every_s=3600, figures=figures)


def _told(world: World, event: Event, saga_id: str) -> Envelope:
    return envelope(event, source="deployer", saga_id=saga_id, app_id=world.app_id, app=world.app)


async def _retire(world: World, collector: Collector, digest: str, saga_id: str) -> None:
    event = ReleaseRetired(app="shop", number=1, digest=digest, release_saga_id=saga_id)
    told = _told(world, event, new_id())
    await world.db.write(partial(_on_retired, event, told, collector))


async def _on_retired(event: ReleaseRetired, told: Envelope, collector: Collector, conn: object) -> None:
    await handlers.on_release_retired(event, told, conn, collector=collector)  # type: ignore[arg-type]


@asynccontextmanager
async def _at_work(collector: Collector) -> AsyncIterator[None]:
    task = asyncio.create_task(collector.run())
    yield
    task.cancel()
    await asyncio.wait([task])


async def _until_gone(world: World, digest: str) -> None:
    async with asyncio.timeout(20):
        while ("shop", digest) in await world.published():  # noqa: ASYNC110  a file system tells nobody
            await asyncio.sleep(0.01)


async def test_a_retired_release_lets_its_image_go(world: World, collector: Collector) -> None:
    """The reference goes with the event, the image right after it, its tag and its entry in the list too."""
    old, new = await world.staged("old"), await world.staged("new")
    await world.publish(old.digest, saga_id="s1")
    await world.publish(new.digest, saga_id="s2", commit=None)

    async with _at_work(collector):
        await _retire(world, collector, old.digest, "s1")
        await _until_gone(world, old.digest)
    await collector.unheld()

    assert await world.published() == [("shop", new.digest)]
    assert await world.references.published_in("shop") == {new.digest}


async def test_an_image_that_could_not_be_removed_goes_at_the_next_look(
    world: World, figures: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry does not answer when the release is retired, and nobody retires another one."""
    old = await world.staged("old")
    await world.publish(old.digest, saga_id="s1")
    collector = Collector(images=world.images, references=world.references, every_s=3600, look_s=0.02, figures=figures)
    remove, refused = world.images.remove, asyncio.Event()

    async def refuse_once(repository: str, digest: str) -> bool:
        if refused.is_set():
            return await remove(repository, digest)
        refused.set()
        raise Unavailable("The registry does not answer", why="the test wants it so")

    monkeypatch.setattr(world.images, "remove", refuse_once)
    async with _at_work(collector):
        await _retire(world, collector, old.digest, "s1")
        await _until_gone(world, old.digest)
    assert refused.is_set()


async def test_a_retired_release_whose_image_another_one_holds_changes_only_the_reference(
    world: World, collector: Collector
) -> None:
    """A rollback made a second release of the same digest."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="deploy")
    await world.publish(staged.digest, saga_id="rollback", staged=False)

    await _retire(world, collector, staged.digest, "deploy")
    await collector.unheld()

    assert [each.saga_id for each in await world.references.of_app(world.app_id)] == ["rollback"]
    assert (await world.images.get("shop", staged.digest, verify=True)).tags == (COMMIT,)


async def test_what_a_crash_left_in_our_repositories_is_removed(
    world: World, collector: Collector, figures: CollectorRegistry
) -> None:
    """An image without any reference goes; repositories of others in the same store are not touched."""
    held, left = await world.staged("held"), await world.staged("left")
    await world.publish(held.digest, saga_id="s1")
    await world.images.copy(left.repository, left.digest, to="shop", tags=[COMMIT])
    await world.images.copy(left.repository, left.digest, to="somebody/elses")

    await collector.everything()

    assert await world.published() == [("shop", held.digest), ("somebody/elses", left.digest)]
    assert (await world.images.get("shop", held.digest)).tags == (COMMIT,)
    assert figures.get_sample_value("knarr_registry_images_collected_total") == 1


async def test_an_image_that_is_being_published_is_not_collected(world: World, collector: Collector) -> None:
    """Its reference is there before its bytes, and its outcome need not be."""
    staged = await world.staged()
    taken = Reference(app_id=world.app_id, digest=staged.digest, saga_id="s1", repository="shop", commit=COMMIT)
    async with world.references.taken(taken, step="publish"):
        await world.images.copy(staged.repository, staged.digest, to="shop", tags=[COMMIT])

    await collector.everything()

    assert await world.published() == [("shop", staged.digest)]


async def test_a_held_image_that_is_damaged_is_reported(
    world: World, collector: Collector, figures: CollectorRegistry
) -> None:
    """The figure rises, the log names it, and it falls when the commit is deployed again."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")
    for layer in staged.layers:
        (world.folder / "images" / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")).unlink()

    await collector.everything()
    assert figures.get_sample_value("knarr_registry_images_missing") == 1

    await world.staged()
    await collector.everything()
    assert figures.get_sample_value("knarr_registry_images_missing") == 0


async def test_a_damaged_manifest_does_not_stop_an_undo(world: World) -> None:
    """An undo succeeds with what is there."""
    one, two = await world.staged("one"), await world.staged("two")
    await world.publish(one.digest, saga_id="s1")
    await world.publish(two.digest, saga_id="s2")
    (world.folder / "images" / "blobs" / "sha256" / one.digest.removeprefix("sha256:")).unlink()

    await world.unpublish("s2")
    await world.unpublish("s1")

    assert await world.published() == []


async def test_removing_an_app_removes_every_image_that_only_it_had(world: World) -> None:
    """Published and staged, with a word about each; a second delivery finds nothing."""
    one, two = await world.staged("one"), await world.staged("two")
    await world.publish(one.digest, saga_id="s1")
    await world.publish(two.digest, saga_id="s2")

    answer = await world.drop()

    assert await world.images.images() == []
    assert world.blobs() == set()
    assert len(answer.found) == 4
    assert f"removed shop@{one.digest}" in answer.done
    assert (await world.drop()).found == ()


async def test_removing_an_app_leaves_what_its_successor_of_the_same_name_holds(world: World) -> None:
    """A name can be used again; an identity cannot."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")
    successor = World(world.db, world.images, world.references, world.folder)
    await successor.staged()
    await successor.publish(staged.digest, saga_id="s2")

    await world.drop()

    assert await world.published() == [("shop", staged.digest)]
    assert [each.saga_id for each in await world.references.of_repository("shop")] == ["s2"]
    await world.images.get("shop", staged.digest, verify=True)


async def test_a_deployed_release_gives_its_image_a_number(world: World) -> None:
    """Only the saga's own reference gets it."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")
    await world.publish(staged.digest, saga_id="s2")
    event = ReleaseDeployed.model_validate({**ReleaseDeployed.EXAMPLE, "number": 7, "digest": staged.digest})

    await _deployed(world.db, event, _told(world, event, "s2"))

    assert {each.saga_id: each.number for each in await world.references.of_app(world.app_id)} == {"s1": None, "s2": 7}


async def _deployed(db: Database, event: ReleaseDeployed, told: Envelope) -> None:
    await db.write(lambda conn: handlers.on_release_deployed(event, told, conn))


async def test_a_repository_that_cannot_be_read_does_not_keep_the_others_from_it(
    world: World, collector: Collector
) -> None:
    """One damaged index is told of, and the rest is collected."""
    staged = await world.staged()
    for app in ("broken", "shop"):
        world.app = app
        await world.publish(staged.digest, saga_id=f"of {app}")
    left = await put_image(world.images, "shop", world.folder, {"left": "over"})
    index = world.folder / "images" / "repositories" / "broken" / "index.json"
    intact = index.read_bytes()
    index.write_text("{")

    await collector.everything()
    index.write_bytes(intact)
    await collector.everything()

    assert ("shop", left.digest) not in await world.published()
