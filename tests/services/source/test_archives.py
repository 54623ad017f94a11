"""Bytes are there for exactly as long as somebody holds them."""

import asyncio
import random
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.archives import NormalTar, pack_tar
from seedwork.errors import InvalidInput, NotFound
from seedwork.unit_of_work import Database
from services.source import archives as module
from services.source import models
from services.source.archives import Archives, forget
from tests.services.source.conftest import drafts, stored


def packed(draft: Path, tmp_path: Path, content: str) -> NormalTar:
    tree = tmp_path / f"tree-{content}"
    tree.mkdir(exist_ok=True)
    (tree / "f").write_text(content)
    digest, size = pack_tar(tree, draft)
    return NormalTar(digest=digest, size_bytes=size, entries=1)


async def kept(archives: Archives, tmp_path: Path, content: str, *, saga: str, app: str = "app") -> str:
    async with archives.draft() as draft:
        normal = packed(draft, tmp_path, content)
        await archives.keep(normal, draft, app_id=app, saga_id=saga)
    return normal.digest


async def test_an_archive_can_be_read_until_its_holder_lets_go(archives: Archives, home: Path, tmp_path: Path) -> None:
    """Then there is nothing of it left."""
    digest = await kept(archives, tmp_path, "a", saga="1")
    with archives.open(digest) as file:
        assert file.read(1) != b""
        (dropped,) = await archives.drop("1")
        assert dropped == module.Dropped(digest, bytes_removed=True)
        assert len(file.read()) > 512, "who reads reads to the end"
    assert stored(home) == set()
    assert drafts(home) == []
    with pytest.raises(NotFound, match=digest):
        archives.open(digest)


async def test_two_sagas_of_one_commit_do_not_delete_under_each_other(
    archives: Archives, home: Path, tmp_path: Path
) -> None:
    """Nor do two apps with the same bytes; dropping twice is dropping once."""
    digest = await kept(archives, tmp_path, "a", saga="1")
    assert await kept(archives, tmp_path, "a", saga="2", app="other") == digest
    assert await kept(archives, tmp_path, "a", saga="2", app="other") == digest, "a handler may run again"
    assert [each.bytes_removed for each in await archives.drop("1")] == [False]
    assert await archives.drop("1") == []
    assert stored(home) == {digest}
    assert [each.bytes_removed for each in await archives.drop("2")] == [True]
    assert stored(home) == set()


async def test_who_holds_has_the_bytes_whatever_happens_at_once(archives: Archives, home: Path, tmp_path: Path) -> None:
    """Many sagas take and drop two digests at the same time, with sweeps in between."""
    chance = random.Random(7)  # noqa: S311 - it must be the same in every run

    async def saga(name: str) -> None:
        for _ in range(3):
            digest = await kept(archives, tmp_path, chance.choice("ab"), saga=name)
            archives.open(digest).close()  # raises, if the bytes are gone
            if chance.random() < 0.3:
                await archives.sweep()
            archives.open(digest).close()
            await archives.drop(name)

    await asyncio.gather(*(saga(f"saga-{number}") for number in range(12)))
    assert stored(home) == set()
    assert drafts(home) == []


async def test_a_success_lets_go_and_the_sweep_removes(
    archives: Archives, home: Path, tmp_path: Path, db: Database
) -> None:
    """What others hold stays."""
    alone = await kept(archives, tmp_path, "a", saga="1")
    shared = await kept(archives, tmp_path, "b", saga="1")
    await kept(archives, tmp_path, "b", saga="2")
    await db.write(lambda conn: forget(conn, "1"))
    assert stored(home) == {alone, shared}
    assert await archives.sweep() == 1
    assert stored(home) == {shared}


async def test_a_reference_that_came_after_its_undo_is_swept(
    archives: Archives, home: Path, tmp_path: Path, db: Database
) -> None:
    """A worker slept through the undo of its own work; work that is only tombstoned is left to its undo."""
    await kept(archives, tmp_path, "a", saga="1")
    open_one = await kept(archives, tmp_path, "b", saga="2")
    rows = [
        {"saga_id": saga, "step": "source", "app_id": "app", "kind": "FetchSource", "accepted_ms": 1}
        | {"attempt": 1, "undo_state": state, "undo_attempt": 1, "tombstone_ms": 1}
        | {"lease_number": 1, "lost_leases": 0, "swept": False}
        for saga, state in (("1", "done"), ("2", "queued"))
    ]
    async with db.engine.begin() as conn:
        await conn.execute(insert(models.kernel.jobs), rows)
    assert await archives.sweep() == 1
    assert stored(home) == {open_one}


async def test_an_archive_that_is_shorter_than_it_should_be_is_replaced(
    archives: Archives, home: Path, tmp_path: Path
) -> None:
    """A crash of the machine may leave such a file; it is not taken for the whole."""
    digest = await kept(archives, tmp_path, "a", saga="1")
    place = home / "archives/sha256" / digest.removeprefix("sha256:")
    whole = place.read_bytes()
    place.write_bytes(whole[:100])
    await kept(archives, tmp_path, "a", saga="2")
    assert place.read_bytes() == whole


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "a" * 64, "sha256:" + "A" * 64])
async def test_what_is_no_digest_names_no_file(archives: Archives, digest: str) -> None:
    """A digest is never a path."""
    with pytest.raises(InvalidInput, match="digest"):
        archives.open(digest)


async def test_drafts_of_a_killed_process_are_cleared(archives: Archives, home: Path) -> None:
    """Young ones are left alone where another replica may be at work on them."""
    (home / "drafts/left.tar").write_bytes(b"x")
    await archives.clear_drafts(3600)
    assert drafts(home) == ["left.tar"]
    await archives.clear_drafts(0)
    assert drafts(home) == []


async def test_the_watch_sees_bytes_that_go_too_early(
    archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a drop that does not look for other holders, one of them loses its bytes: the tests above can fail."""

    async def nobody(_conn: AsyncConnection, _digest: str) -> bool:
        return False

    monkeypatch.setattr(module, "_is_held", nobody)
    digest = await kept(archives, tmp_path, "a", saga="1")
    await kept(archives, tmp_path, "a", saga="2")
    await archives.drop("1")
    with pytest.raises(NotFound):
        archives.open(digest)
