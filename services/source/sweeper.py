"""Removes what nobody needs: archives without a reference, uploads and mirrors whose time is over, half-made files."""

import asyncio
import contextlib
from typing import Protocol

import structlog

from services.source.archives import Archives
from services.source.uploads import Uploads

_DAY_S = 86_400.0
_DRAFT_AGE_S = _DAY_S
"""A draft that was not written for a day belongs to nobody: the step's own limit is minutes."""

log = structlog.get_logger(__name__)


class Mirrors(Protocol):
    """What can be swept of the repositories' adapter."""

    async def sweep(self, keep_s: float) -> int:
        """Remove what was not used for so long; how many."""


class Sweeper:
    """One task; it looks every so often, and at once when it is woken.

    Args:
        archives: Swept at each look.
        uploads: Swept every so often.
        mirrors: Swept every so often.
        large_files: Content of Git LFS, kept as long as mirrors.
        every_s: Seconds between two looks.
        upload_keep_days: For how long an upload is kept.
        mirror_keep_days: For how long an unused mirror is kept.
    """

    def __init__(
        self,
        *,
        archives: Archives,
        uploads: Uploads,
        mirrors: Mirrors,
        large_files: Mirrors,
        every_s: float,
        upload_keep_days: float,
        mirror_keep_days: float,
    ) -> None:
        self._archives = archives
        self._uploads = uploads
        self._mirrors = mirrors
        self._large_files = large_files
        self._every_s = every_s
        self._upload_keep_s = upload_keep_days * _DAY_S
        self._mirror_keep_s = mirror_keep_days * _DAY_S
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look now: an archive may be free."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await self.sweep()
            await self._sweep_by_age()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._archives_when_woken()

    async def sweep(self) -> None:
        """Remove archives that nobody holds."""
        if removed := await self._archives.sweep():
            log.info("archives removed", count=removed)

    async def _archives_when_woken(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self.sweep()

    async def _sweep_by_age(self) -> None:
        await self._archives.clear_drafts(_DRAFT_AGE_S)
        uploads = await self._uploads.sweep(self._upload_keep_s)
        mirrors = await self._mirrors.sweep(self._mirror_keep_s)
        large_files = await self._large_files.sweep(self._mirror_keep_s)
        if uploads or mirrors or large_files:
            log.info("kept long enough", uploads=uploads, mirrors=mirrors, large_files=large_files)
