"""The layer cache, the choice of an interpreter, work folders: what holds when disks and tools misbehave."""

import contextlib
import os
from pathlib import Path

import pytest

from seedwork.errors import Unavailable
from seedwork.messages import new_id
from services.builder.adapters.layers.cache import LayerCache, key_of
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.folders import WorkFolders
from tests.services.builder.support import STATIC, Bench, digest_of, write_files


def cache_at(folder: Path, max_bytes: int = 10**9) -> LayerCache:
    return LayerCache(folder / "cache", max_bytes=max_bytes)


async def put(cache: LayerCache, key: str, folder: Path) -> Path:
    tree = write_files(folder / f"tree-{key}", {"file": "x" * 1000})
    layer = await cache.put(key, tree, prefix="layers/test", created_by="a test")
    assert layer.file.path is not None
    return layer.file.path


async def test_a_layer_is_found_by_its_key_in_a_later_process(tmp_path: Path) -> None:
    """With its digest, read-only, so that the image store can link it."""
    path = await put(cache_at(tmp_path), "one", tmp_path)

    found = await cache_at(tmp_path).get("one")

    assert found is not None
    assert found.cached
    assert found.file.descriptor.digest == found.file.diff_id == digest_of(path)
    assert path.stat().st_mode & 0o777 == 0o444
    assert await cache_at(tmp_path).get("other") is None


def test_every_input_counts() -> None:
    """Order does not."""
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of({"a": 1}), key_of({"a": 2}), key_of({"b": 1})}) == 3


async def test_half_an_entry_is_none(tmp_path: Path) -> None:
    """A killed process left a layer without its record, a record without its layer, or a short layer."""
    cache = cache_at(tmp_path)
    for key, damage in (("a", ".json"), ("b", ".tar")):
        path = await put(cache, key, tmp_path)
        path.with_suffix(damage).unlink()
        assert await cache.get(key) is None
    path = await put(cache, "c", tmp_path)
    path.unlink()
    path.write_bytes(b"short")
    assert await cache.get("c") is None


async def test_the_least_recently_used_layers_go_first_and_recent_ones_stay(tmp_path: Path) -> None:
    """A build may be copying a layer that was used within the last hour."""
    cache = cache_at(tmp_path, max_bytes=1)
    old = await put(cache, "old", tmp_path)
    recent = await put(cache, "recent", tmp_path)
    os.utime(old.with_suffix(".json"), (1, 1))

    await put(cache, "new", tmp_path)

    assert not old.exists()
    assert recent.exists()
    assert await cache.get("old") is None
    assert await cache.get("recent") is not None


async def test_a_damaged_cached_layer_is_made_anew_by_the_next_attempt(bench: Bench) -> None:
    """The image store notices; the failure is retryable, and the retry succeeds."""
    first = await bench.build(STATIC, {"index.html": "one"})
    (path,) = (bench.folder / "home/cache/layers").glob("*.tar")
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.unlink()
    path.write_bytes(content)
    await bench.images.remove(first.repository, first.digest)

    with pytest.raises(Unavailable, match="made anew"):
        await bench.build(STATIC, {"index.html": "one"})

    assert (await bench.build(STATIC, {"index.html": "one"})).digest == first.digest


async def test_programs_that_are_no_interpreters_are_passed_over(tmp_path: Path) -> None:
    """Shims that start nothing, files that only have the name, folders of PATH that are not there."""
    write_files(
        tmp_path, {"python3.12": "#!/bin/sh\nexit 1\n", "python3": "#!/bin/sh\necho '[1, 2'\n", "python3.9": "x"}
    )

    found = await Interpreters(f"{tmp_path}:{tmp_path}/none").all()

    assert len(found) == 1
    assert found[0].path.exists()


async def test_a_work_folder_goes_however_the_build_ends(tmp_path: Path) -> None:
    """Also with folders in it that not even their owner may write to; and it begins empty."""
    folders, saga = WorkFolders(tmp_path / "work"), new_id()
    write_files(tmp_path / "work" / saga, {"left": "by an earlier attempt"})

    async def build() -> None:
        async with folders.of(saga) as folder:
            assert list(folder.iterdir()) == []
            locked = write_files(folder / "locked", {"in/file": "x"})
            (locked / "in").chmod(0o500)
            locked.chmod(0o500)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await build()

    assert list((tmp_path / "work").iterdir()) == []
    assert await folders.remove(saga) is False


async def test_who_comes_late_out_of_a_build_leaves_the_next_attempt_its_folder(tmp_path: Path) -> None:
    """A replica that stood still is still in the build when another one takes it up, in the same home."""
    sleeper, waker, saga = WorkFolders(tmp_path / "work"), WorkFolders(tmp_path / "work"), new_id()

    async with contextlib.AsyncExitStack() as asleep:
        old = await asleep.enter_async_context(sleeper.of(saga))
        assert await waker.has(saga)
        async with waker.of(saga) as new:
            assert not old.exists()
            (new / "file").write_text("x")
            await asleep.aclose()
            assert (new / "file").read_text() == "x"

    assert list((tmp_path / "work").iterdir()) == []
    assert not await waker.has(saga)


async def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """Before the first build."""
    folders = WorkFolders(tmp_path / "work")
    assert await folders.sweep() == 0
    write_files(tmp_path / "work", {f"{new_id()}/a": "1", f"{new_id()}/b": "2"})

    assert await folders.sweep() == 2
    assert list((tmp_path / "work").iterdir()) == []
