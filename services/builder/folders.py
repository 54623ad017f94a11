"""Work folders: a private one for each attempt at a build, gone when the attempt ends, however it ends.

Several replicas may share the home, and one that stood still beyond its lease may wake up in an attempt which another
one has taken up: so each attempt has a folder of its own, and takes away no other but those before it.
"""

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from seedwork.archives import disk_errors
from seedwork.messages import new_id


class WorkFolders:
    """The work folders of one service.

    Args:
        root: Holds one folder a build, by saga; in it one for each attempt.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @asynccontextmanager
    async def of(self, saga_id: str) -> AsyncIterator[Path]:
        """An empty folder, removed afterwards; those that earlier attempts left are removed before."""
        build = self._path(saga_id)
        await asyncio.to_thread(_remove, build)
        attempt = build / new_id()
        await asyncio.to_thread(_make, attempt)
        try:
            yield attempt
        finally:
            await _finished(asyncio.to_thread(_leave, attempt))

    async def has(self, saga_id: str) -> bool:
        """Whether an attempt at that build has a folder."""
        return await asyncio.to_thread(self._path(saga_id).exists)

    async def remove(self, saga_id: str) -> bool:
        """Remove what is left of that build; whether there was anything."""
        return await asyncio.to_thread(_remove, self._path(saga_id))

    async def sweep(self) -> int:
        """Remove all: nobody is building; how many there were."""
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


def _leave(attempt: Path) -> None:
    _remove(attempt)
    with contextlib.suppress(OSError):  # others are in it, or have taken it away
        attempt.parent.rmdir()


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
