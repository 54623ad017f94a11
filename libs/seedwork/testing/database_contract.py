"""The contract suite of the database: what passes it can hold sagas, jobs and messages.

A subclass gives the URL of an empty database; most tests open it twice, as two replicas of a service do.
"""
# ruff: noqa: S101 - these are tests, kept where every adapter's tests find them

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Column, CursorResult, Integer, MetaData, String, Table, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import RetryableError
from seedwork.inbox import take_new
from seedwork.messages import Envelope, new_id
from seedwork.set_wise import update_each
from seedwork.tables import Json, Ms, kernel_tables
from seedwork.unit_of_work import Database, after_commit, insert_ignore

metadata = MetaData()
kernel = kernel_tables(metadata)
ships = Table(
    "ships",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("port", String(64), primary_key=True, default=""),
    Column("version", Integer, nullable=False, default=1),
    Column("knots", Integer),
    Column("sunk_ms", Ms),
    Column("log", Json),
)


class Moved(RetryableError):
    """Somebody else has changed the row since it was read."""


async def ship(conn: AsyncConnection, name: str, **values: object) -> None:
    """Insert one."""
    await conn.execute(insert(ships).values(name=name, **values))


async def names(conn: AsyncConnection) -> set[str]:
    """Of all ships."""
    return {row.name for row in await conn.execute(select(ships.c.name))}


async def faster(conn: AsyncConnection, name: str) -> None:
    """One knot more, if the row is as it was read."""
    mine = ships.c.name == name
    row = (await conn.execute(select(ships.c.version, ships.c.knots).where(mine))).one()
    changed = await conn.execute(
        update(ships)
        .where(mine, ships.c.version == row.version)
        .values(version=row.version + 1, knots=(row.knots or 0) + 1)
    )
    if changed.rowcount != 1:
        raise Moved("The ship has sailed on")


class DatabaseContract:
    """Inherited by the tests of every kind of database."""

    @pytest.fixture
    async def url(self) -> str:
        """Of an empty database; overridden by each kind's tests."""
        raise NotImplementedError

    @pytest.fixture
    async def replicas(self, url: str) -> AsyncIterator[tuple[Database, Database]]:
        """Two processes' views of one database."""
        first, second = Database(url), Database(url)
        await first.open()
        await second.open()
        async with first.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        yield first, second
        await first.close()
        await second.close()

    @pytest.fixture
    def db(self, replicas: tuple[Database, Database]) -> Database:
        """One of them."""
        return replicas[0]

    async def test_many_writes_at_once_are_all_committed_and_seen_by_the_other(
        self, replicas: tuple[Database, Database]
    ) -> None:
        """Three hundred from two replicas; what was answered is there for everybody."""

        def writer(n: int) -> Callable[[AsyncConnection], Awaitable[None]]:
            return lambda conn: ship(conn, f"ship-{n}")

        await asyncio.gather(*(replicas[n % 2].write(writer(n)) for n in range(300)))
        for each in replicas:
            assert await each.read(names) == {f"ship-{n}" for n in range(300)}

    async def test_text_comes_back_as_it_was_written(self, db: Database) -> None:
        """Quotes, backslashes and what else a driver may take for its own, by each way of writing."""
        texts = ["it's", '"', "\\", "\\'", "\\\\0", "%s %(x)s :x ?", "\n\t\r\x1a\x00", "ß 漢 🚢", ""]

        async def work(conn: AsyncConnection) -> None:
            await ship(conn, "argo", log=texts[0])
            await conn.execute(insert(ships), [{"name": f"ship-{n}", "log": each} for n, each in enumerate(texts)])
            rows = [{"key_name": f"ship-{n}", "key_port": "", "log": f"{each}!"} for n, each in enumerate(texts)]
            await update_each(conn, ships, rows)
            for each in texts:
                query = select(func.count()).select_from(ships).where(ships.c.log == f"{each}!")
                assert (await conn.execute(query)).scalar_one() == 1

        await db.write(work)

        async def logs(conn: AsyncConnection) -> dict[str, str]:
            return {row.name: row.log for row in await conn.execute(select(ships.c.name, ships.c.log))}

        wanted = {f"ship-{n}": f"{each}!" for n, each in enumerate(texts)}
        assert await db.read(logs) == {"argo": texts[0], **wanted}

    async def test_a_write_that_raises_leaves_nothing_and_takes_nobody_along(self, db: Database) -> None:
        """It shares its transaction with forty others: they are committed, its rows are not, its callback is silent."""
        called: list[str] = []

        async def sinks(conn: AsyncConnection) -> None:
            await ship(conn, "titanic")
            after_commit(conn, lambda: called.append("titanic"))
            raise ValueError("iceberg")

        def sails(n: int) -> Callable[[AsyncConnection], Awaitable[None]]:
            async def work(conn: AsyncConnection) -> None:
                await ship(conn, f"ship-{n}")
                after_commit(conn, lambda: called.append(f"ship-{n}"))

            return work

        works = [sinks if n == 20 else sails(n) for n in range(41)]
        results = await asyncio.gather(*(db.write(each) for each in works), return_exceptions=True)
        assert [str(each) for each in results if each is not None] == ["iceberg"]
        wanted = {f"ship-{n}" for n in range(41) if n != 20}
        assert await db.read(names) == wanted
        assert sorted(called) == sorted(wanted)

    async def test_a_row_that_another_moved_is_not_overwritten(self, replicas: tuple[Database, Database]) -> None:
        """Two replicas add forty knots under version checks, trying again when they came too late: none is lost."""
        await replicas[0].write(lambda conn: ship(conn, "argo"))

        async def add(db: Database) -> None:
            async with asyncio.timeout(60):
                while True:
                    try:
                        return await db.write(lambda conn: faster(conn, "argo"))
                    except Moved:
                        await asyncio.sleep(0)

        await asyncio.gather(*(add(replicas[n % 2]) for n in range(40)))
        row = (await replicas[1].read(lambda conn: _row(conn, "argo"))).one()
        assert (row.knots, row.version) == (40, 41)

    async def test_a_row_counts_as_found_where_nothing_had_to_change(self, db: Database) -> None:
        """A version check asks whether the row was there, not whether its values are others now."""
        await db.write(lambda conn: ship(conn, "argo", knots=7))

        async def again(conn: AsyncConnection) -> tuple[int, int]:
            plain = await conn.execute(update(ships).where(ships.c.name == "argo").values(knots=7))
            many = await update_each(conn, ships, [{"key_name": "argo", "key_port": "", "key_version": 1, "knots": 7}])
            return plain.rowcount, many

        assert await db.write(again) == (1, 1)

    async def test_many_rows_change_by_one_call_each_only_if_it_is_what_it_was(self, db: Database) -> None:
        """Another version, a row that is not there, and one that must be null and is not are left alone."""

        async def build(conn: AsyncConnection) -> None:
            for n in range(300):
                await ship(conn, f"ship-{n}", port="ålesund", knots=n, sunk_ms=5 if n == 2 else None)

        await db.write(build)
        rows = [
            {
                "key_name": f"ship-{n}",
                "key_port": "ålesund",
                "key_version": 2 if n == 1 else 1,
                "knots": None if n == 3 else n + 1,
                "log": f"'\"\\%s 🚢 {n}",
                "version": 9,
            }
            for n in range(301)
        ]
        found = await db.write(lambda conn: update_each(conn, ships, rows, only_where_null=("sunk_ms",)))
        assert found == 298
        assert await db.write(lambda conn: update_each(conn, ships, [])) == 0

        async def look(conn: AsyncConnection) -> dict[str, tuple[int | None, str | None, int]]:
            return {row.name: (row.knots, row.log, row.version) for row in await conn.execute(select(ships))}

        seen = await db.read(look)
        assert seen["ship-0"] == (1, "'\"\\%s 🚢 0", 9)
        assert (seen["ship-1"], seen["ship-2"]) == ((1, None, 1), (2, None, 1))
        assert seen["ship-3"] == (None, "'\"\\%s 🚢 3", 9)
        assert seen["ship-299"] == (300, "'\"\\%s 🚢 299", 9)

    async def test_a_message_is_taken_by_one_replica_only(self, replicas: tuple[Database, Database]) -> None:
        """The same hundred ids come to both at the same moment, in batches that overlap."""
        messages = [
            Envelope(id=new_id(), source="/t", type="T", time="", correlationid="s", appid="a", data={})
            for _ in range(100)
        ]
        taken: list[str] = []

        def take(start: int) -> Callable[[AsyncConnection], Awaitable[list[Envelope]]]:
            return lambda conn: take_new(conn, kernel, messages[start : start + 20], 1)

        async def at(db: Database, start: int) -> None:
            taken.extend(each.id for each in await db.write(take(start)))

        await asyncio.gather(*(at(db, start) for start in range(0, 100, 5) for db in replicas))
        assert sorted(taken) == sorted(each.id for each in messages)

    async def test_a_key_that_is_there_is_left_alone_and_not_counted(self, db: Database) -> None:
        """Of three rows one is new; what was there keeps its values."""
        await db.write(lambda conn: ship(conn, "argo", knots=7))
        rows = [{"name": name, "port": "", "version": 1, "knots": 1} for name in ("argo", "fram")]
        assert await db.write(lambda conn: insert_ignore(conn, ships, rows)) == 1
        assert await db.write(lambda conn: insert_ignore(conn, ships, rows)) == 0
        assert (await db.read(lambda conn: _row(conn, "argo"))).one().knots == 7

    async def test_a_key_that_nobody_looks_for_is_an_error(self, db: Database) -> None:
        """Run again or not, it stays one."""
        await db.write(lambda conn: ship(conn, "argo"))
        with pytest.raises(IntegrityError):
            await db.write(lambda conn: ship(conn, "argo"))

    async def test_text_is_compared_byte_by_byte_and_kept_as_it_is(self, db: Database) -> None:
        """Case, accents, trailing blanks and characters beyond the basic plane make another key; a megabyte is kept."""
        keys = ["main", "Main", "mäin", "main ", "straße", "strasse", "🚢", "🚣"]
        long = "🚢" * 250_000

        async def write(conn: AsyncConnection) -> None:
            for each in keys:
                await ship(conn, each, log=long if each == "🚢" else None)

        await db.write(write)

        async def read(conn: AsyncConnection) -> list[str]:
            return [row.name for row in await conn.execute(select(ships.c.name).order_by(ships.c.name))]

        assert await db.read(read) == sorted(keys)
        assert (await db.read(lambda conn: _row(conn, "🚢"))).one().log == long
        assert (await db.read(lambda conn: _row(conn, "MAIN"))).one_or_none() is None

    async def test_a_read_is_one_snapshot(self, replicas: tuple[Database, Database]) -> None:
        """What is committed between two of its statements is seen by the next read."""
        counted = select(func.count()).select_from(ships)
        looked, written = asyncio.Event(), asyncio.Event()

        async def twice(conn: AsyncConnection) -> tuple[int, int]:
            first = (await conn.execute(counted)).scalar_one()
            looked.set()
            await written.wait()
            return first, (await conn.execute(counted)).scalar_one()

        reading = asyncio.create_task(replicas[0].read(twice))
        await looked.wait()
        await replicas[1].write(lambda conn: ship(conn, "argo"))
        written.set()
        assert await reading == (0, 0)
        assert await replicas[0].read(names) == {"argo"}

    async def test_replicas_read_the_same_clock(self, replicas: tuple[Database, Database]) -> None:
        """Milliseconds since 1970, UTC, and never backwards from one question to the next."""
        answers = [await replicas[n % 2].now_ms() for n in range(10)]
        assert answers == sorted(answers)
        assert 1_700_000_000_000 < answers[0] < 4_000_000_000_000


async def _row(conn: AsyncConnection, name: str) -> CursorResult[Any]:
    return await conn.execute(select(ships).where(ships.c.name == name))
