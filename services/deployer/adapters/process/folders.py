"""Images on disk, ready to run: dependency layers once per digest, the app's own files once per release.

```
layers/<sha256>/layers/python/…        shared by every release that has this layer, never written again
releases/<saga id>/app/…               the app's own files
releases/<saga id>/layers/python  ->   a link to the shared layer
releases/<saga id>/tmp/                the instances' TMPDIR
unpacking/…                            what is not complete yet; whatever a crash leaves here is removed
```

Inside an image the app is at `/app` and dependencies are at `/layers/<name>`; processes have no root of their own, so
paths in the image's variables get the release's folder put before them.
"""

import asyncio
import contextlib
import os
import re
import shutil
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

from ocistore.store import Descriptor, Image, ImageStore
from seedwork.archives import ArchiveLimits, Compression, disk_errors, extract_tar, read_tar
from seedwork.errors import InvalidInput
from seedwork.messages import new_id
from seedwork.threads import in_thread
from services.deployer.errors import CannotRun
from services.deployer.image import facts_of
from services.deployer.ports import Needed, Release

LIMITS = ArchiveLimits(max_bytes=16 * 1024**3, max_entries=2_000_000, max_names_bytes=512 * 1024**2, max_seconds=1800.0)
"""Our builder made these layers within its own limits; these only end what is broken."""

_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_COMPRESSIONS: Mapping[str, Compression] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A release's files."""

    path: Path
    digest: str
    workdir: Path
    env: Mapping[str, str]
    """The image's variables, with paths of this machine."""


class Folders:
    """What is unpacked below `home`.

    Args:
        home: The deployer's folder.
        images: Where images are read from.
    """

    def __init__(self, home: Path, images: ImageStore) -> None:
        self._layers = home / "layers"
        self._releases = home / "releases"
        self._unpacking = home / "unpacking"
        self._images = images
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._cache = asyncio.Lock()
        """Held while somebody looks whether a layer is there, and while layers are collected: never both."""

    async def prepare(self, release: Release) -> Root:
        """Unpack the release, unless it is there.

        Raises:
            NotFound: A layer of the image is not in the store.
            CannotRun: It is no image for processes of this machine.
            StorageFull: The disk has no room left; nothing half-made stays.
        """
        image = release.image
        if facts_of(image).base != "host":
            raise CannotRun(
                "The image brings an operating system of its own",
                why="the runtime `process` starts programs of this machine",
                todo="Set KNARR_RUNTIME=docker, or build with KNARR_BUILDER=layers.",
            )
        path = self._release(release.saga_id)
        if not await asyncio.to_thread(path.is_dir):
            async with self._lock(release.saga_id):
                await self._unpack(image, release.saga_id, path)
        return _root(path, image)

    async def remove(self, saga_id: str) -> list[str]:
        """Remove the release's files; what there was."""
        paths = [self._release(saga_id), self._unpacking / saga_id]

        def remove() -> list[str]:
            return [f"folder {path.parent.name}/{path.name}" for path in paths if _remove(path)]

        return await asyncio.to_thread(remove)

    async def sweep(self, needed: Callable[[], Awaitable[Needed]], *, running: AbstractSet[str]) -> None:
        """Remove releases of other sagas, and layers of other digests.

        A release is in the database before it is unpacked; so whatever was listed before `needed` was asked, and is not
        in its answer, belongs to nobody.
        """
        async with self._cache:
            listed = await asyncio.to_thread(lambda: (_names(self._releases), _names(self._layers)))
            keep = await needed()
            digests = {digest.removeprefix("sha256:") for digest in keep.layers}
            old = [self._releases / name for name in listed[0] - keep.sagas - running]
            old += await asyncio.to_thread(self._set_aside, listed[1] - digests)
        await asyncio.to_thread(lambda: [_remove(path) for path in old])

    async def clear_unfinished(self) -> None:
        """Remove what a crash left half-unpacked; only while nothing is being unpacked."""
        await asyncio.to_thread(_remove, self._unpacking)

    def _set_aside(self, names: Iterable[str]) -> list[Path]:
        """Out of the cache at once, deleted later: a rename takes no time."""
        self._unpacking.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = []
        for name in names:
            target = self._unpacking / f"old-{new_id()}"
            with contextlib.suppress(FileNotFoundError):
                (self._layers / name).rename(target)
                aside.append(target)
        return aside

    async def _unpack(self, image: Image, saga_id: str, path: Path) -> None:
        if await asyncio.to_thread(path.is_dir):
            return
        work = self._unpacking / saga_id
        try:
            await asyncio.to_thread(_fresh, work)
            for layer in image.layers:
                await self._add_layer(image, layer, work)
            await asyncio.to_thread(_complete, work, path)
        finally:
            await asyncio.to_thread(_remove, work)

    async def _add_layer(self, image: Image, layer: Descriptor, work: Path) -> None:
        name = layer.digest.removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise CannotRun("The image names a layer oddly", why=repr(layer.digest[:100]))
        shared = self._layers / name
        async with self._lock(name):
            async with self._cache:
                there = await asyncio.to_thread(shared.is_dir)
            if not there and not await self._unpack_layer(image, layer, work, shared):
                return
            await asyncio.to_thread(_link_layers, shared / "layers", work / "layers")

    async def _unpack_layer(self, image: Image, layer: Descriptor, work: Path, shared: Path) -> bool:
        """Into the shared cache if it holds dependencies only (true), else into the release.

        Dependencies with links into the app (packages of a workspace) belong to one release, too.
        """
        compression = _COMPRESSIONS.get(layer.media_type)
        if compression is None:
            raise CannotRun(
                f"The image has a layer of the type {layer.media_type}",
                why="the runtime `process` reads tar and tar+gzip",
                todo="Build the image with KNARR_BUILDER=layers.",
            )
        archive = work / "layer.tar"
        await _save(self._images.read_blob(image.repository, layer.digest), archive)
        target = work / "layer"

        def unpack(stop: threading.Event) -> bool:
            of_app = _holds_app(archive, compression, stop)
            extract_tar(
                archive,
                work if of_app else target,
                limits=LIMITS,
                compression=compression,
                keep_mtime=not of_app,  # compiled Python files name their source's time
                stop=stop,
            )
            archive.unlink()
            if of_app:
                return False
            if _leads_out(target / "layers"):
                for folder in (target / "layers").iterdir():
                    folder.rename(work / "layers" / folder.name)
                _remove(target)
                return False
            _protect(target)
            shared.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.rename(shared)
            return True

        return await in_thread(unpack)

    def _release(self, saga_id: str) -> Path:
        if not _SAFE_NAME.fullmatch(saga_id):
            raise InvalidInput("That is no saga's id", why=repr(saga_id[:100]))
        return self._releases / saga_id

    def _lock(self, name: str) -> asyncio.Lock:
        """One at a time per release and per layer; the lock lives as long as somebody holds it."""
        lock = self._busy.get(name) or asyncio.Lock()
        self._busy[name] = lock
        return lock


def _root(path: Path, image: Image) -> Root:
    config: Mapping[str, Any] = image.config.get("config") or {}
    workdir = PurePosixPath(config.get("WorkingDir") or "/app")
    if not workdir.is_relative_to("/app") or ".." in workdir.parts:
        workdir = PurePosixPath("/app")
    env = dict(each.partition("=")[::2] for each in config.get("Env") or ())
    return Root(
        path=path,
        digest=image.digest,
        workdir=path / workdir.relative_to("/"),
        env={name: placed(value, path) for name, value in env.items()},
    )


def placed(value: str, root: Path) -> str:
    """A variable's value with `root` before each of its `:`-separated parts that begins with `/app` or `/layers`."""
    return ":".join(
        f"{root}{part}" if part in {"/app", "/layers"} or part.startswith(("/app/", "/layers/")) else part
        for part in value.split(":")
    )


async def _save(pieces: AsyncIterator[bytes], path: Path) -> None:
    with disk_errors(), path.open("xb") as file:
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)


def _holds_app(archive: Path, compression: Compression, stop: threading.Event) -> bool:
    """Whether its first entry belongs to the app; a layer is either dependencies or the app (docs/kernel.md)."""
    for entry, _ in read_tar(archive, limits=LIMITS, compression=compression, stop=stop):
        return entry.parts[0] != "layers"
    return True


def _leads_out(layers: Path) -> bool:
    """Return whether a link below `layers` leads out of that folder."""
    inside = os.path.join(os.path.normpath(layers), "")  # noqa: PTH118  a hundred thousand files: Path costs seconds
    for here, folders, files in os.walk(layers):
        for name in (*folders, *files):
            path = os.path.join(here, name)  # noqa: PTH118  likewise
            if os.path.islink(path):  # noqa: PTH114  likewise
                target = os.path.join(here, os.readlink(path))  # noqa: PTH115, PTH118  likewise
                if not os.path.normpath(target).startswith(inside):
                    return True
    return False


def _fresh(work: Path) -> None:
    _remove(work)
    with disk_errors():
        for folder in ("app", "layers", "tmp"):
            (work / folder).mkdir(parents=True, mode=0o700)


def _link_layers(shared: Path, layers: Path) -> None:
    if shared.is_dir():
        for folder in shared.iterdir():
            link = layers / folder.name
            link.unlink(missing_ok=True)
            link.symlink_to(folder)


def _complete(work: Path, path: Path) -> None:
    with disk_errors():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        work.rename(path)


def _protect(folder: Path) -> None:
    """No app writes into what others run from, at least not by accident."""
    for here, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = os.path.join(here, name)  # noqa: PTH118  a hundred thousand files: Path costs seconds
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                os.chmod(path, stat.S_IMODE(mode) & ~0o222)  # noqa: PTH101  likewise
        for name in folders:
            path = os.path.join(here, name)  # noqa: PTH118  likewise
            if not os.path.islink(path):  # noqa: PTH114  likewise
                os.chmod(path, 0o555)  # noqa: PTH101, S103  likewise; this takes rights away


def _remove(path: Path) -> bool:
    """Remove a folder with everything in it, also what is protected; whether it was there."""
    if not os.path.lexists(path):
        return False
    for here, _, _ in os.walk(path):
        with contextlib.suppress(FileNotFoundError):
            Path(here).chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    return True


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
