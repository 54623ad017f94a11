"""What a service keeps on disks and engines: `GET /disk` shows it, `POST /disk/reclaim` and a schedule reclaim it.

A service lists its parts. Each part measures itself and frees what nothing needs. A part that cannot be measured now
says why and does not keep the others from being shown.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Protocol

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from seedwork.chassis.auth import require
from seedwork.clock import Clock
from seedwork.errors import KnarrError

FIRST_S = 300.0
"""Seconds until the first scheduled run: a platform that just started has other work."""

log = structlog.get_logger(__name__)


class DiskItem(BaseModel):
    """One kind of bytes in one place."""

    what: str
    """`images of releases`, `build cache`, `files of builder` …"""
    place: str
    """A folder, an engine or a registry."""
    size_bytes: int | None = None
    """None: it could not be measured; `note` says why."""
    reclaimable_bytes: int | None = None
    """What a reclaim frees at most. None: not known."""
    limit_bytes: int | None = None
    """What the schedule lets it grow to."""
    note: str = ""


class Freed(BaseModel):
    """What a reclaim did to one item."""

    what: str
    place: str
    freed_bytes: int = 0
    note: str = ""
    """Why nothing, or not all, was freed."""


class Usage(BaseModel):
    """The answer of `GET /disk`."""

    items: list[DiskItem]


class Reclaimed(BaseModel):
    """The answer of `POST /disk/reclaim`."""

    items: list[Freed]


class ReclaimOrder(BaseModel):
    """The body of `POST /disk/reclaim`."""

    caches: bool = Field(default=False, description="Empty build caches too; the next builds take longer.")


class DiskPart(Protocol):
    """Something that takes room."""

    what: str
    place: str

    async def usage(self) -> DiskItem:
        """Measure it.

        Raises:
            KnarrError: It cannot be measured now.
        """

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:
        """Free what nothing needs; None: there is never anything to free.

        Args:
            caches: Empty caches too.
            scheduled: Nothing is done below the part's limit.

        Raises:
            KnarrError: It cannot be done now.
        """


class Folder:
    """Files that the service itself keeps within bounds: only measured.

    Args:
        what: For people.
        path: The folder.
        besides: Folders in it that other parts count.
    """

    def __init__(self, what: str, path: Path, *, besides: Sequence[Path] = ()) -> None:
        self.what = what
        self.place = str(path)
        self._path = path
        self._besides = tuple(besides)

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`."""
        size = await asyncio.to_thread(folder_bytes, self._path, self._besides)
        return DiskItem(what=self.what, place=self.place, size_bytes=size, reclaimable_bytes=0)

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  the protocol's
        """See `DiskPart.reclaim`."""
        return None


class Disk:
    """The parts of one service.

    Args:
        parts: In the order in which they are shown.
        every_s: Seconds between two scheduled reclaims; 0: none.
        clock: For waiting.
    """

    def __init__(self, parts: Sequence[DiskPart], *, every_s: float, clock: Clock) -> None:
        self._parts = tuple(parts)
        self._every_s = every_s
        self._clock = clock
        self._alone = asyncio.Lock()

    async def usage(self) -> list[DiskItem]:
        """Measure every part."""
        return list(await asyncio.gather(*(self._usage(part) for part in self._parts)))

    async def reclaim(self, *, caches: bool = False, scheduled: bool = False) -> list[Freed]:
        """Free what nothing needs, part by part; one reclaim at a time."""
        found = []
        async with self._alone:
            for part in self._parts:
                try:
                    freed = await part.reclaim(caches=caches, scheduled=scheduled)
                except KnarrError as error:
                    freed = Freed(what=part.what, place=part.place, note=error.message)
                if freed is not None:
                    found.append(freed)
        return found

    async def run(self) -> None:
        """Reclaim on the schedule."""
        if self._every_s <= 0:
            return
        await self._clock.sleep(min(FIRST_S, self._every_s))
        while True:
            for freed in await self.reclaim(scheduled=True):
                if freed.freed_bytes or freed.note:
                    log.info("disk.reclaimed", **freed.model_dump())
            await self._clock.sleep(self._every_s)

    def router(self) -> APIRouter:
        """Return the routes; both are about the whole platform, so both want `admin` and `platform`."""
        routes = APIRouter(tags=["disk"], dependencies=[Depends(require("admin", "platform"))])

        @routes.get("/disk", summary="What this service keeps, and what of it nothing needs")
        async def usage() -> Usage:
            return Usage(items=await self.usage())

        @routes.post("/disk/reclaim", summary="Free what nothing needs, now")
        async def reclaim(order: Annotated[ReclaimOrder | None, Depends(_order)]) -> Reclaimed:
            return Reclaimed(items=await self.reclaim(caches=bool(order and order.caches)))

        return routes

    @staticmethod
    async def _usage(part: DiskPart) -> DiskItem:
        try:
            return await part.usage()
        except KnarrError as error:
            return DiskItem(what=part.what, place=part.place, note=error.message)


def _order(order: ReclaimOrder | None = None) -> ReclaimOrder | None:
    return order


def folder_bytes(path: Path, besides: Sequence[Path] = ()) -> int:
    """Return the bytes of all files under a folder, as allocated; a hard-linked file counts once."""
    total, seen, left = 0, set[tuple[int, int]](), [path]
    while left:
        with suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        if Path(entry.path) not in besides:
                            left.append(Path(entry.path))
                        continue
                    about = entry.stat(follow_symlinks=False)
                    if about.st_nlink == 1 or (about.st_dev, about.st_ino) not in seen:
                        total += about.st_blocks * 512
                        seen.add((about.st_dev, about.st_ino))
    return total
