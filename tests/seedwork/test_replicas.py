"""Two replicas of a participant on one MySQL: the work is shared, and what one leaves the other takes up.

What is killed and stopped as a process is in `tests/stack/test_replicas.py`; here are the moments that need a hand in
the middle of a transaction.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import pytest
from msgspec import structs
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import RetryableError
from seedwork.jobs import Job, JobRows
from seedwork.messages import envelope, new_id
from seedwork.participant import Work
from seedwork.tables import Id, KernelTables
from seedwork.testing.bakery import Bake, Bakery, Unbake
from seedwork.testing.servers import Wire, mysql_schema
from seedwork.unit_of_work import Database

pytestmark = pytest.mark.stack("MYSQL_URL")

COMMIT = b"\x03COMMIT"
"""The statement as a packet; a session's "READ COMMITTED" is none."""
T = TypeVar("T")


@pytest.fixture
def loaves(metadata: MetaData, tables: KernelTables) -> Table:
    """Written with each outcome; a second row of a saga would be a doubled step."""
    return Table("loaves", metadata, Column("n", Integer, primary_key=True, autoincrement=True), Column("saga_id", Id))


@pytest.fixture
async def url(metadata: MetaData, loaves: Table) -> AsyncIterator[str]:
    async with mysql_schema() as url, opened(url) as db:
        async with db.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        yield url


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    db = Database(url, writers=2)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


@pytest.fixture
async def two(url: str, tables: KernelTables) -> AsyncIterator[tuple[Bakery, Bakery]]:
    """Replicas whose answers come to one place."""
    async with opened(url) as one, opened(url) as other:
        first = Bakery(db=one, tables=tables)
        yield first, Bakery(db=other, tables=tables, answers=first.answers)


async def test_work_beyond_ones_slots_is_taken_by_the_other(two: tuple[Bakery, Bakery]) -> None:
    """Six commands come to one replica with two slots; the other has two as well, and four are at work."""
    enough, go = asyncio.Event(), asyncio.Event()

    async def body(_work: Work) -> None:
        if sum(each.at_once for each in two) == 4:
            enough.set()
        await go.wait()

    for each in two:
        each.body = body
    async with two[0].open(slots=2, lease_s=3), two[1].open(slots=2, lease_s=3):
        for _ in range(6):
            await two[0].send(Bake(), new_id())
        await soon(enough.wait())
        assert [each.at_once for each in two] == [2, 2]
        go.set()
        answers = [await two[0].answer() for _ in range(6)]
    assert len({each.correlationid for each in answers}) == 6
    assert sum(each.bakes for each in two) == 6


async def test_an_undo_that_comes_to_the_other_stops_the_work_and_begins_after_it(two: tuple[Bakery, Bakery]) -> None:
    """The tombstone is seen by the replica at work; it lets go, and whoever is first undoes."""
    began, at_the_end = asyncio.Event(), []

    async def for_ever(_work: Work) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            at_the_end.append(sum(each.unbakes for each in two))

    two[0].body = for_ever
    async with two[0].open(lease_s=3), two[1].open(slots=1, lease_s=3):
        saga = new_id()
        await two[0].send(Bake(), saga)
        await soon(began.wait())
        await two[1].send(Unbake(), saga)
        answer = await two[0].answer()
    assert (answer.type, at_the_end, sum(each.unbakes for each in two)) == ("Unbaked", [0], 1)
    assert two[0].answers.empty()


async def test_the_same_command_and_its_undo_at_both_at_once_leave_one_tombstone(two: tuple[Bakery, Bakery]) -> None:
    """Neither overwrites what the other has written: in the end everything is undone, and said so."""
    sagas = [new_id() for _ in range(30)]
    async with two[0].open(slots=100, lease_s=3), two[1].open(slots=100, lease_s=3):
        sending = []
        for saga in sagas:
            sending += [two[0].send(Bake(), saga), two[1].send(Unbake(), saga), two[1].send(Bake(), saga, attempt=2)]
        await asyncio.gather(*sending)
        undone: set[str] = set()
        while undone != set(sagas):
            answer = await two[0].answer()
            if answer.type == "Unbaked":
                undone.add(answer.correlationid)
        jobs = two[0].tables.jobs

        async def not_undone(conn: AsyncConnection) -> int:
            query = select(func.count()).select_from(jobs).where(jobs.c.tombstone_ms.is_(None))
            return int((await conn.execute(query)).scalar_one())

        assert await two[0].db.read(not_undone) == 0


async def test_a_row_that_is_read_to_be_changed_cannot_change_before(two: tuple[Bakery, Bakery]) -> None:
    """One replica counts an attempt while the other one writes the tombstone: both are there in the end."""
    rows, saga = JobRows(two[0].tables), new_id()
    command = envelope(Bake(), source="test", saga_id=saga, app_id="app", step="bake", attempt=1)
    job = Job(saga_id=saga, step="bake", app_id="app", kind="Bake", accepted_ms=1, state="queued", command=command)
    await two[0].db.write(lambda conn: rows.save(conn, {}, [job]))
    has_read = asyncio.Event()

    async def change(conn: AsyncConnection, **changes: Any) -> None:
        before = await rows.load(conn, [job.key], to_change=True)
        if "attempt" in changes:
            has_read.set()
            await asyncio.wait({burying}, timeout=1)  # it cannot: it waits for this transaction
        await rows.save(conn, before, [structs.replace(before[job.key], **changes)])

    async def bury() -> None:
        await has_read.wait()
        await two[1].db.write(lambda conn: change(conn, tombstone_ms=7))

    burying = asyncio.create_task(bury())
    await two[0].db.write(lambda conn: change(conn, attempt=2))
    await burying
    after = (await two[0].db.read(lambda conn: rows.load(conn, [job.key])))[job.key]
    assert (after.attempt, after.tombstone_ms) == (2, 7)


async def test_a_command_is_worked_once_where_nobody_heard_of_the_commit_of_its_acceptance(
    url: str, tables: KernelTables
) -> None:
    """The inbox row and the lease are there, the replica does not know: the message comes again, and is done once."""
    async with over_a_wire(url) as (db, wire):
        bakery = Bakery(db=db, tables=tables)
        wire.cut_after(b"INSERT INTO inbox", COMMIT)
        async with bakery.open(lease_s=3):
            saga = new_id()
            sending = asyncio.create_task(sent(bakery, saga))
            answer = await bakery.answer()
            await sending
        assert (wire.cuts, bakery.bakes) == (1, 1)
        assert (answer.type, answer.correlationid) == ("Baked", saga)
        assert bakery.answers.empty()


async def test_an_outcome_is_stored_once_where_nobody_heard_of_its_commit(
    url: str, tables: KernelTables, loaves: Table
) -> None:
    """What goes with it is written once, and the answer leaves all the same."""
    async with over_a_wire(url) as (db, wire), opened(url) as plain:
        bakery = Bakery(db=db, tables=tables)

        async def keep(work: Work) -> None:
            async def also(conn: AsyncConnection) -> None:
                await conn.execute(insert(loaves).values(saga_id=work.saga_id))

            work.with_outcome(also)

        bakery.body = keep
        wire.cut_after(b"INSERT INTO loaves", COMMIT)
        async with bakery.open(lease_s=3):
            saga = new_id()
            await sent(bakery, saga)
            answer = await bakery.answer()
        assert (wire.cuts, bakery.bakes) == (1, 1)
        assert (answer.type, answer.correlationid) == ("Baked", saga)

        async def count(conn: AsyncConnection) -> int:
            return int((await conn.execute(select(func.count()).select_from(loaves))).scalar_one())

        assert await plain.read(count) == 1


async def test_a_database_that_is_away_for_a_while_loses_no_step(url: str, tables: KernelTables) -> None:
    """Every connection is cut again and again while fifty commands are worked on: each is answered, none twice done."""
    async with over_a_wire(url) as (db, wire):
        bakery = Bakery(db=db, tables=tables)
        done: set[str] = set()
        async with bakery.open(slots=50, lease_s=3):
            sagas = {new_id() for _ in range(50)}
            sending = [asyncio.create_task(sent(bakery, saga)) for saga in sagas]
            for _ in range(5):
                wire.cut()
                await asyncio.sleep(0.05)
            await asyncio.gather(*sending)
            while done != sagas:
                answer = await bakery.answer()
                assert answer.type == "Baked"
                done.add(answer.correlationid)
        assert bakery.bakes == 50


async def sent(bakery: Bakery, saga: str) -> None:
    """As a bus does it: the same message, until it is taken."""
    message_id = new_id()
    while True:
        try:
            await bakery.send(Bake(), saga, message_id=message_id)
        except RetryableError:
            await asyncio.sleep(0.05)
        else:
            return


async def soon(waiting: Awaitable[T]) -> T:
    async with asyncio.timeout(60):
        return await waiting


@contextlib.asynccontextmanager
async def over_a_wire(url: str) -> AsyncIterator[tuple[Database, Wire]]:
    parts = make_url(url)
    wire = Wire(parts.host or "127.0.0.1", parts.port or 3306)
    port = await wire.open()
    async with opened(parts.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)) as db:
        yield db, wire
    await wire.close()
