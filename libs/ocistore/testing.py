"""The image store in tests: a fake in memory, small images to put into any store, and the port's contract suite.

`ImageStoreContract` is inherited by the tests of every adapter and of the fake: what passes it can stand in for any
other.
"""
# ruff: noqa: S101 - these are tests, kept where every adapter's tests find them

import asyncio
import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import orjson
import pytest

from ocistore import manifest as oci
from ocistore.store import Descriptor, Image, ImageStore, LayerFile
from seedwork.errors import InvalidInput, KnarrError, NotFound, Unavailable

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
Damage = Literal["missing", "short", "changed"]


# --- images for tests -------------------------------------------------------------------------------------------------


def layer_file(
    folder: Path, files: Mapping[str, str], *, mode: int = 0o644, links: Mapping[str, str] | None = None
) -> LayerFile:
    """A gzipped layer in `folder` with these files (text by path) and links (target by path), always the same bytes."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, text in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in sorted((links or {}).items()):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    packed = gzip.compress(raw.getvalue(), mtime=0)
    digest = oci.digest_of(packed)
    path = folder / f"{digest.removeprefix('sha256:')}.tar.gz"
    if not path.exists():
        path.write_bytes(packed)
        path.chmod(mode)
    return LayerFile(
        descriptor=Descriptor(media_type=LAYER_GZIP, digest=digest, size_bytes=len(packed)),
        diff_id=oci.digest_of(raw.getvalue()),
        path=path,
    )


def image_config(layers: Sequence[LayerFile], *, labels: Mapping[str, str] | None = None) -> bytes:
    """A config that fits these layers."""
    return orjson.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": dict(labels or {})},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        },
        option=orjson.OPT_SORT_KEYS,
    )


async def put_image(
    store: ImageStore,
    repository: str,
    folder: Path,
    *layers: Mapping[str, str],
    tags: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Image:
    """Store an image with one layer for each mapping of text by path; `folder` gets the layer files."""
    files = [layer_file(folder, layer) for layer in layers]
    return await store.put(repository, config=image_config(files, labels=labels), layers=files, tags=tags)


# --- the fake ---------------------------------------------------------------------------------------------------------


@dataclass
class MemoryImageStore:
    """An `ImageStore` in memory. `fail_next` holds errors that the next calls of a method raise, by method name."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, oci.Index] = field(default_factory=dict)
    fail_next: dict[str, list[KnarrError]] = field(default_factory=dict)

    async def put(
        self, repository: str, *, config: bytes, layers: Sequence[LayerFile], tags: Sequence[str] = ()
    ) -> Image:
        """See `ImageStore.put`."""
        oci.check_repository(repository)
        checked = oci.check_tags(tags)
        draft = oci.draft(config, layers)
        self._fail("put")
        contents = {draft.manifest_digest: draft.manifest, draft.config_digest: draft.config}
        for layer in layers:
            contents[layer.descriptor.digest] = self._content(layer)
        self.blobs |= contents
        entry = self._index(repository).get(draft.manifest_digest, oci.Entry(size_bytes=len(draft.manifest)))
        return self._set(repository, draft.manifest_digest, oci.joined(entry.tags, checked))

    async def copy(self, repository: str, digest: str, *, to: str, tags: Sequence[str] = ()) -> Image:
        """See `ImageStore.copy`."""
        oci.check_repository(to)
        checked = oci.check_tags(tags)
        await self.get(repository, digest, verify=True)
        self._fail("copy")
        entry = self._index(to).get(digest, oci.Entry(size_bytes=0))
        return self._set(to, digest, oci.joined(entry.tags, checked))

    async def tag(self, repository: str, digest: str, *, tags: Sequence[str]) -> Image:
        """See `ImageStore.tag`."""
        checked = oci.check_tags(tags)
        await self.get(repository, digest)
        self._fail("tag")
        return self._set(repository, digest, checked)

    async def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """See `ImageStore.get`."""
        oci.check_repository(repository)
        oci.check_digest(digest)
        self._fail("get")
        entry = self._index(repository).get(digest)
        if entry is None:
            raise NotFound(f"There is no image {repository}@{digest}")
        try:
            manifest = self._whole(digest)
            config = self._whole(oci.read_manifest(manifest).config.digest)
            image = oci.image(repository, manifest, config, entry.tags if tagged else ())
        except (KeyError, ValueError) as error:
            raise NotFound(f"{repository}@{digest} is damaged", why=str(error)) from error
        for layer in image.layers if verify else ():
            if len(self.blobs.get(layer.digest, b"")) != layer.size_bytes:
                raise NotFound(f"{repository}@{digest} is damaged", why=f"blob {layer.digest}")
        return image

    async def remove(self, repository: str, digest: str) -> bool:
        """See `ImageStore.remove`."""
        oci.check_repository(repository)
        oci.check_digest(digest)
        self._fail("remove")
        index = self._index(repository)
        if digest not in index:
            return False
        self.repositories[repository] = oci.without_image(index, digest)
        needed = {blob for each in self.repositories.values() for manifest in each for blob in self._needs(manifest)}
        self.blobs = {each: content for each, content in self.blobs.items() if each in needed}
        return True

    async def images(self, prefix: str = "") -> Sequence[tuple[str, str]]:
        """See `ImageStore.images`."""
        self._fail("images")
        found = [(name, digest) for name, index in self.repositories.items() for digest in index]
        return sorted(each for each in found if each[0].startswith(prefix))

    async def read_blob(self, repository: str, digest: str) -> AsyncIterator[bytes]:
        """See `ImageStore.read_blob`."""
        self._fail("read_blob")
        if digest not in {blob for manifest in self._index(repository) for blob in self._needs(manifest)}:
            raise NotFound(f"No image of {repository} has a blob {digest}")
        content = self.blobs.get(digest)
        if content is None:
            raise NotFound(f"No image of {repository} has a blob {digest}")
        for start in range(0, len(content), 1 << 20):
            yield content[start : start + (1 << 20)]
        self._checked(digest, content)

    def _fail(self, method: str) -> None:
        waiting = self.fail_next.get(method)
        if waiting:
            raise waiting.pop(0)

    def _index(self, repository: str) -> oci.Index:
        return self.repositories.get(repository, {})

    def _set(self, repository: str, digest: str, tags: Sequence[str]) -> Image:
        manifest = self.blobs[digest]
        self.repositories[repository] = oci.with_image(
            self._index(repository), digest, size_bytes=len(manifest), tags=tags
        )
        config = self.blobs[oci.read_manifest(manifest).config.digest]
        return oci.image(repository, manifest, config, tags)

    def _content(self, layer: LayerFile) -> bytes:
        digest = layer.descriptor.digest
        there = self.blobs.get(digest)
        if there is not None and len(there) == layer.descriptor.size_bytes:
            return there
        if layer.path is None:
            raise NotFound(f"The store does not have {digest}, and no file was given for it")
        if not layer.path.is_file():
            raise InvalidInput(f"There is no file {layer.path}")
        content = layer.path.read_bytes()
        if oci.digest_of(content) != digest or len(content) != layer.descriptor.size_bytes:
            raise InvalidInput(f"The layer file {layer.path} is not what its descriptor says")
        return content

    def _whole(self, digest: str) -> bytes:
        return self._checked(digest, self.blobs[digest])

    def _checked(self, digest: str, content: bytes) -> bytes:
        if oci.digest_of(content) != digest:
            raise NotFound(f"Blob {digest} is damaged")
        return content

    def _needs(self, manifest: str) -> frozenset[str]:
        try:
            return oci.read_manifest(self.blobs[manifest]).blobs
        except (KeyError, ValueError):
            return frozenset([manifest])


# --- the contract -----------------------------------------------------------------------------------------------------


class ImageStoreContract:
    """What every image store does. A subclass has a `store` fixture and says how to look at blobs and damage one."""

    replaces_damaged_blobs: ClassVar[bool] = True
    """Whether putting an image again replaces a blob that is there but not what its name says."""
    damaged_manifest: ClassVar[tuple[type[KnarrError], ...]] = (NotFound,)
    """What reading an image raises whose manifest is damaged."""

    def blobs(self, store: ImageStore) -> set[str]:
        """The digests of all blobs that the store holds, whoever needs them."""
        raise NotImplementedError

    def damage(self, store: ImageStore, digest: str, how: Damage) -> None:
        """Let a blob be missing, be one byte short, or have another byte in the same size."""
        raise NotImplementedError

    async def test_what_was_put_is_read_back(self, store: ImageStore, tmp_path: Path) -> None:
        """Manifest, config, layers, tags and size come back as they were given."""
        put = await put_image(
            store, "staging/one", tmp_path, {"lib.py": "x = 1"}, {"app.py": "y"}, tags=["v1"], labels={"a": "b"}
        )

        image = await store.get("staging/one", put.digest, verify=True)

        assert image == put
        assert image.repository == "staging/one"
        assert image.tags == ("v1",)
        assert await store.get("staging/one", put.digest, tagged=False) == replace(put, tags=())
        assert image.config["config"]["Labels"] == {"a": "b"}
        assert image.manifest["mediaType"] == oci.MEDIA_MANIFEST
        assert len(image.layers) == 2
        config_bytes = image.manifest["config"]["size"]
        stored = len(orjson.dumps(image.manifest, option=orjson.OPT_SORT_KEYS)) + config_bytes
        assert image.size_bytes == stored + sum(layer.size_bytes for layer in image.layers)
        assert self.blobs(store) == {
            image.digest,
            image.manifest["config"]["digest"],
            *(layer.digest for layer in image.layers),
        }

    async def test_the_layer_files_stay_with_the_caller(self, store: ImageStore, tmp_path: Path) -> None:
        """A put changes nothing about the files that it was given, and they may go afterwards."""
        layer = layer_file(tmp_path, {"app.py": "x"})
        assert layer.path is not None
        before = layer.path.read_bytes(), layer.path.stat().st_mode

        image = await store.put("shop", config=image_config([layer]), layers=[layer])

        assert (layer.path.read_bytes(), layer.path.stat().st_mode) == before
        layer.path.unlink()
        await store.get("shop", image.digest, verify=True)

    async def test_a_file_that_its_owner_changes_later_changes_no_image(
        self, store: ImageStore, tmp_path: Path
    ) -> None:
        """A writable file is the caller's to write to; the image has bytes of its own."""
        layer = layer_file(tmp_path, {"app.py": "x"}, mode=0o644)
        assert layer.path is not None
        original = layer.path.read_bytes()
        image = await store.put("shop", config=image_config([layer]), layers=[layer])

        with layer.path.open("r+b") as file:
            file.write(b"other bytes")

        assert b"".join([piece async for piece in store.read_blob("shop", image.layers[0].digest)]) == original

    async def test_a_blob_comes_in_pieces_of_a_mebibyte(self, store: ImageStore, tmp_path: Path) -> None:
        """A large layer is streamed, complete and in order."""
        noise = hashlib.shake_256(b"knarr").hexdigest(2_000_000)
        layer = layer_file(tmp_path, {"big.bin": noise})
        assert layer.path is not None
        await store.put("shop", config=image_config([layer]), layers=[layer])

        pieces = [piece async for piece in store.read_blob("shop", layer.descriptor.digest)]

        assert len(pieces) > 1
        assert max(map(len, pieces)) <= 1 << 20
        assert b"".join(pieces) == layer.path.read_bytes()

    async def test_putting_the_same_again_changes_nothing(self, store: ImageStore, tmp_path: Path) -> None:
        """The digest is the content; the second put may also be without files."""
        first = await put_image(store, "shop", tmp_path, {"app.py": "x"}, tags=["a"])
        blobs = self.blobs(store)
        layer = layer_file(tmp_path, {"app.py": "x"})
        there = LayerFile(descriptor=layer.descriptor, diff_id=layer.diff_id, from_repository="shop")

        again = await store.put("shop", config=image_config([layer]), layers=[layer])
        without_files = await store.put("shop", config=image_config([there]), layers=[there])

        assert first == again == without_files
        assert self.blobs(store) == blobs

    async def test_a_layer_without_a_file_that_is_not_there_is_refused(self, store: ImageStore, tmp_path: Path) -> None:
        """The text names the layer, and nothing of the image stays."""
        layer = layer_file(tmp_path, {"app.py": "x"})
        gone = LayerFile(descriptor=layer.descriptor, diff_id=layer.diff_id, from_repository="shop")

        with pytest.raises(NotFound, match=layer.descriptor.digest):
            await store.put("shop", config=image_config([gone]), layers=[gone])

        assert self.blobs(store) == set()
        assert await store.images() == []

    @pytest.mark.parametrize("wrong", ["bytes", "size", "file"])
    async def test_a_file_that_is_not_what_its_descriptor_says_is_refused(
        self, store: ImageStore, tmp_path: Path, wrong: str
    ) -> None:
        """Other bytes, another size, no file: the text names the file, and nothing of the image stays."""
        good, bad = layer_file(tmp_path, {"lib.py": "x"}), layer_file(tmp_path, {"app.py": "x"})
        assert bad.path is not None
        content = bytearray(bad.path.read_bytes())
        content[-1] ^= 1
        bad.path.write_bytes(content + b"x" if wrong == "size" else content)
        if wrong == "file":
            bad.path.unlink()

        with pytest.raises(InvalidInput, match=bad.path.name):
            await store.put("shop", config=image_config([good, bad]), layers=[good, bad])

        assert self.blobs(store) == set()
        assert await store.images() == []

    async def test_a_config_of_other_layers_is_refused(self, store: ImageStore, tmp_path: Path) -> None:
        """An image that no runtime could unpack is not stored."""
        one, two = layer_file(tmp_path, {"a": "1"}), layer_file(tmp_path, {"b": "2"})

        for config in (image_config([one]), b"{}", b"not JSON", b"[]"):
            with pytest.raises(InvalidInput):
                await store.put("shop", config=config, layers=[two])

        assert self.blobs(store) == set()

    @pytest.mark.parametrize(
        "name", ["", "..", "a/../b", "/a", "a/", "a//b", "A", "a b", "a+b", "a\n", ".a", "a/.b", "a" * 300, "a/b:c"]
    )
    async def test_a_name_that_is_no_repository_is_refused(self, store: ImageStore, tmp_path: Path, name: str) -> None:
        """No name leads out of the store."""
        with pytest.raises(InvalidInput):
            await put_image(store, name, tmp_path, {"a": "1"})
        with pytest.raises(InvalidInput):
            await store.get(name, "sha256:" + "0" * 64)
        image = await put_image(store, "shop", tmp_path, {"a": "1"})
        with pytest.raises(InvalidInput):
            await store.copy("shop", image.digest, to=name)

    async def test_a_digest_or_tag_that_is_none_is_refused(self, store: ImageStore, tmp_path: Path) -> None:
        """No digest and no tag leads anywhere else."""
        for digest in ("sha256:../../lock", "sha512:" + "0" * 128, "latest", "", "sha256:" + "0" * 64 + "\n"):
            with pytest.raises(InvalidInput):
                await store.get("shop", digest)
            with pytest.raises(InvalidInput):
                await store.remove("shop", digest)
        for tag in ("", "a/b", "-a", "a b", "a" * 129):
            with pytest.raises(InvalidInput):
                await put_image(store, "shop", tmp_path, {"a": "1"}, tags=[tag])

    async def test_an_image_that_is_not_there_is_not_found(self, store: ImageStore, tmp_path: Path) -> None:
        """Reading names what is missing; removing says that there was nothing."""
        image = await put_image(store, "shop", tmp_path, {"a": "1"})
        other = "sha256:" + "0" * 64

        for repository, digest in (("shop", other), ("other", image.digest)):
            with pytest.raises(NotFound, match=f"{repository}@{digest}"):
                await store.get(repository, digest)
            with pytest.raises(NotFound):
                await store.copy(repository, digest, to="third")
            with pytest.raises(NotFound):
                await store.tag(repository, digest, tags=["x"])
            with pytest.raises(NotFound):
                _ = [piece async for piece in store.read_blob(repository, digest)]
            assert await store.remove(repository, digest) is False

    async def test_a_copy_is_the_same_image_in_a_second_place(self, store: ImageStore, tmp_path: Path) -> None:
        """No blob is added; tags of the copy are its own; each place goes by itself."""
        staged = await put_image(store, "staging/1", tmp_path, {"a": "1"}, tags=["staged"])
        blobs = self.blobs(store)

        copied = await store.copy("staging/1", staged.digest, to="team/shop", tags=["v1"])
        again = await store.copy("staging/1", staged.digest, to="team/shop", tags=["v2"])

        assert copied.digest == staged.digest
        assert (copied.repository, copied.tags, again.tags) == ("team/shop", ("v1",), ("v1", "v2"))
        assert self.blobs(store) == blobs
        assert await store.remove("staging/1", staged.digest) is True
        assert await store.get("team/shop", staged.digest, verify=True) == again
        assert await store.remove("team/shop", staged.digest) is True
        assert self.blobs(store) == set()

    async def test_removing_takes_only_blobs_that_no_other_image_needs(self, store: ImageStore, tmp_path: Path) -> None:
        """Layers shared with another image, in this repository or another, stay."""
        base = {"lib.py": "shared"}
        one = await put_image(store, "shop", tmp_path, base, {"app.py": "1"})
        two = await put_image(store, "shop", tmp_path, base, {"app.py": "2"})
        three = await put_image(store, "cafe", tmp_path, base, {"app.py": "3"})

        assert await store.remove("shop", one.digest) is True

        assert one.digest not in self.blobs(store)
        assert one.layers[1].digest not in self.blobs(store)
        await store.get("shop", two.digest, verify=True)
        await store.get("cafe", three.digest, verify=True)
        assert await store.remove("shop", one.digest) is False
        await store.remove("shop", two.digest)
        await store.remove("cafe", three.digest)
        assert self.blobs(store) == set()

    async def test_a_tag_names_one_image_of_its_repository(self, store: ImageStore, tmp_path: Path) -> None:
        """A tag that is given again moves; `tag` also takes tags away; other repositories have their own."""
        one = await put_image(store, "shop", tmp_path, {"a": "1"}, tags=["v1", "latest"])
        other = await put_image(store, "cafe", tmp_path, {"a": "1"}, tags=["latest"])
        two = await put_image(store, "shop", tmp_path, {"a": "2"}, tags=["latest", "v2"])

        assert (await store.get("shop", one.digest)).tags == ("v1",)
        assert (await store.get("shop", two.digest)).tags == ("latest", "v2")
        assert (await store.get("cafe", other.digest)).tags == ("latest",)

        tagged = await store.tag("shop", one.digest, tags=["latest", "old"])

        assert tagged.tags == ("latest", "old")
        assert (await store.get("shop", two.digest)).tags == ("v2",)
        assert (await store.tag("shop", two.digest, tags=[])).tags == ()
        await store.get("shop", two.digest, verify=True)

    async def test_images_are_listed_by_the_beginning_of_their_repository(
        self, store: ImageStore, tmp_path: Path
    ) -> None:
        """Each place of an image is listed once, however many tags it has."""
        assert await store.images() == []
        one = await put_image(store, "staging/a", tmp_path, {"a": "1"}, tags=["x", "y"])
        two = await put_image(store, "staging/b", tmp_path, {"a": "2"})
        await store.copy("staging/a", one.digest, to="shop")
        await store.copy("staging/a", one.digest, to="shop/web")

        assert await store.images("staging/") == [("staging/a", one.digest), ("staging/b", two.digest)]
        assert await store.images("staging/b") == [("staging/b", two.digest)]
        assert await store.images("shop") == [("shop", one.digest), ("shop/web", one.digest)]
        assert len(await store.images()) == 4

    @pytest.mark.parametrize("how", ["missing", "short"])
    async def test_verifying_finds_a_layer_that_is_missing_or_short(
        self, store: ImageStore, tmp_path: Path, how: Damage
    ) -> None:
        """The text names the layer; the same image put again heals it, or says that it cannot."""
        image = await put_image(store, "shop", tmp_path, {"a": "1"}, {"b": "2"})
        self.damage(store, image.layers[1].digest, how)

        with pytest.raises(NotFound):
            await store.get("shop", image.digest, verify=True)
        with pytest.raises(NotFound, match=image.layers[1].digest.removeprefix("sha256:")):
            await store.copy("shop", image.digest, to="cafe")
        assert await store.images("cafe") == []

        if how != "missing" and not self.replaces_damaged_blobs:
            with pytest.raises(Unavailable, match=image.layers[1].digest):
                await put_image(store, "shop", tmp_path, {"a": "1"}, {"b": "2"})
            return

        again = await put_image(store, "shop", tmp_path, {"a": "1"}, {"b": "2"})

        assert again == image
        assert await store.get("shop", image.digest, verify=True) == image

    @pytest.mark.parametrize("how", ["missing", "short", "changed"])
    async def test_a_damaged_manifest_is_never_read_as_an_image(
        self, store: ImageStore, tmp_path: Path, how: Damage
    ) -> None:
        """The manifest is hashed again; the image can still be removed, with all that nobody needs then."""
        image = await put_image(store, "shop", tmp_path, {"a": "1"})
        other = await put_image(store, "cafe", tmp_path, {"b": "2"})
        self.damage(store, image.digest, how)

        with pytest.raises(self.damaged_manifest, match=image.digest):
            await store.get("shop", image.digest, verify=True)

        assert await store.remove("shop", image.digest) is True
        assert await store.images() == [("cafe", other.digest)]
        assert self.blobs(store) == {
            other.digest,
            other.manifest["config"]["digest"],
            *(layer.digest for layer in other.layers),
        }

    async def test_a_blob_whose_bytes_changed_is_not_read_to_its_end(self, store: ImageStore, tmp_path: Path) -> None:
        """Whoever unpacks a layer learns that it is damaged."""
        image = await put_image(store, "shop", tmp_path, {"a": "1"})
        self.damage(store, image.layers[0].digest, "changed")

        with pytest.raises(NotFound, match=image.layers[0].digest):
            _ = [piece async for piece in store.read_blob("shop", image.layers[0].digest)]

    async def test_images_that_share_layers_come_and_go_at_the_same_time(
        self, store: ImageStore, tmp_path: Path
    ) -> None:
        """Whatever the order, an image that was put is complete, and at the end no blob is left that nobody needs."""
        base = {"lib.py": "shared"}
        kept = [await put_image(store, "keep/first", tmp_path, base, {"app.py": "kept"})]

        async def come_and_go(number: int) -> None:
            for turn in range(4):
                repository = f"app{number}"
                image = await put_image(store, repository, tmp_path, base, {"app.py": f"{number % 3}"})
                await store.get(repository, image.digest, verify=True)
                if turn == 3 and number % 2:
                    kept.append(image)
                else:
                    assert await store.remove(repository, image.digest) is True

        await asyncio.gather(*(come_and_go(number) for number in range(6)))

        for image in kept:
            assert await store.get(image.repository, image.digest, verify=True) == image
        assert self.blobs(store) == {
            blob
            for image in kept
            for blob in (image.digest, image.manifest["config"]["digest"], *(each.digest for each in image.layers))
        }
        assert sorted(await store.images()) == sorted((image.repository, image.digest) for image in kept)
