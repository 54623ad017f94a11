"""`make bench`: every measurement in a process of its own, one after the other, and a table with the machine beside it.

python -m bench                     all of them
python -m bench --only steps,floor  some (`make bench BENCH=steps,floor`)
python -m bench --write             and puts the table into bench/README.md
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson

from bench.figures import Figure, folder, fsync_ms, percentile, table
from seedwork.unit_of_work import Database

BENCHES = ("startup", "floor", "steps", "webhook", "deploys", "recovery", "pages", "idle")
"""Modules of this package, in the order of the table."""
BY_NAME = ("frameworks",)
"""Modules that run only when they are named: they need the package registries."""
LIMIT_S = 900
"""What takes longer than this has got stuck."""
README = Path(__file__).parent / "README.md"
_BEGIN, _END = "<!-- {} -->\n", "<!-- end of {} -->\n"
LIBRARIES = ("knarr", "SQLAlchemy", "aiosqlite", "fastapi", "uvicorn", "pydantic", "uv")


def run(name: str, *arguments: str, limit_s: float = LIMIT_S) -> list[Figure]:
    """One measurement; its figures are shown as they come.

    Args:
        name: The module, in this package.
        arguments: For it.
        limit_s: What takes longer has got stuck.

    Raises:
        SystemExit: It failed.
    """
    figures = []
    with subprocess.Popen([sys.executable, "-m", f"bench.{name}", *arguments], stdout=subprocess.PIPE) as process:
        limit = threading.Timer(limit_s, process.kill)
        limit.start()
        for line in process.stdout or ():
            figures.append(Figure(**orjson.loads(line)))
            last = figures[-1]
            show(f"  {last.group}: {last.name}: {last.shown} {last.unit} {last.verdict}")
        code = process.wait()
        limit.cancel()
        if code:
            sys.exit(f"bench.{name} ended with {code}")
    return figures


async def durability() -> str:
    """What SQLite answers on a database that was opened as the services do it."""
    with folder() as home:
        db = Database(f"sqlite+aiosqlite:///{home / 'settings.db'}")
        await db.open()
        found = {}
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint"):
            found[name] = await db.write(lambda conn, name=name: conn.exec_driver_sql(f"PRAGMA {name}"))  # type: ignore[misc]
        text = ", ".join(f"{name}={result.scalar_one()}" for name, result in found.items())
        await db.close()
    return f"{text} (synchronous 2 is FULL: an fsync each commit)"


def machine() -> list[str]:
    """Where this is, as lines of Markdown."""
    with folder() as home:
        fsync = fsync_ms(home)
    return [
        f"- taken {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; load average at the beginning {os.getloadavg()[0]:.1f}",
        f"- {os.cpu_count()} processors, {platform.system()}, {platform.machine()}",
        f"- fsync of 4 KB: p50 {percentile(fsync, 0.5):.2f} ms, p99 {percentile(fsync, 0.99):.2f} ms",
    ]


def versions(libraries: Sequence[str], *more: str) -> str:
    """Of Python and what is installed beside it, as a line of Markdown."""
    installed = (f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"- Python {platform.python_version()}, {', '.join([*more, *installed])}"


def show(line: str) -> None:
    """Print it now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_down(text: str, page: Path = README, name: str = "figures") -> None:
    """The last table, in its place on its page."""
    begin, end = _BEGIN.format(name), _END.format(name)
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def chosen(only: str, known: Sequence[str] = BENCHES) -> Sequence[str]:
    """The measurements of that list; all, if it is empty.

    Raises:
        SystemExit: One is not known.
    """
    names = [each.strip() for each in only.split(",") if each.strip()]
    if unknown := set(names) - set(known):
        sys.exit(f"There is no measurement {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    return [each for each in known if each in names] if names else known


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"a list of: {', '.join((*BENCHES, *BY_NAME))}")
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    given = parser.parse_args()
    began = time.monotonic()
    about = [
        *machine(),
        versions(LIBRARIES, f"SQLite {sqlite3.sqlite_version}"),
        f"- SQLite: {asyncio.run(durability())}",
    ]
    show("\n".join(about))
    figures = []
    for name in chosen(given.only, (*BENCHES, *BY_NAME)) if given.only else BENCHES:
        show(f"{name} …")
        figures += run(name)
    minutes = (time.monotonic() - began) / 60
    text = "\n".join([*about, f"- all of it took {minutes:.0f} minutes", "", table(figures)]) + "\n"
    show(f"\n{text}")
    if given.write:
        write_down(text)


if __name__ == "__main__":
    main()
