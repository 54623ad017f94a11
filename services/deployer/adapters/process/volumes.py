"""Volumes of local processes: one folder for each below the deployer's home, shared by all instances of the app.

```
storage/<app id>/<name>/       the content
storage/<app id>/.<name>.new/  an archive that is being unpacked; a crash leaves it, the next import removes it
```

The size of a volume is shown and not enforced: a limit on a folder needs a quota of the file system.
"""

import asyncio
import contextlib
import os
import re
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from seedwork.archives import ArchiveLimits, disk_errors, extract_tar
from seedwork.errors import InvalidInput, Unavailable
from seedwork.threads import in_thread
from services.deployer.ports import Volume

_PIECE_BYTES = 256 * 1024
_SAFE = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}", re.ASCII)
_IMPORT = ArchiveLimits(max_bytes=16 * 1024**4, max_entries=10_000_000, max_depth=256, max_path_bytes=4096)
"""An import holds the app's own data; these limits end what is broken."""


def folder_of(home: Path, volume: Volume) -> Path:
    """Return the folder of a volume.

    Raises:
        InvalidInput: Its app's id or its name cannot be a folder's name.
    """
    if not _SAFE.fullmatch(volume.app_id) or not _SAFE.fullmatch(volume.name):
        raise InvalidInput("That cannot be a volume", why=f"{volume.app_id[:64]!r}, {volume.name[:64]!r}")
    return home / "storage" / volume.app_id / volume.name


def mount(home: Path, volume: Volume, app: Path) -> Path:
    """Make the folder of a volume; where its path is below `/app`, link it there. Return the folder.

    Args:
        home: The deployer's folder.
        volume: The volume.
        app: The release's own copy of `/app`.

    Raises:
        InvalidInput: The app's files already have something else at that path.
        StorageFull: The disk has no room left.
    """
    folder = folder_of(home, volume)
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if volume.path.startswith("/app/"):
            _link(folder, app, volume)
    return folder


def _link(folder: Path, app: Path, volume: Volume) -> None:
    place = app / volume.path.removeprefix("/app/")
    if place.is_symlink() and Path(os.readlink(place)) == folder:  # noqa: PTH115  compared as it was written
        return
    if not place.parent.resolve().is_relative_to(app.resolve()):
        raise InvalidInput(f"The volume {volume.name} cannot be at {volume.path}", why="a link leads out of the app")
    if place.is_symlink() or place.is_file():
        raise InvalidInput(f"The volume {volume.name} cannot be at {volume.path}", why="the app has a file there")
    if place.is_dir():
        if not any(folder.iterdir()):  # a new volume begins with what the repository has there, as with Docker
            shutil.copytree(place, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder)


class ProcessVolumes:
    """See `Volumes`.

    Args:
        home: The deployer's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    async def used_bytes(self, volume: Volume) -> int | None:
        """See `Volumes.used_bytes`."""
        return await asyncio.to_thread(_used, folder_of(self._home, volume))

    async def read(self, volume: Volume) -> AsyncIterator[bytes]:
        """See `Volumes.read`."""
        folder = folder_of(self._home, volume)
        reading, writing = os.pipe()
        reader = asyncio.StreamReader(limit=_PIECE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
        )
        packing = asyncio.create_task(asyncio.to_thread(_pack, folder, writing))
        try:
            while piece := await reader.read(_PIECE_BYTES):
                yield piece
            await packing
        finally:
            transport.close()  # a packer that still writes gets EPIPE, and ends
            await asyncio.wait([packing])

    async def replace(self, volume: Volume, archive: Path) -> None:
        """See `Volumes.replace`."""
        folder = folder_of(self._home, volume)
        fresh, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
        await asyncio.to_thread(lambda: [_remove(path) for path in (fresh, old)])
        try:
            await in_thread(lambda stop: extract_tar(archive, fresh, limits=_IMPORT, keep_mtime=True, stop=stop))
            await asyncio.to_thread(_swap, folder, fresh, old)
        finally:
            await asyncio.to_thread(lambda: [_remove(path) for path in (fresh, old)])

    async def delete(self, volume: Volume) -> Sequence[str]:
        """See `Volumes.delete`."""
        folder = folder_of(self._home, volume)
        removed = await asyncio.to_thread(_remove, folder)
        with contextlib.suppress(OSError):  # other volumes of the app are still there
            await asyncio.to_thread(folder.parent.rmdir)
        return [f"volume {volume.name}"] if removed else []


def _used(folder: Path) -> int | None:
    """Bytes on disk of all files below; None: the folder does not exist."""
    if not folder.is_dir():
        return None
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the app deleted it meanwhile
                total += os.lstat(os.path.join(here, name)).st_blocks * 512  # noqa: PTH118  many files: Path costs seconds
    return total


def _pack(folder: Path, writing: int) -> None:
    """Write a tar archive of the folder into the pipe; sockets and devices are left out."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as out:
        try:
            with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                if folder.is_dir():
                    for path in sorted(folder.iterdir()):
                        archive.add(path, arcname=path.name, filter=_portable)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unavailable("The volume could not be read", why=str(error)) from error


def _portable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (info.isfile() or info.isdir() or info.issym()):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _swap(folder: Path, fresh: Path, old: Path) -> None:
    with disk_errors():
        fresh.mkdir(exist_ok=True, mode=0o700)
        fresh.chmod(0o700)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)


def _remove(path: Path) -> bool:
    """Remove a folder with all its content; return whether it was there."""
    if not path.exists():
        return False
    for here, _, _ in os.walk(path):
        Path(here).chmod(stat.S_IRWXU)
    shutil.rmtree(path)
    return True
