"""A million ended sagas: pages of the list by every filter, and the cleaning of old ones while deployments go on.

The sagas are copies of two real ones (one that succeeded, one that was undone), each with its own id, app, commit and
time, and with the first and the last entry of its log; a fifth of them belong to one app. Requests go into the
coordinator's ASGI app, so that what is measured is everything but the network: token, query, JSON.
"""

import argparse
import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI

from bench.figures import Figure, folder, percentile
from bench.orchestra import Orchestra, orchestra, quiet
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.saga_coordinator.retention import Retention

Row = dict[str, Any]
"""Of a table, by the names of its columns."""

APPS = 1000
DAYS = 300
"""Over which the sagas' starts are spread."""
OLD = 0.02
"""The share that is cleaned away."""
DAY_MS = 86_400_000
LATER_PAGES = 20
"""How far each list is walked."""


def database(home: Path) -> Path:
    """The coordinator's file."""
    return home / "saga_coordinator" / "saga_coordinator.db"


async def templates(home: Path) -> None:
    """One saga that succeeds and one that is undone."""
    for fail in (False, True):
        async with orchestra(home, "instant", fail=fail) as all_of_it:
            await all_of_it.saga()


def fill(home: Path, count: int) -> None:
    """Copies of the two, in bulk: without fsync, and with the indexes made at the end."""
    with contextlib.closing(sqlite3.connect(database(home), isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        indexes = db.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'sagas' AND sql IS NOT NULL"
        ).fetchall()
        made = _copies(db, count)
        db.execute("BEGIN")
        db.execute("DELETE FROM timers")
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        for saga, log in made:
            db.execute(_insert("sagas", saga), saga)
            db.executemany(_insert("saga_log", log[0]), log)
        for _, sql in indexes:
            db.execute(sql)
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")


def _insert(table: str, row: Row) -> str:
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"  # noqa: S608  column names of the schema; values are bound


def _rows(db: sqlite3.Connection, query: str, *values: str) -> list[Row]:
    cursor = db.execute(query, values)
    names = [each[0] for each in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _copies(db: sqlite3.Connection, count: int) -> Iterator[tuple[Row, list[Row]]]:
    """Rows of sagas with those of their logs, oldest first."""
    rows = _rows(db, "SELECT * FROM sagas ORDER BY state DESC")
    originals = [(row, _ends_of_log(db, row["id"])) for row in rows]
    chance = random.Random(1)  # noqa: S311  no secret
    first_ms = int(time.time() * 1000) - DAYS * DAY_MS
    app_ids = [new_id() for _ in range(APPS)]
    for number in range(count):
        row, entries = originals[0 if chance.random() < 0.7 else 1]
        app = 0 if chance.random() < 0.2 else chance.randrange(1, APPS)
        created_ms = first_ms + number * DAYS * DAY_MS // count
        saga_id = f"{created_ms:012x}-7{chance.getrandbits(12):03x}-8{chance.getrandbits(12):03x}-{number:012x}"
        saga_id = f"{saga_id[:8]}-{saga_id[8:]}"
        own = {"id": saga_id, "app_id": app_ids[app], "app": f"shop{app}", "commit_id": f"{number:040x}"}
        yield _copy(row, entries, {**own, "created_ms": created_ms})


def _ends_of_log(db: sqlite3.Connection, saga_id: str) -> list[Row]:
    rows = _rows(db, "SELECT * FROM saga_log WHERE saga_id = ? ORDER BY seq", saga_id)
    return [rows[0], rows[-1]]


def _copy(row: Row, entries: list[Row], own: Row) -> tuple[Row, list[Row]]:
    changes = {row[name]: own[name] for name in ("id", "app_id", "commit_id")}
    changes['"app":"shop"'] = f'"app":"{own["app"]}"'
    seconds = str(row["created_ms"])[:10]  # times in a body are a few milliseconds apart: all get the same second

    def changed(text: str | None) -> str | None:
        if text is None:
            return None
        for old, new in changes.items():
            text = text.replace(old, new)
        return text.replace(seconds, str(own["created_ms"])[:10])

    texts = {name: changed(row[name]) for name in ("origin", "body")}
    log = [
        {
            **entry,
            "saga_id": own["id"],
            "seq": seq,
            "at_ms": own["created_ms"],
            "payload": changed(entry["payload"]),
            "context": changed(entry["context"]),
        }
        for seq, entry in enumerate(entries, 1)
    ]
    return {**row, **own, "version": 1, **texts}, log


def forms(count: int) -> Mapping[str, Mapping[str, str]]:
    """Every way to ask for a list."""
    days_ago: Callable[[int], str] = lambda days: datetime.fromtimestamp(time.time() - days * 86_400, UTC).isoformat()  # noqa: E731  shorter so
    return {
        "all": {},
        "state, many": {"state": "SUCCEEDED"},
        "state, none": {"state": "STUCK"},
        "app, many": {"app": "shop0"},
        "app, few": {"app": "shop7"},
        "app and state": {"app": "shop0", "state": "COMPENSATED"},
        "app since": {"app": "shop0", "since": days_ago(100)},
        "commit": {"commit": f"{count // 2:040x}"},
        "step, many": {"step": "deploy"},
        "step, none": {"step": "build"},
        "step and state": {"step": "deploy", "state": "COMPENSATED"},
        "needs attention": {"needs": "attention"},
        "since and until": {"since": days_ago(200), "until": days_ago(150)},
        "state until": {"state": "COMPENSATED", "until": days_ago(150)},
    }


async def page_times_ms(client: httpx2.AsyncClient, query: Mapping[str, str], rounds: int) -> list[float]:
    """The first page and those behind it, several times over."""
    taken = []
    for _ in range(rounds):
        cursor: str | None = None
        for _ in range(LATER_PAGES):
            began = time.perf_counter()
            answer = await client.get("/sagas", params={**query, **({"cursor": cursor} if cursor else {})})
            taken.append((time.perf_counter() - began) * 1000)
            answer.raise_for_status()
            cursor = answer.json()["next_cursor"]
            if cursor is None:
                break
    return taken


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    """Straight into the app."""
    headers = {"Authorization": "Bearer bench"}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://coordinator", headers=headers)


async def lists(all_of_it: Orchestra, count: int, rounds: int) -> None:
    """Each form of the list."""
    group = f"Pages of 50 among {count:,} ended sagas"
    every: list[float] = []
    worst: dict[str, float] = {}
    async with client_of(all_of_it.app) as client:
        for query in forms(count).values():
            await page_times_ms(client, query, 1)  # a platform that runs has been asked before
        for name, query in forms(count).items():
            taken = await page_times_ms(client, query, rounds)
            every += taken
            worst[name] = percentile(taken, 0.99)
    Figure(group=group, name="all forms: p50", values=[percentile(every, 0.5)], unit="ms").tell()
    Figure(group=group, name="all forms: p99", values=[percentile(every, 0.99)], unit="ms", target="<= 50").tell()
    slowest = max(worst, key=worst.__getitem__)
    Figure(
        group=group, name=f"slowest form ({slowest}): p99", values=[worst[slowest]], unit="ms", target="<= 50"
    ).tell()


async def cleaning(all_of_it: Orchestra, count: int) -> None:
    """Old sagas go while others are deployed, and while somebody reads the list."""
    group = f"Cleaning {round(count * OLD):,} of {count:,} sagas"
    trips = all_of_it.trips
    trips.forget()
    await all_of_it.sagas(60, 1)
    Figure(group=group, name="round trip before: p50", values=[percentile(trips.taken_ms, 0.5)], unit="ms").tell()
    Figure(group=group, name="round trip before: p99", values=[percentile(trips.taken_ms, 0.99)], unit="ms").tell()
    trips.forget()
    retention = Retention(all_of_it.app.state.service.db, SystemClock(), keep_days=DAYS * (1 - OLD))
    read: list[float] = []
    began = time.perf_counter()
    cleaned = asyncio.create_task(retention.once())
    async with client_of(all_of_it.app) as client:
        while not cleaned.done():
            await all_of_it.sagas(5, 1)
            read += await page_times_ms(client, {"state": "COMPENSATED"}, 1)
    took_s = time.perf_counter() - began
    Figure(group=group, name="round trip meanwhile: p50", values=[percentile(trips.taken_ms, 0.5)], unit="ms").tell()
    Figure(group=group, name="round trip meanwhile: p99", values=[percentile(trips.taken_ms, 0.99)], unit="ms").tell()
    Figure(group=group, name="page meanwhile: p99", values=[percentile(read, 0.99)], unit="ms", target="<= 50").tell()
    Figure(group=group, name="cleaned", values=[await cleaned / took_s], unit="sagas/s").tell()


async def measure(count: int, rounds: int) -> None:
    """All of it."""
    with folder() as home:
        await templates(home)
        await asyncio.to_thread(fill, home, count)
        group = f"Pages of 50 among {count:,} ended sagas"
        Figure(group=group, name="database", values=[database(home).stat().st_size / 1e6], unit="MB").tell()
        async with orchestra(home, "instant") as all_of_it:
            await lists(all_of_it, count, rounds)
            await cleaning(all_of_it, count)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    quiet()
    asyncio.run(measure(given.sagas, given.rounds))


if __name__ == "__main__":
    main()
