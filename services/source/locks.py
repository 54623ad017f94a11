"""Locks by name, between the tasks of this process and between processes that share the folder."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

_WAIT_S = 0.05
"""Between two tries for a lock of another process: seldom needed, so a look is cheaper than a blocked thread."""


class NamedLocks:
    """One lock a name; the lock files stay, since removing one that somebody opens would make two locks of it."""

    def __init__(self, folder: Path) -> None:
        """Keep the lock files in that folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._here: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Wait for it, hold it; a process that dies lets go of it."""
        async with self._here.setdefault(name, asyncio.Lock()):
            fd = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while not _taken(fd):  # noqa: ASYNC110 - another process tells nobody when it lets go
                    await asyncio.sleep(_WAIT_S)
                yield
            finally:
                os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
