"""The directory keeps the contract of the port, and what only a directory can promise."""

import asyncio
import errno
import fcntl
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from ocistore import directory
from ocistore import manifest as oci
from ocistore.ingest import Stopped
from ocistore.layout import OciLayout
from ocistore.opening import open_store
from ocistore.store import ImageStore, LayerFile
from ocistore.testing import Damage, ImageStoreContract, image_config, layer_file, put_image
from seedwork.errors import StorageFull, Unavailable


class TestOciLayout(ImageStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ImageStore]:
        self.root = tmp_path / "images"
        store = OciLayout(self.root)
        yield store
        await store.close()
        assert list((self.root / "ingest").glob("*")) == []

    def blobs(self, store: ImageStore) -> set[str]:
        assert isinstance(store, OciLayout)
        return {f"sha256:{path.name}" for path in (self.root / "blobs" / "sha256").glob("*")}

    def damage(self, store: ImageStore, digest: str, how: Damage) -> None:
        assert isinstance(store, OciLayout)
        path = self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
        content = path.read_bytes()
        path.unlink()
        if how == "short":
            path.write_bytes(content[:-1])
        elif how == "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


# --- what only a directory can promise --------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OciLayout]:
    store = OciLayout(tmp_path / "images")
    yield store
    await store.close()


def blobs_of(root: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (root / "blobs" / "sha256").iterdir()}


async def needed(store: OciLayout) -> set[str]:
    """Every blob of every visible image; each image is read back on the way."""
    digests: set[str] = set()
    for repository, digest in await store.images():
        image = await store.get(repository, digest, verify=True)
        for layer in image.layers:
            assert [piece async for piece in store.read_blob(repository, layer.digest)]
        digests |= {digest, image.manifest["config"]["digest"], *(layer.digest for layer in image.layers)}
    return digests


async def test_each_repository_is_a_layout_that_other_tools_read(tmp_path: Path, store: OciLayout) -> None:
    """oci-layout, index.json with one descriptor a tag, and blobs by a relative link, also after a move."""
    image = await put_image(store, "team/shop", tmp_path, {"app.py": "x"}, tags=["v1", "latest"])
    await store.close()
    moved = (tmp_path / "images").rename(tmp_path / "elsewhere")

    layout = moved / "repositories" / "team+shop"
    assert orjson.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = orjson.loads((layout / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    assert [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]] == ["v1", "latest"]
    for descriptor in index["manifests"]:
        content = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
        assert (oci.digest_of(content), len(content)) == (image.digest, descriptor["size"])
    assert await OciLayout(moved).get("team/shop", image.digest, verify=True) == image


async def test_a_file_that_nobody_may_write_to_is_linked_and_any_other_copied(tmp_path: Path, store: OciLayout) -> None:
    """A link costs no room; only a file that will not change may be one. Blobs are read-only in either case."""
    fixed, open_to_change = layer_file(tmp_path, {"a": "1"}, mode=0o444), layer_file(tmp_path, {"b": "2"}, mode=0o644)
    await store.put("shop", config=image_config([fixed, open_to_change]), layers=[fixed, open_to_change])

    for layer, linked in ((fixed, True), (open_to_change, False)):
        assert layer.path is not None
        blob = tmp_path / "images" / "blobs" / "sha256" / layer.descriptor.digest.removeprefix("sha256:")
        assert blob.samefile(layer.path) is linked
        assert blob.stat().st_mode & 0o777 == 0o444


async def test_a_symbolic_link_to_a_layer_is_followed_never_stored(tmp_path: Path, store: OciLayout) -> None:
    """The blob is a file of its own, whatever becomes of the link."""
    layer = layer_file(tmp_path, {"a": "1"}, mode=0o444)
    link = tmp_path / "link"
    assert layer.path is not None
    link.symlink_to(layer.path)
    linked = LayerFile(descriptor=layer.descriptor, diff_id=layer.diff_id, path=link)

    await store.put("shop", config=image_config([linked]), layers=[linked])

    blob = tmp_path / "images" / "blobs" / "sha256" / layer.descriptor.digest.removeprefix("sha256:")
    assert not blob.is_symlink()
    assert blob.read_bytes() == layer.path.read_bytes()


@pytest.mark.parametrize("change", ["put", "put-first", "copy", "remove"])
async def test_killed_at_any_step_the_store_has_the_image_or_not_and_nothing_else(tmp_path: Path, change: str) -> None:
    """SIGKILL before each step that changes the disk: what is visible is complete, the rest goes at the next open."""
    steps = await run_script("crash.py", tmp_path / "stores", tmp_path / "files", change)
    roots = sorted((tmp_path / "stores").iterdir())
    assert len(roots) == int(steps) > 5

    for root in roots:
        store = OciLayout(root)
        visible = await needed(store)
        orphans = blobs_of(root) - visible
        assert not orphans or (root / "lock").read_bytes() == b"1", "whoever comes next must know that it has to clean"

        await store.open()

        assert blobs_of(root) == visible
        assert len(list((root / "ingest").iterdir())) == 1
        await store.close()
        assert list((root / "ingest").iterdir()) == []


async def test_who_takes_the_lock_after_a_dead_one_cleans_up(tmp_path: Path, store: OciLayout) -> None:
    """Without opening the store anew: the lock's byte tells."""
    image = await put_image(store, "shop", tmp_path, {"a": "1"})
    orphan = tmp_path / "images" / "blobs" / "sha256" / ("0" * 64)
    orphan.write_bytes(b"left by a dead process")
    (tmp_path / "images" / "lock").write_bytes(b"1")

    await store.tag("shop", image.digest, tags=["v1"])

    assert not orphan.exists()
    assert (tmp_path / "images" / "lock").read_bytes() == b"0"
    assert blobs_of(tmp_path / "images") == await needed(store)


async def test_what_a_living_process_is_bringing_in_is_left_alone(tmp_path: Path, store: OciLayout) -> None:
    """Opening removes the folders of dead processes only."""
    await store.open()
    (mine,) = (tmp_path / "images" / "ingest").iterdir()
    (tmp_path / "images" / "ingest" / "dead").mkdir()
    (tmp_path / "images" / "ingest" / "dead" / "half a layer").write_text("x")

    other = OciLayout(tmp_path / "images")
    await other.open()

    assert mine.exists()
    assert not (tmp_path / "images" / "ingest" / "dead").exists()
    await other.close()
    assert list((tmp_path / "images" / "ingest").iterdir()) == [mine]


async def test_several_processes_share_a_store(tmp_path: Path) -> None:
    """They put and remove images with shared layers; at the end there is exactly what they left."""
    root = tmp_path / "images"
    names = ["one", "two", "three"]

    await asyncio.gather(*(run_script("traffic.py", root, tmp_path / name, name, "12") for name in names))

    store = OciLayout(root)
    assert {repository for repository, _ in await store.images()} == {*names, "everybody/last"}
    assert blobs_of(root) == await needed(store)


@pytest.mark.parametrize("step", ["mkdir", "symlink", "fsync", "rename", "link"])
async def test_a_full_disk_at_any_step_leaves_nothing(
    tmp_path: Path, store: OciLayout, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """From the n-th call on, every call of that kind says that there is no room; afterwards all is as before."""
    root = tmp_path / "images"
    await put_image(store, "other", tmp_path, {"lib.py": "shared"})
    layers = [layer_file(tmp_path, {name: "new"}, mode=0o444) for name in ("a", "b")]
    before = blobs_of(root), await store.images()
    real = getattr(os, step)
    failures = 0

    for first in range(1, 20):
        calls = 0

        def full(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls >= first:  # noqa: B023  called before the next turn
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        monkeypatch.setattr(os, step, full)
        try:
            await store.put("shop", config=image_config(layers), layers=layers)
        except StorageFull as error:
            failures += 1
            assert "Free space" in error.message  # noqa: PT017  the loop ends with the first success
        else:
            break
        finally:
            monkeypatch.setattr(os, step, real)
        if step == "link":  # a file that cannot be linked is copied
            raise AssertionError("a link that fails must not fail the put")
        if step != "fsync":  # the last one comes when the image is there already
            assert (blobs_of(root), await store.images()) == before
        assert blobs_of(root) == await needed(store)
        assert len(list((root / "ingest").rglob("*"))) == 2, "only the open store's own folder and its mark"

    assert blobs_of(root) == await needed(store)
    assert failures > 0 or step == "link"


async def test_a_cancelled_put_returns_when_its_thread_has_stopped(
    tmp_path: Path, store: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing appears behind the caller's back after the cancellation."""
    reading, ended = threading.Event(), threading.Event()

    def slow(_source: Path, _descriptor: object, target: Path, stop: threading.Event) -> None:
        target.write_bytes(b"half a layer")
        reading.set()
        stop.wait(20)
        ended.set()
        raise Stopped

    monkeypatch.setattr(directory, "bring_in", slow)
    putting = asyncio.create_task(put_image(store, "shop", tmp_path, {"a": "1"}))
    await asyncio.to_thread(reading.wait, 20)
    putting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await putting

    assert ended.is_set()
    assert blobs_of(tmp_path / "images") == set()
    assert len(list((tmp_path / "images" / "ingest").rglob("*"))) == 2


async def test_a_lock_that_is_never_given_back_is_told_of(tmp_path: Path) -> None:
    """The text names the file by which the holder is found."""
    store = OciLayout(tmp_path / "images", lock_timeout_s=0.05)
    await store.open()
    with (tmp_path / "images" / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="images/lock"):
            await put_image(store, "shop", tmp_path, {"a": "1"})

    await put_image(store, "shop", tmp_path, {"a": "1"})
    await store.close()


async def test_a_fault_of_the_file_system_is_never_a_bare_oserror(tmp_path: Path) -> None:
    """It is retryable, and says where and why."""
    (tmp_path / "images").write_text("a file where the folder should be")
    store = OciLayout(tmp_path / "images")

    with pytest.raises(Unavailable, match=f"{tmp_path / 'images'}.*Check"):
        await put_image(store, "shop", tmp_path, {"a": "1"})
    with pytest.raises(Unavailable):
        await store.images()
    with pytest.raises(Unavailable):
        await store.get("shop", "sha256:" + "0" * 64)
    with pytest.raises(Unavailable):
        await store.remove("shop", "sha256:" + "0" * 64)


async def test_a_damaged_index_is_told_of_and_never_taken_for_an_empty_one(tmp_path: Path, store: OciLayout) -> None:
    """Else its blobs would be collected."""
    image = await put_image(store, "shop", tmp_path, {"a": "1"})
    other = await put_image(store, "other", tmp_path, {"b": "1"})
    index = tmp_path / "images" / "repositories" / "shop" / "index.json"
    intact = index.read_bytes()

    for text in (b"", b"{", b"[]", b'{"manifests": [1]}', b'{"manifests": [{"digest": "x"}]}'):
        index.unlink()
        index.write_bytes(text)
        with pytest.raises(Unavailable, match="shop"):
            await store.get("shop", image.digest)
        with pytest.raises(Unavailable, match="shop"):
            await store.remove("other", other.digest)

    index.write_bytes(intact)
    await store.get("shop", image.digest, verify=True)


async def test_what_is_no_repository_in_the_folder_is_overlooked(tmp_path: Path, store: OciLayout) -> None:
    """A file of the file manager's is not an image."""
    image = await put_image(store, "shop", tmp_path, {"a": "1"})
    (tmp_path / "images" / "repositories" / ".DS_Store").write_text("x")

    assert await store.images() == [("shop", image.digest)]
    assert await store.remove("shop", image.digest) is True


async def test_a_file_in_the_way_of_one_repository_harms_no_other(tmp_path: Path, store: OciLayout) -> None:
    """That one cannot be written, and says so; images come and go everywhere else."""
    (tmp_path / "images" / "repositories").mkdir(parents=True, exist_ok=True)
    (tmp_path / "images" / "repositories" / "taken").write_text("")
    with pytest.raises(Unavailable):
        await put_image(store, "taken", tmp_path, {"a": "1"})

    image = await put_image(store, "shop", tmp_path, {"a": "1"})
    assert await store.images() == [("shop", image.digest)]
    assert await store.remove("shop", image.digest) is True
    assert [file for file in (tmp_path / "images" / "blobs").rglob("*") if file.is_file()] == []


async def run_script(name: str, *arguments: str | Path) -> str:
    """Run a script of this folder to its end; what it printed."""
    script = Path(__file__).parent / name
    path = os.pathsep.join(each for each in sys.path if each)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        *map(str, arguments),
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


async def test_a_probe_says_that_the_store_cannot_be_used(tmp_path: Path) -> None:
    """Its folder is gone, or was never one; nothing of a probe stays."""
    store = OciLayout(tmp_path / "images")
    await store.probe()
    assert list((tmp_path / "images" / "repositories").iterdir()) == []

    (tmp_path / "images" / "repositories").rmdir()
    with pytest.raises(Unavailable, match="cannot be used"):
        await store.probe()
    await store.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be used"):
        await OciLayout(tmp_path / "file").probe()


async def test_a_probe_says_that_the_registry_does_not_answer() -> None:
    """At once: nobody waits for it to come back."""
    store = open_store("http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"The registry 127\.0\.0\.1:9 failed the check of the image store"):
        await store.probe()
    await store.close()
