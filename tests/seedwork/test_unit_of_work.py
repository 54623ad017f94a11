"""The database port: grouped commits that fail alone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, after_commit, insert_ignore


def row(message_id: str) -> dict[str, object]:
    return {"message_id": message_id, "at_ms": 1}


async def count(db: Database, tables: KernelTables) -> int:
    async def query(conn: AsyncConnection) -> int:
        return int((await conn.execute(select(func.count()).select_from(tables.inbox))).scalar_one())

    return await db.read(query)


async def test_a_write_that_raises_takes_nothing_of_its_group_along(db: Database, tables: KernelTables) -> None:
    """Twenty writes wait together and one breaks a constraint: nineteen are committed, one raises."""

    def writer(n: int) -> Callable[[AsyncConnection], Awaitable[int]]:
        async def work(conn: AsyncConnection) -> int:
            await conn.execute(insert(tables.inbox), [row(f"m{n if n != 13 else 12}")])
            return n

        return work

    results = await asyncio.gather(*(db.write(writer(n)) for n in range(20)), return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [n for n in range(20) if n != 13]
    assert isinstance(results[13], IntegrityError)
    assert await count(db, tables) == 19


async def test_after_commit_is_called_only_for_what_was_committed(db: Database, tables: KernelTables) -> None:
    """A callback belongs to its transaction."""
    called: list[str] = []

    async def good(conn: AsyncConnection) -> None:
        await conn.execute(insert(tables.inbox), [row("a")])
        after_commit(conn, lambda: called.append("good"))

    async def bad(conn: AsyncConnection) -> None:
        after_commit(conn, lambda: called.append("bad"))
        raise ValueError("no")

    results = await asyncio.gather(db.write(good), db.write(bad), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], ValueError)
    assert called == ["good"]


async def test_a_write_inside_a_write_is_refused_instead_of_waiting_for_itself(db: Database) -> None:
    """The mistake is named where it is made."""

    async def inner(_conn: AsyncConnection) -> None:
        return None

    async def outer(_conn: AsyncConnection) -> None:
        await db.write(inner)

    with pytest.raises(RuntimeError, match="inside a write"):
        await db.write(outer)


async def test_insert_ignore_counts_what_is_new(db: Database, tables: KernelTables) -> None:
    """Keys that are there already are left alone."""
    assert await db.write(lambda conn: insert_ignore(conn, tables.inbox, [row("a"), row("b")])) == 2
    assert await db.write(lambda conn: insert_ignore(conn, tables.inbox, [row("b")])) == 0


async def test_the_clock_is_the_databases(db: Database) -> None:
    """Milliseconds since 1970."""
    assert await db.now_ms() > 1_700_000_000_000
