"""A staged image in; a published, verified, held image out; and the undo."""

import asyncio
from typing import Any

import pytest

from ocistore.layout import OciLayout
from seedwork.clock import SystemClock
from seedwork.errors import FinalError, InvalidInput, NotFound, Unavailable
from seedwork.messages import new_id
from services.registry import references as rows
from services.registry.models import kernel
from services.registry.references import Reference, References, tags_of
from tests.services.registry.conftest import COMMIT, OTHER_COMMIT, World


async def test_a_staged_image_gets_its_permanent_place_under_its_commit(world: World) -> None:
    """Named for the app, tagged with the commit, no blob copied, read back."""
    staged = await world.staged()
    blobs = world.blobs()

    answer = await world.publish(staged.digest, saga_id=new_id())

    assert (answer.repository, answer.digest, answer.tags) == ("shop", staged.digest, (COMMIT,))
    assert answer.size_bytes == staged.size_bytes
    assert world.blobs() == blobs
    assert (await world.images.get("shop", staged.digest, verify=True)).tags == (COMMIT,)


async def test_an_upload_has_no_tag(world: World) -> None:
    """It has no commit."""
    answer = await world.publish((await world.staged()).digest, saga_id=new_id(), commit=None)

    assert answer.tags == ()


async def test_another_team_has_its_own_repositories(world: World) -> None:
    """Two teams may each have an app of one name."""
    world.team = "blue"

    answer = await world.publish((await world.staged()).digest, saga_id=new_id())

    assert answer.repository == "blue/shop"


@pytest.mark.parametrize(
    ("team", "app"), [("staging", "shop"), ("default", "../etc"), ("default", "Shop"), ("a/..", "b")]
)
async def test_a_name_that_cannot_be_a_repository_is_refused(world: World, team: str, app: str) -> None:
    """Nothing is written, and the undo finds nothing."""
    staged = await world.staged()
    world.team, world.app = team, app

    with pytest.raises(InvalidInput, match=app):
        await world.publish(staged.digest, saga_id="s1")

    assert await world.published() == []
    assert (await world.unpublish("s1")).found == ()


async def test_publishing_twice_is_publishing_once(world: World) -> None:
    """The same command delivered again gives the same answer, one image and one reference."""
    staged, saga = await world.staged(), new_id()

    first = await world.publish(staged.digest, saga_id=saga)
    second = await world.publish(staged.digest, saga_id=saga)

    assert first == second
    assert await world.published() == [("shop", staged.digest)]
    assert len(await world.references.of_saga(saga)) == 1


async def test_an_image_that_is_not_staged_is_a_final_failure_that_names_it(world: World) -> None:
    """No reference stays for an image that is not there."""
    digest = "sha256:" + "0" * 64

    with pytest.raises(NotFound, match=f"staging/{world.app_id}@{digest}.*Deploy the commit again"):
        await world.publish(digest, saga_id="s1")

    assert await world.references.of_saga("s1") == []


async def test_a_staged_image_with_a_missing_layer_is_not_published(world: World) -> None:
    """The image is read back before anybody is told of it."""
    staged = await world.staged()
    (world.folder / "images" / "blobs" / "sha256" / staged.layers[1].digest.removeprefix("sha256:")).unlink()

    with pytest.raises(NotFound, match="damaged"):
        await world.publish(staged.digest, saga_id="s1")

    assert await world.published() == []
    assert await world.references.of_saga("s1") == []


async def test_a_release_saga_takes_a_reference_on_what_is_published(world: World) -> None:
    """Rollback, config, scale and restart bring no bytes; the image then outlives the deploy that made it."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="deploy")
    await world.images.remove(staged.repository, staged.digest)

    answer = await world.publish(staged.digest, saga_id="rollback", staged=False)
    undone = await world.unpublish("deploy")

    assert (answer.repository, answer.tags) == ("shop", (COMMIT,))
    assert any("kept" in each and "1 other deployment holds" in each for each in undone.done)
    assert (await world.images.get("shop", staged.digest, verify=True)).tags == (COMMIT,)


async def test_a_release_saga_of_an_image_that_is_gone_fails_for_good_and_names_it(world: World) -> None:
    """The text says what to do; no reference stays."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="deploy")
    await world.unpublish("deploy")

    with pytest.raises(NotFound, match=f"shop@{staged.digest} is not published any more.*Deploy its commit again"):
        await world.publish(staged.digest, saga_id="rollback", staged=False)

    assert await world.references.of_saga("rollback") == []


async def test_a_release_saga_cannot_take_an_image_of_another_app(world: World) -> None:
    """A digest is no permission: the image must be published by this app."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="deploy")
    world.app_id = new_id()

    with pytest.raises(NotFound):
        await world.publish(staged.digest, saga_id="theft", staged=False)


async def test_an_undo_removes_the_image_and_says_so(world: World) -> None:
    """Nothing of the saga is left; the staged image is builder's to remove."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")

    answer = await world.unpublish("s1")

    assert answer.found == (f"reference of saga s1 to shop@{staged.digest}",)
    assert answer.done == (f"removed shop@{staged.digest}", "dropped 1 reference")
    assert await world.images.images() == [(staged.repository, staged.digest)]
    assert (await world.unpublish("s1")).found == ()
    await world.images.remove(staged.repository, staged.digest)
    assert world.blobs() == set()


async def test_an_undo_of_a_publication_that_was_cut_off_removes_what_it_made(world: World) -> None:
    """Killed between the copy and the outcome, and again between removing the bytes and dropping the reference."""
    staged = await world.staged()
    cut_off = Reference(app_id=world.app_id, digest=staged.digest, saga_id="s1", repository="shop", commit=COMMIT)
    async with world.references.taken(cut_off, step="publish"):
        await world.images.copy(staged.repository, staged.digest, to="shop", tags=[COMMIT])

    await world.images.remove("shop", staged.digest)
    answer = await world.unpublish("s1")

    assert answer.done == (f"shop@{staged.digest} was not there", "dropped 1 reference")
    assert await world.published() == []


async def test_the_same_digest_of_two_sagas_goes_with_the_last_one(world: World) -> None:
    """Two deployments of one commit never delete under each other."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")
    await world.publish(staged.digest, saga_id="s2")

    await world.unpublish("s1")
    assert await world.published() == [("shop", staged.digest)]
    await world.unpublish("s2")
    assert await world.published() == []


async def test_a_tag_goes_back_to_the_older_image_of_its_commit(world: World) -> None:
    """One commit built twice with different results: its tag names the newest one that is held."""
    one, two = await world.staged("built on Monday"), await world.staged("built on Tuesday")
    await world.publish(one.digest, saga_id="s1")
    await world.publish(two.digest, saga_id="s2")
    assert (await world.images.get("shop", one.digest)).tags == ()
    assert (await world.images.get("shop", two.digest)).tags == (COMMIT,)

    await world.unpublish("s2")

    assert (await world.images.get("shop", one.digest)).tags == (COMMIT,)


async def test_a_tag_goes_with_the_last_saga_of_its_commit(world: World) -> None:
    """Two commits with the same content: the image stays, the undone commit's tag does not."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1", commit=COMMIT)
    await world.publish(staged.digest, saga_id="s2", commit=OTHER_COMMIT)
    assert set((await world.images.get("shop", staged.digest)).tags) == {COMMIT, OTHER_COMMIT}

    await world.unpublish("s2")

    assert (await world.images.get("shop", staged.digest)).tags == (COMMIT,)


def test_a_commits_tag_is_the_image_taken_last() -> None:
    """Also when both were taken in one millisecond: then the later saga."""
    older = Reference(app_id="a", digest="d1", saga_id="s1", repository="shop", commit="c", taken_ms=1)
    newer = Reference(app_id="a", digest="d2", saga_id="s2", repository="shop", commit="c", taken_ms=1)
    upload = Reference(app_id="a", digest="d3", saga_id="s3", repository="shop", taken_ms=2)

    assert tags_of([newer, older, upload]) == {"d2": ("c",)}


async def test_an_undo_waits_while_another_publication_of_the_digest_is_in_its_middle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publication holds the digest before it brings bytes, so the undo that comes between removes nothing."""
    staged = await world.staged()
    await world.publish(staged.digest, saga_id="s1")
    in_the_middle, go_on = asyncio.Event(), asyncio.Event()
    copy = OciLayout.copy

    async def slow_copy(store: OciLayout, repository: str, digest: str, **more: Any) -> object:
        in_the_middle.set()
        await go_on.wait()
        return await copy(store, repository, digest, **more)

    monkeypatch.setattr(OciLayout, "copy", slow_copy)
    async with asyncio.TaskGroup() as group:
        publishing = group.create_task(world.publish(staged.digest, saga_id="s2"))
        await in_the_middle.wait()
        undoing = group.create_task(world.unpublish("s1"))
        await asyncio.wait([undoing], timeout=0.05)
        assert not undoing.done()
        go_on.set()

    assert publishing.result().digest == staged.digest
    assert any("kept" in each for each in undoing.result().done)
    await world.images.get("shop", staged.digest, verify=True)


async def test_many_sagas_of_few_digests_leave_exactly_what_is_held(world: World) -> None:
    """Published and undone at the same time, in any order."""
    staged = [await world.staged(f"version {number}") for number in range(2)]

    async def come_and_go(number: int) -> None:
        await world.publish(staged[number % 2].digest, saga_id=f"s{number}")
        if number % 4:
            await world.unpublish(f"s{number}")

    await asyncio.gather(*(come_and_go(number) for number in range(8)))

    assert await world.published() == [("shop", staged[0].digest)]
    assert {each.saga_id for each in await world.references.of_app(world.app_id)} == {"s0", "s4"}
    await world.images.get("shop", staged[0].digest, verify=True)


async def test_a_publication_that_wakes_after_its_undo_takes_nothing(world: World) -> None:
    """Its worker slept through its lease; the tombstone keeps it out."""
    staged = await world.staged()
    job = {"saga_id": "s1", "step": "publish", "app_id": world.app_id, "kind": "PublishImage", "accepted_ms": 1}
    counts = {"attempt": 1, "undo_attempt": 1, "lease_number": 1, "lost_leases": 0, "swept": False}
    await world.db.write(lambda conn: conn.execute(kernel.jobs.insert().values(**job, **counts, tombstone_ms=2)))

    with pytest.raises(FinalError) as refused:
        await world.publish(staged.digest, saga_id="s1")

    assert refused.value.reason_code == "undone"
    assert await world.published() == []
    assert await world.references.of_saga("s1") == []


async def test_replicas_that_share_a_database_exclude_each_other(world: World) -> None:
    """The lock is a row; who waits goes on when it is given back."""
    one = References(world.db, SystemClock(), shared=True)
    two = References(world.db, SystemClock(), shared=True)
    order: list[str] = []

    async def second() -> None:
        async with two.locked("shop"):
            order.append("second")

    async with asyncio.TaskGroup() as group:
        async with one.locked("shop"):
            waiting = group.create_task(second())
            await asyncio.wait([waiting], timeout=0.1)
            order.append("first")
        await waiting

    assert order == ["first", "second"]


async def test_the_lock_of_a_dead_replica_is_free_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then whoever waits says so and tries again; nobody waits for ever."""
    monkeypatch.setattr(rows, "LOCK_S", 0.5)
    monkeypatch.setattr(rows, "_POLL_S", 0.01)
    assert await world.db.write(lambda conn: rows._lock(conn, "shop", new_id()))

    async with References(world.db, SystemClock(), shared=True).locked("shop"):
        pass

    assert await world.db.write(lambda conn: rows._lock(conn, "shop", new_id()))


async def test_work_that_outlives_its_lock_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before another replica may take the lock."""
    monkeypatch.setattr(rows, "_WORK_S", 0.01)

    with pytest.raises(Unavailable, match="shop"):
        async with References(world.db, SystemClock(), shared=True).locked("shop"):
            await asyncio.Event().wait()

    assert await world.db.write(lambda conn: rows._lock(conn, "shop", new_id()))
