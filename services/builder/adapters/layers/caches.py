"""Build caches: folders of one app each, kept from one build to the next, bounded in size.

    <folder>/key               32 random bytes, made once
    <folder>/apps/<name>/      one app's caches; <name> is HMAC-SHA256 of the app's id with the key
        tools/                 of package managers and compilers
        steps/                 the folders that build steps keep (`.next/cache`)
        trees/                 installed packages, for the next build
        projects/              what a project's layer was built from, for the next build

A build that knows another app's name or id cannot compute that app's folder. Builds run as one user of the machine:
this keeps apps apart by name, not against a build that searches the disk.

An app's caches count as used when a build begins. `sweep` removes those of the least recently used apps until the rest
fits, never those of a build that runs in this process or was begun within the last hour.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from seedwork.archives import disk_errors

_KEY_BYTES = 32
_MINIMUM_AGE_S = 3600.0
SWEEP_S = 600.0
"""Seconds between two looks at the size of all caches."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCache:
    """The caches of one app."""

    folder: Path
    key: bytes
    """Secret: what is kept for the app is named by it."""

    @property
    def tools(self) -> Path:
        """Folder for package managers and compilers."""
        return self.folder / "tools"

    def kept(self, kind: str, name: str) -> Path:
        """Return the folder of that kind (`steps`, `trees`) for a name of any form."""
        return self.folder / kind / self.digest(name)

    def digest(self, text: str) -> str:
        """Return the HMAC of a text, in hex: equal texts of one app give equal digests."""
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()


class AppCaches:
    """The build caches of one builder.

    Args:
        folder: Its own, below the builder's home.
        max_bytes: Size in bytes of all caches together that `sweep` leaves.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._used: Counter[str] = Counter()

    @contextmanager
    def of(self, app_id: str) -> Iterator[AppCache]:
        """Return the app's caches; they are not removed before the block ends. Blocks for a moment."""
        cache = self.named(app_id)
        name = cache.folder.name
        self._used[name] += 1
        try:
            with disk_errors():
                cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.utime(cache.folder)
            yield cache
        finally:
            self._used[name] -= 1

    def named(self, app_id: str) -> AppCache:
        """Return the app's caches without making their folder: for the names that only this builder can compute."""
        key = self._secret()
        name = hmac.new(key, f"app:{app_id}".encode(), hashlib.sha256).hexdigest()
        own = hmac.new(key, f"kept:{app_id}".encode(), hashlib.sha256).digest()
        return AppCache(folder=self._folder / "apps" / name, key=own)

    async def sweep(self) -> int:
        """Remove the caches of the least recently used apps until the rest fits; return how many were removed."""
        return await asyncio.to_thread(self._sweep)

    async def run(self) -> None:
        """Sweep at intervals."""
        while True:
            if removed := await self.sweep():
                log.info("build_caches.removed", apps=removed, max_bytes=self._max_bytes)
            await asyncio.sleep(SWEEP_S)

    def _sweep(self) -> int:
        apps = self._folder / "apps"
        used = sorted((path.stat().st_mtime, path) for path in apps.iterdir()) if apps.is_dir() else []
        sizes = {path: _size(path) for _, path in used}
        total, removed = sum(sizes.values()), 0
        for used_at, path in used:
            if total <= self._max_bytes:
                break
            if self._used[path.name] or time.time() - used_at < _MINIMUM_AGE_S:
                continue
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
            removed += 1
        return removed

    def _secret(self) -> bytes:
        path = self._folder / "key"
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) == _KEY_BYTES:
            return key
        with disk_errors():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_name(f"key.{secrets.token_hex(8)}")
            new.touch(mode=0o600)
            new.write_bytes(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(new, path)  # the first of several writers decides
            except FileExistsError:
                pass
            finally:
                new.unlink()
        return path.read_bytes()


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - a cache has 100,000 files
            except OSError:
                continue
    return total
