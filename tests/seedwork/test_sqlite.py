"""SQLite's connection: BEGIN with the first statement, no visit that is not needed, nothing left open."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, column, insert, select, table, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.sqlite import OneVisitConnection, connect
from seedwork.set_wise import Among, Many
from seedwork.unit_of_work import Database, database_now_ms

_LONG = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) SELECT max(i) FROM n")


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    await db.open()
    await db.write(lambda conn: conn.execute(text("CREATE TABLE crates (id INTEGER PRIMARY KEY)")))
    yield db
    await db.close()


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each visit to a connection's thread was for."""
    seen: list[str] = []
    execute: Callable[..., Any] = OneVisitConnection._execute

    async def counted(self: OneVisitConnection, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(fn.__name__)
        return await execute(self, fn, *args, **kwargs)

    monkeypatch.setattr(OneVisitConnection, "_execute", counted)
    return seen


async def insert_one(conn: AsyncConnection) -> None:
    await conn.execute(text("INSERT INTO crates DEFAULT VALUES"))


async def count(conn: AsyncConnection) -> int:
    return int((await conn.execute(text("SELECT count(*) FROM crates"))).scalar_one())


async def test_a_transaction_of_two_statements_is_three_visits(sqlite: Database, visits: list[str]) -> None:
    """BEGIN goes along with the first, and after the COMMIT there is nothing to roll back."""

    async def twice(conn: AsyncConnection) -> None:
        await insert_one(conn)
        await insert_one(conn)

    await sqlite.write(twice)
    assert visits == ["there", "there", "commit"]
    assert await sqlite.read(count) == 2


PUT = Many(insert(table("crates", column("id"))).values(id=bindparam("id")))


async def test_what_nobody_waits_for_travels_with_the_commit(sqlite: Database, visits: list[str]) -> None:
    """BEGIN, every such statement and COMMIT in one visit."""

    async def later(conn: AsyncConnection) -> None:
        await PUT.later(conn, [{"id": 1}, {"id": 2}])
        await PUT.later(conn, [{"id": 3}])

    await sqlite.write(later)
    assert visits == ["there"]
    assert await sqlite.read(count) == 3


async def test_a_statement_finds_what_was_left_for_later_before_it(sqlite: Database, visits: list[str]) -> None:
    """It travels with it; the COMMIT is a visit of its own then."""

    async def and_count(conn: AsyncConnection) -> int:
        await PUT.later(conn, [{"id": 1}])
        return await count(conn)

    assert await sqlite.write(and_count) == 1
    assert visits == ["there", "commit"]


async def test_what_fails_later_fails_the_transaction(sqlite: Database) -> None:
    """At the COMMIT: nothing of it is written, and the next transaction knows nothing of it."""

    async def twice_the_same(conn: AsyncConnection) -> None:
        await PUT.later(conn, [{"id": 1}])
        await PUT.later(conn, [{"id": 1}])

    with pytest.raises(IntegrityError):
        await sqlite.write(twice_the_same)
    await sqlite.write(lambda conn: PUT.later(conn, [{"id": 2}]))
    assert await sqlite.read(count) == 1


async def test_what_raises_leaves_nothing_for_later(sqlite: Database) -> None:
    """Neither for this transaction nor for the next one."""

    async def fail(conn: AsyncConnection) -> None:
        await PUT.later(conn, [{"id": 1}])
        raise LookupError("after that")

    with pytest.raises(LookupError):
        await sqlite.write(fail)
    await sqlite.write(insert_one)
    assert await sqlite.read(count) == 1


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 64])
async def test_rows_among_any_number_of_keys_are_found_once(sqlite: Database, asked: int) -> None:
    """However many places the statement has."""
    crates = table("crates", column("id"))
    await sqlite.write(lambda conn: PUT.later(conn, [{"id": each} for each in range(0, 100, 2)]))
    found = await sqlite.read(lambda conn: Among(select(crates.c.id), crates.c.id).execute(conn, range(asked)))
    assert sorted(row[0] for row in found) == list(range(0, asked, 2))


async def test_the_time_is_the_one_that_sqlite_reads(sqlite: Database) -> None:
    """Without a visit."""

    async def both(conn: AsyncConnection) -> tuple[int, int, int]:
        before = await database_now_ms(conn)
        read = await conn.execute(text("SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"))
        return before, read.scalar_one(), await database_now_ms(conn)

    before, read, after = await sqlite.read(both)
    assert before - 1 <= read <= after + 1


async def test_a_transaction_without_a_statement_does_not_begin(sqlite: Database, visits: list[str]) -> None:
    """Nor does it hinder the next one."""

    async def nothing(_conn: AsyncConnection) -> None: ...

    await sqlite.write(nothing)
    assert visits == []
    await sqlite.write(insert_one)
    assert await sqlite.read(count) == 1


async def test_what_raises_is_rolled_back_before_the_next_transaction(sqlite: Database) -> None:
    """Also when it raises before any statement."""

    async def early(_conn: AsyncConnection) -> None:
        raise ValueError("before")

    async def late(conn: AsyncConnection) -> None:
        await insert_one(conn)
        raise ValueError("after")

    for work in (early, late):
        with pytest.raises(ValueError, match=r"before|after"):
            await sqlite.write(work)
        await sqlite.write(insert_one)
    assert await sqlite.read(count) == 2


async def test_a_read_that_is_cancelled_leaves_no_transaction_behind(sqlite: Database, visits: list[str]) -> None:
    """Its statement goes on in the thread; more readers come than there are connections."""
    for _ in range(5):
        reading = asyncio.create_task(sqlite.read(lambda conn: conn.execute(_LONG)))
        while "there" not in visits:  # noqa: ASYNC110  a turn of the loop or two
            await asyncio.sleep(0)
        visits.clear()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await sqlite.write(insert_one)
    assert [await sqlite.read(count) for _ in range(6)] == [1] * 6


async def test_whoever_opens_a_new_file_waits_for_another_that_does(tmp_path: Path) -> None:
    """SQLite does not let it wait by itself while the other one is about to write."""
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opening = asyncio.ensure_future(connect(str(tmp_path / "new.db")))
    await asyncio.wait([opening], timeout=0.1)
    assert not opening.done()
    other.execute("COMMIT")
    connection = await opening
    async with connection.execute("PRAGMA journal_mode") as cursor:
        assert await cursor.fetchone() == ("wal",)
    await connection.close()
    other.close()
