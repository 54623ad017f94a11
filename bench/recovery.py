"""Ten thousand deployments under way, `kill -9`, a restart: all of them end.

A process of its own holds the coordinator and the kernel's participants, each with a database of its own, as in
`knarr up`; only the work itself is nothing. In its first life every saga stops in one of its five steps, its command
accepted and its job under way. Then it is killed, and in its second life the work gets done.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.figures import Figure, folder
from bench.orchestra import Halts, orchestra, quiet, start
from bench.platform import environment, until
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import sagas

AT_ONCE = 500
"""Starts in one publish."""


async def first_life(home: Path, count: int) -> None:
    """Start them, say when all of them have come to where they stop, and wait for the kill."""
    halts = Halts()
    async with orchestra(home, "kernel", halts=halts, slots=2 * count) as all_of_it:
        starts = [start() for _ in range(count)]
        for begin in range(0, count, AT_ONCE):
            await all_of_it.bus.publish(starts[begin : begin + AT_ONCE])
        while len(halts.halted) < count:  # noqa: ASYNC110  twenty looks a second disturb nobody
            await asyncio.sleep(0.05)
        say("halted")
        await asyncio.Event().wait()


async def second_life(home: Path, count: int) -> None:
    """Say when it serves, and when all have ended."""
    async with orchestra(home, "kernel") as all_of_it:
        say("ready")
        db: Database = all_of_it.app.state.service.db
        while (await db.read(succeeded)) < count:  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.1)
        if left := await all_of_it.app.state.audit.look():
            raise RuntimeError(f"nothing will move these: {left}")
        say("ended")
        await asyncio.Event().wait()


async def succeeded(conn: AsyncConnection) -> int:
    """How many have."""
    query = select(func.count()).where(sagas.c.state == "SUCCEEDED")
    return int((await conn.execute(query)).scalar_one())


def say(word: str) -> None:
    """To the parent."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


class Life:
    """One life of that process."""

    def __init__(self, name: str, home: Path, count: int) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "bench.recovery", "--life", name, str(home), "--sagas", str(count)]
        self.process = psutil.Popen(command, env=environment(), stdout=-1, text=True)

    def after_s(self, word: str) -> float:
        """When it has said that, in seconds since its start.

        Raises:
            RuntimeError: It ended without.
        """
        if self.process.stdout.readline().strip() != word:
            raise RuntimeError(f"it ended before it said {word!r}")
        return time.perf_counter() - self.began

    def peak_mb(self) -> float:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def size_mb(home: Path) -> float:
    """All databases with their write-ahead logs."""
    return sum(each.stat().st_size for each in home.rglob("*.db*")) / 1e6


def measure(count: int) -> None:
    """Both lives."""
    with folder() as home:
        first = Life("first", home, count)
        try:
            took_s = first.after_s("halted")
        finally:
            first.kill()
        before_mb = size_mb(home)
        second = Life("second", home, count)
        try:
            ready_s = second.after_s("ready")
            ended_s = second.after_s("ended")
            peak_mb = second.peak_mb()
        finally:
            second.kill()
        until("the process is gone", lambda: not second.process.is_running())
        group = f"{count:,} sagas in flight, kill -9, restart"
        Figure(group=group, name="start, until all are under way", values=[took_s], unit="s").tell()
        Figure(group=group, name="restart, until it serves", values=[ready_s], unit="s").tell()
        Figure(group=group, name="restart, until all have ended", values=[ended_s], unit="s").tell()
        Figure(group=group, name="most memory", values=[peak_mb], unit="MB").tell()
        Figure(group=group, name="databases at the kill", values=[before_mb], unit="MB").tell()
        Figure(group=group, name="databases at the end", values=[size_mb(home)], unit="MB").tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", type=int, default=10_000)
    parser.add_argument("--life", nargs=2, metavar=("NAME", "HOME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.life:
        quiet()
        life = first_life if given.life[0] == "first" else second_life
        asyncio.run(life(Path(given.life[1]), given.sagas))
    else:
        measure(given.sagas)


if __name__ == "__main__":
    main()
