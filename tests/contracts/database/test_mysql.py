"""MySQL keeps the contract of the database, and gets over what only a server does to its clients."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from seedwork.testing.database_contract import DatabaseContract, metadata, names, ship, ships
from seedwork.testing.servers import Wire, answers, mysql_schema, own_mysql
from seedwork.unit_of_work import Database, DatabaseUnavailable, insert_ignore

COMMIT = b"\x03COMMIT"
"""The statement as a packet; a session's "READ COMMITTED" is none."""

pytestmark = pytest.mark.stack("MYSQL_URL")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with mysql_schema() as url:
        yield url


class TestMySql(DatabaseContract):
    @pytest.fixture
    async def url(self) -> AsyncIterator[str]:
        async with mysql_schema() as url:
            yield url

    async def test_a_commit_is_durable_when_it_is_answered(self, db: Database) -> None:
        """The server writes its logs to disk at each commit, as it is shipped."""

        async def settings(conn: AsyncConnection) -> tuple[int, int]:
            row = (await conn.execute(text("SELECT @@innodb_flush_log_at_trx_commit, @@sync_binlog"))).one()
            return row[0], row[1]

        assert await db.read(settings) == (1, 1)

    async def test_a_read_that_is_cancelled_ends_whenever_that_comes(self, url: str) -> None:
        """Also while it connects: a service whose background task goes on reading would never stop."""
        unheard = []
        for steps in range(1, 40):
            db = Database(url)
            await db.open()
            reading = asyncio.create_task(db.now_ms())
            for _ in range(steps):
                await asyncio.sleep(0)
            if reading.cancel():
                with contextlib.suppress(asyncio.CancelledError):
                    unheard.append((steps, await reading))
            await db.close()
        assert unheard == []

    async def test_a_deadlock_is_run_again(self, replicas: tuple[Database, Database]) -> None:
        """Each holds the row that the other one wants: the server undoes one of them, and both are done in the end."""

        async def build(conn: AsyncConnection) -> None:
            await ship(conn, "argo", knots=0)
            await ship(conn, "fram", knots=0)

        await replicas[0].write(build)
        both = asyncio.Barrier(2)
        runs: list[str] = []

        def swap(first: str, second: str) -> Callable[[AsyncConnection], Awaitable[None]]:
            async def work(conn: AsyncConnection) -> None:
                await knot(conn, first)
                runs.append(first)
                if len(runs) <= 2:
                    await both.wait()
                await knot(conn, second)

            return work

        await asyncio.gather(replicas[0].write(swap("argo", "fram")), replicas[1].write(swap("fram", "argo")))
        assert len(runs) == 3
        assert await replicas[0].read(knots) == {"argo": 2, "fram": 2}

    async def test_a_lock_that_is_not_had_in_time_is_asked_for_again(self, url: str, db: Database) -> None:
        """Somebody holds the row for longer than a statement waits."""
        await db.write(lambda conn: ship(conn, "argo", knots=0))
        engine = create_async_engine(url)
        async with engine.connect() as other:
            await knot(other, "argo")
            writing = asyncio.create_task(db.write(lambda conn: knot(conn, "argo")))
            await asyncio.sleep(6)  # longer than innodb_lock_wait_timeout: a real server's own time
            assert not writing.done()
            await other.commit()
            await writing
        await engine.dispose()
        assert await db.read(knots) == {"argo": 2}

    async def test_a_row_that_does_not_fit_is_no_duplicate(self, db: Database) -> None:
        """IGNORE would cut the text short and go on."""
        row = {"name": "a" * 65, "port": "", "version": 1}
        with pytest.raises(ValueError, match="does not fit into ships"):
            await db.write(lambda conn: insert_ignore(conn, ships, [row]))
        assert await db.read(names) == set()

    async def test_connections_that_the_server_has_closed_are_not_noticed(self, url: str, db: Database) -> None:
        """All of them, before a read, before a write and in the middle of one."""
        await db.write(lambda conn: ship(conn, "argo"))
        await db.read(names)
        await kill_connections(url)
        assert await db.read(names) == {"argo"}
        await kill_connections(url)
        await db.write(lambda conn: ship(conn, "fram"))
        killed: list[bool] = []

        async def is_killed(conn: AsyncConnection) -> None:
            await ship(conn, "vasa")
            if not killed:
                killed.append(True)
                await kill_connections(url)
            await ship(conn, "kon-tiki")

        await db.write(is_killed)
        assert await db.read(names) == {"argo", "fram", "vasa", "kon-tiki"}

    async def test_a_commit_of_which_nobody_heard_is_said_to_be_unknown_and_not_run_again(
        self, url: str, db: Database
    ) -> None:
        """The server has done it, and the wire was cut before its answer came."""
        runs: list[str] = []

        async def work(conn: AsyncConnection) -> None:
            runs.append("run")
            await ship(conn, "argo")

        async with over_a_wire(url) as (distant, wire):
            await distant.write(names)  # connected, with all that this commits
            wire.cut_after(COMMIT)
            with pytest.raises(DatabaseUnavailable):
                await distant.write(work)
            assert (wire.cuts, runs) == (1, ["run"])
            async with asyncio.timeout(30):
                while await db.read(names) != {"argo"}:  # noqa: ASYNC110  the server is still at it
                    await asyncio.sleep(0.01)
            await distant.write(lambda conn: ship(conn, "fram"))
        assert await db.read(names) == {"argo", "fram"}


async def test_a_server_that_is_killed_loses_nothing_that_it_has_answered() -> None:
    """Writers write all the time; it is killed and started again twice. They wait, and go on by themselves."""
    async with own_mysql() as (server, url):
        db = Database(url)
        await db.open()
        async with db.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        answered: list[str] = []
        stop, refused = asyncio.Event(), asyncio.Event()

        async def write_on(writer: int) -> None:
            n = 0
            while not stop.is_set():
                name = f"ship-{writer}-{n}"
                try:
                    # The key makes it safe to write again what may have been committed.
                    await db.write(lambda conn, name=name: insert_ignore(conn, ships, [row(name)]))  # type: ignore[misc]
                except DatabaseUnavailable:
                    refused.set()
                    await asyncio.sleep(0.05)
                else:
                    answered.append(name)
                    n += 1

        async with asyncio.TaskGroup() as group:
            for writer in range(8):
                group.create_task(write_on(writer))
            for _ in range(2):
                await more(answered, 200)
                refused.clear()
                await server.kill()
                async with asyncio.timeout(60):
                    await refused.wait()
                await server.restart()
                await answers(lambda: raw(url, "SELECT 1"))
                await more(answered, 200)
            stop.set()
        assert set(answered) <= await db.read(names)
        assert len(answered) == len(set(answered))
        await db.close()


def row(name: str) -> dict[str, object]:
    return {"name": name, "port": "", "version": 1}


async def more(answered: list[str], count: int) -> None:
    """Wait until so many more were answered."""
    wanted = len(answered) + count
    async with asyncio.timeout(120):
        while len(answered) < wanted:  # noqa: ASYNC110  what many writers have done
            await asyncio.sleep(0.02)


async def knot(conn: AsyncConnection, name: str) -> None:
    await conn.execute(update(ships).where(ships.c.name == name).values(knots=ships.c.knots + 1))


async def knots(conn: AsyncConnection) -> dict[str, int]:
    return {each.name: each.knots for each in await conn.execute(select(ships))}


async def raw(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as conn:
            result = await conn.execute(text(statement))
            rows = [tuple(each) for each in result] if result.returns_rows else []
            await conn.commit()
            return rows
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def over_a_wire(url: str) -> AsyncIterator[tuple[Database, Wire]]:
    """The same schema over a connection that can be cut."""
    parts = make_url(url)
    wire = Wire(parts.host or "127.0.0.1", parts.port or 3306)
    port = await wire.open()
    db = Database(parts.set(host="127.0.0.1", port=port).render_as_string(hide_password=False), writers=1)
    await db.open()
    try:
        yield db, wire
    finally:
        await db.close()
        await wire.close()


async def kill_connections(url: str) -> None:
    """Every connection to this schema but our own, as an administrator would."""
    schema = make_url(url).database
    rows = await raw(
        url,
        f"SELECT id FROM information_schema.processlist WHERE db = '{schema}' AND id <> CONNECTION_ID()",  # noqa: S608
    )
    for each in rows:
        await raw(url, f"KILL {each[0]}")
