"""SQLite's connection: BEGIN with the first statement, no visit that is not needed, nothing left open."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.sqlite import OneVisitConnection
from seedwork.unit_of_work import Database

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


async def insert(conn: AsyncConnection) -> None:
    await conn.execute(text("INSERT INTO crates DEFAULT VALUES"))


async def count(conn: AsyncConnection) -> int:
    return int((await conn.execute(text("SELECT count(*) FROM crates"))).scalar_one())


async def test_a_transaction_of_two_statements_is_three_visits(sqlite: Database, visits: list[str]) -> None:
    """BEGIN goes along with the first, and after the COMMIT there is nothing to roll back."""

    async def twice(conn: AsyncConnection) -> None:
        await insert(conn)
        await insert(conn)

    await sqlite.write(twice)
    assert visits == ["there", "there", "commit"]
    assert await sqlite.read(count) == 2


async def test_a_transaction_without_a_statement_does_not_begin(sqlite: Database, visits: list[str]) -> None:
    """Nor does it hinder the next one."""

    async def nothing(_conn: AsyncConnection) -> None: ...

    await sqlite.write(nothing)
    assert visits == []
    await sqlite.write(insert)
    assert await sqlite.read(count) == 1


async def test_what_raises_is_rolled_back_before_the_next_transaction(sqlite: Database) -> None:
    """Also when it raises before any statement."""

    async def early(_conn: AsyncConnection) -> None:
        raise ValueError("before")

    async def late(conn: AsyncConnection) -> None:
        await insert(conn)
        raise ValueError("after")

    for work in (early, late):
        with pytest.raises(ValueError, match=r"before|after"):
            await sqlite.write(work)
        await sqlite.write(insert)
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
    await sqlite.write(insert)
    assert [await sqlite.read(count) for _ in range(6)] == [1] * 6
