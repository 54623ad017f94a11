"""Work folders: a private one for each build, gone when the build ends, however it ends."""

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from seedwork.archives import disk_errors


class WorkFolders:
    """The work folders of one service.

    Args:
        root: Holds one folder a build, by saga.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @asynccontextmanager
    async def of(self, saga_id: str) -> AsyncIterator[Path]:
        """An empty folder, removed afterwards; one that an earlier attempt left is removed before."""
        path = self._path(saga_id)
        await asyncio.to_thread(_remove, path)
        await asyncio.to_thread(_make, path)
        try:
            yield path
        finally:
            await _finished(asyncio.to_thread(_remove, path))

    async def remove(self, saga_id: str) -> bool:
        """Remove what is left of that build; whether there was anything."""
        return await asyncio.to_thread(_remove, self._path(saga_id))

    async def sweep(self) -> int:
        """Remove all: nothing is being built yet; how many there were."""
        return await asyncio.to_thread(self._sweep)

    def _sweep(self) -> int:
        left = list(self._root.iterdir()) if self._root.is_dir() else []
        return sum(_remove(path) for path in left)

    def _path(self, saga_id: str) -> Path:
        return self._root / str(UUID(saga_id))


def _make(path: Path) -> None:
    with disk_errors():
        path.mkdir(parents=True, mode=0o700)


def _remove(path: Path) -> bool:
    if not path.exists():
        return False
    shutil.rmtree(path, onerror=_again_with_rights)
    return True


def _again_with_rights(remove: Callable[..., Any], name: str, _why: Any) -> None:
    """Build tools make folders that not even their owner may write to."""
    if not os.path.lexists(name):
        return
    for folder in (os.path.dirname(name), name):  # noqa: PTH120 - shutil gives strings
        if stat.S_ISDIR(os.lstat(folder).st_mode):
            os.chmod(folder, stat.S_IRWXU)  # noqa: PTH101 - likewise
    if stat.S_ISDIR(os.lstat(name).st_mode):
        shutil.rmtree(name)
    else:
        remove(name)


async def _finished(work: Any) -> None:
    """Also when we are cancelled: the folder goes before the build is said to have ended."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
