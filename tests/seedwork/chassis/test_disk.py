"""What a service keeps is shown part by part, and reclaimed on a schedule."""

import asyncio
import os
from pathlib import Path

from seedwork.chassis.disk import Disk, DiskItem, Folder, Freed, folder_bytes
from seedwork.clock import SystemClock
from seedwork.errors import Unavailable


class Part:
    """Has ten bytes that nothing needs."""

    what = "things"
    place = "a shelf"

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.calls: list[tuple[bool, bool]] = []
        self.called = asyncio.Event()

    async def usage(self) -> DiskItem:
        if self.broken:
            raise Unavailable("The shelf does not answer")
        return DiskItem(what=self.what, place=self.place, size_bytes=12, reclaimable_bytes=10)

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:
        self.calls.append((caches, scheduled))
        self.called.set()
        if self.broken:
            raise Unavailable("The shelf does not answer")
        return Freed(what=self.what, place=self.place, freed_bytes=10)


class Waits:
    """A clock on which every sleep is over when the test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._over = asyncio.Semaphore(0)

    def now_ms(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._over.acquire()

    def advance(self) -> None:
        self._over.release()


def test_a_folder_is_measured_as_the_disk_has_it(tmp_path: Path) -> None:
    """A hard link takes no room, a sparse file what is allocated; a link to elsewhere is not followed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 8192)
    before = folder_bytes(tmp_path)
    assert before >= 8192
    os.link(tmp_path / "in" / "file", tmp_path / "again")
    (tmp_path / "out").symlink_to("/usr")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert before <= folder_bytes(tmp_path) < before + 65_536
    assert folder_bytes(tmp_path, [tmp_path / "in"]) < before + 65_536
    assert folder_bytes(tmp_path / "missing") == 0


async def test_a_part_that_cannot_be_measured_keeps_no_other_from_being_shown(tmp_path: Path) -> None:
    """It says why, in its place."""
    disk = Disk([Part(broken=True), Part(), Folder("files", tmp_path)], every_s=0, clock=SystemClock())
    silent, shown, _files = await disk.usage()
    assert (silent.size_bytes, silent.note) == (None, "The shelf does not answer.")
    assert shown.reclaimable_bytes == 10
    failed, done = await disk.reclaim(caches=True)
    assert (failed.freed_bytes, failed.note) == (0, "The shelf does not answer.")
    assert done.freed_bytes == 10


async def test_the_schedule_reclaims_within_limits(tmp_path: Path) -> None:
    """It never empties caches; without a schedule nothing happens by itself."""
    part, clock = Part(), Waits()
    never = Disk([part], every_s=0, clock=clock)
    await never.run()
    assert part.calls == []
    running = asyncio.create_task(Disk([part], every_s=60, clock=clock).run())
    clock.advance()
    await part.called.wait()
    running.cancel()
    assert part.calls == [(False, True)]
    assert clock.slept[0] == 60
