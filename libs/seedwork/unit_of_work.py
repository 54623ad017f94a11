"""A service's database: short transactions, committed in groups.

`write` takes a coroutine function that works on a connection. Those that wait together are run one after the other in
*one* transaction, so that many share one fsync; when one raises, the group is rolled back and each is run alone.
A `work` may therefore run more than once and must do nothing but database work; what has to happen after the commit is
registered by `after_commit`.

SQLite runs in WAL mode with `synchronous=FULL` (a commit that was answered survives a power cut), has one writer, and
takes its write lock at `BEGIN IMMEDIATE`. MySQL runs in READ COMMITTED with several writers, here and in other
replicas: what collides with another transaction (a deadlock, a lock wait, a key that somebody else has just inserted)
is run again a bounded number of times, and so is what met a connection that the server had closed.

When the connection breaks during a COMMIT, nobody knows whether it was done. That is `DatabaseUnavailable` too, and
never run again here: whoever waits must be able to find out, by an inbox row, a version or a lease (ADR 8).
"""

import asyncio
import contextlib
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Table, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from seedwork import tls
from seedwork.adapters import mysql, sqlite
from seedwork.adapters.mysql import mysql_engine
from seedwork.errors import RetryableError, StorageFull, Unavailable

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[T]]

_AFTER_COMMIT = "knarr.after_commit"
_GROUP = 64
"""Transactions that share one commit at most: 64 keeps the lock below some 10 ms."""
_BATCH = 256
"""Items of one kind that share one statement at most."""
_READERS = 8
"""Reads at once on MySQL: a page, a health check and the loops of the kernel do not wait for each other."""
_ANSWERS_S = 30.0
"""A server that says nothing for so long in the middle of a transaction is taken for gone."""
_COLLISIONS = 8
"""How often a transaction is run that collides with others; they get on meanwhile, so more would be a fault of ours."""
_FIRST_WAIT_S = 0.005
"""Between collisions, doubled each time, with full jitter: some 0.6 s altogether."""
_FAULTS = (OperationalError, InterfaceError, InternalError, PoolTimeout, OSError)
"""What a driver raises when it is not the statement's fault; a `TimeoutError` is an `OSError`."""

_SQLITE_NOW = text("SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)")
_SERVER_NOW = text("SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)")

log = structlog.get_logger(__name__)


class DatabaseUnavailable(Unavailable):
    """The database does not answer or refused for now."""


class DatabaseUntrusted(DatabaseUnavailable):
    """Encryption did not come about: an authority or a name is wrong, or the server's certificate has run out."""


class WriteConflict(RetryableError):
    """Another transaction was in the way each time; nothing was written."""

    code = "write_conflict"


class _Disconnected(DatabaseUnavailable):
    """The connection was closed before the COMMIT was sent: nothing was written, and another connection may work."""


@dataclass(slots=True)
class _Waiting:
    work: Work[Any]
    done: asyncio.Future[Any]


class Database:
    """One service's database.

    Args:
        url: An SQLAlchemy URL with an async driver: `sqlite+aiosqlite:///…` or `mysql+asyncmy://…`.
        writers: How many groups may be committed at once; SQLite has one writer by nature.
        tls_ca: A file with the authority by which connections to a server are encrypted and checked; none: as the URL
            says.
    """

    def __init__(self, url: str, *, writers: int = 8, tls_ca: str | None = None) -> None:
        self.url = make_url(url)
        self.tls_ca = tls_ca
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writers = 1 if self.is_sqlite else writers
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self.engine: AsyncEngine
        self._reader: AsyncEngine

    @property
    def sole_process(self) -> bool:
        """True where no other process can hold leases in this database: a file under the home's lock."""
        return self.is_sqlite

    @property
    def file(self) -> Path | None:
        """The SQLite file; None: the database is on a server, or in memory."""
        name = self.url.database
        return Path(name) if self.is_sqlite and name and name != ":memory:" else None

    async def open(self) -> None:
        """Connect and start the writers; make the file's folder.

        Raises:
            Misconfigured: The driver is not installed, or the authority's file is of no use.
        """
        if self.is_sqlite:
            if self.url.database:
                _for_its_user_only(Path(self.url.database))
            self.engine = _sqlite_engine(self.url, begin="BEGIN IMMEDIATE", size=1)
            self._reader = _sqlite_engine(self.url, begin="BEGIN", size=3)
        else:
            self.engine = mysql_engine(self.url, isolation="READ COMMITTED", size=self._writers, tls_ca=self.tls_ca)
            self._reader = mysql_engine(self.url, isolation="REPEATABLE READ", size=_READERS, tls_ca=self.tls_ca)
        self._closing = False
        self._tasks = [asyncio.create_task(self._write_loop(), name="database-writer") for _ in range(self._writers)]

    async def close(self) -> None:
        """Let the waiting writes finish, then disconnect."""
        self._closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)
        await self.engine.dispose()
        await self._reader.dispose()

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, committed on return.

        Raises:
            DatabaseUnavailable: The database did not do it, and nothing of it was written; or the connection broke
                during the COMMIT, and it may have been.
            WriteConflict: Other transactions were in the way each time.
            StorageFull: The disk is full.
            Exception: Whatever `work` raises; nothing of it was written.
        """
        if asyncio.current_task() in self._tasks:
            raise RuntimeError("a write inside a write would wait for itself: pass the connection on")
        if self._closing or not self._tasks:
            raise DatabaseUnavailable("The database is closed", why="the service is stopping")
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._wake.set()
        result: T = await waiting.done
        return result

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a snapshot; it must not write, and may run twice.

        Raises:
            DatabaseUnavailable: The database does not answer.
        """
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            result = await self._read(work)
        except _Disconnected:
            result = await self._read(work)  # the pool has dropped every connection from before
        if task and task.cancelling() > cancelled:
            # The driver connects by `asyncio.wait_for`; Python 3.11's swallows a cancellation that comes as it ends.
            raise asyncio.CancelledError
        return result

    async def _read(self, work: Work[T]) -> T:
        try:
            async with self._limit(), self._reader.connect() as conn:
                return await work(conn)
        except _FAULTS as error:
            raise _translated(error) from error

    async def now_ms(self) -> int:
        """The database's clock, milliseconds since 1970."""
        return await self.read(database_now_ms)

    async def _write_loop(self) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
            group = [self._queue.popleft() for _ in range(min(len(self._queue), _GROUP))]
            group = [each for each in group if not each.done.cancelled()]
            if group:
                await self._commit_group(group)

    async def _commit_group(self, group: Sequence[_Waiting]) -> None:
        """All in one transaction; if one raises, each alone."""
        try:
            results = await self._until_done([each.work for each in group])
        except Exception as error:  # noqa: BLE001  handed on to whoever waits for it
            if len(group) == 1:
                _fail(group[0].done, error)
                return
            for each in group:
                await self._commit_group([each])
            return
        for each, result in zip(group, results, strict=True):
            if not each.done.done():
                each.done.set_result(result)

    async def _until_done(self, works: Sequence[Work[Any]]) -> list[Any]:
        """Run the transaction; again when it collided with another one, or its connection was an old one."""
        lost = False
        for attempt in range(_COLLISIONS):
            try:
                return await self._transaction(works)
            except _Disconnected:
                if lost:
                    raise
                lost = True
            except (WriteConflict, IntegrityError) as error:
                # A key that is there although the work has looked: inserted by another replica since. Run again, it
                # finds the row, unless the work never looks; SQLite has one writer, so there it never looks.
                duplicate = isinstance(error, IntegrityError)
                if attempt + 1 == _COLLISIONS or (duplicate and (self.is_sqlite or len(works) > 1 or attempt >= 2)):
                    raise
                log.debug("a transaction collides with another one", attempt=attempt + 1, error=str(error))
                await asyncio.sleep(random.uniform(0, _FIRST_WAIT_S * 2**attempt))  # noqa: S311  no secret
        raise AssertionError("the last attempt returns or raises")

    async def _transaction(self, works: Sequence[Work[Any]]) -> list[Any]:
        callbacks: list[Callable[[], None]] = []
        committing = False
        try:
            async with self._limit(), self.engine.connect() as conn:
                info = conn.info  # of a connection that broke it could not be had any more
                info[_AFTER_COMMIT] = callbacks
                try:
                    async with conn.begin():
                        results = [await work(conn) for work in works]
                        committing = True
                finally:
                    info.pop(_AFTER_COMMIT, None)
        except _FAULTS as error:
            raise _translated(error, committing=committing) from error
        for callback in callbacks:
            callback()
        return results

    def _limit(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """SQLite's file is always there, and has a limit of its own for locks."""
        return contextlib.nullcontext() if self.is_sqlite else asyncio.timeout(_ANSWERS_S)


class Batched(Generic[Item, Result]):
    """Many small writes of one kind as few set-wise ones: what waits together goes to `run` together.

    Args:
        db: Where to write.
        run: `run(conn, items)` does the database work for all items and returns a result for each, in their order. When
            it raises for several, each is run alone.
    """

    def __init__(
        self, db: Database, run: Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Result]]]
    ) -> None:
        self._db = db
        self._run = run
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._flushing: asyncio.Task[None] | None = None

    async def write(self, item: Item) -> Result:
        """The item's result, committed.

        Raises:
            Exception: Whatever `Database.write` or `run` raises for this item.
        """
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="batched-writes")
        return await done

    async def _flush(self) -> None:
        while self._waiting:
            await self._together([self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))])

    async def _together(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._db.write(lambda conn: self._run(conn, [item for item, _ in batch]))
        except Exception as error:  # noqa: BLE001  handed on to whoever waits for it
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            for each in batch:
                await self._together([each])
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)


def after_commit(conn: AsyncConnection, callback: Callable[[], None]) -> None:
    """Call `callback` once the transaction of this connection is on disk; never, if it is rolled back."""
    conn.info[_AFTER_COMMIT].append(callback)


async def database_now_ms(conn: AsyncConnection) -> int:
    """The database's clock, milliseconds since 1970."""
    if file := sqlite.connection_of(conn):
        return file.now_ms()
    sql = _SQLITE_NOW if conn.dialect.name == "sqlite" else _SERVER_NOW
    return int((await conn.execute(sql)).scalar_one())


async def insert_ignore(conn: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert those rows whose keys are new; how many were."""
    if not rows:
        return 0
    records = [dict(row) for row in rows]
    if conn.dialect.name == "sqlite":
        return (await conn.execute(table.insert().prefix_with("OR IGNORE"), records)).rowcount
    inserted = (await conn.execute(table.insert().prefix_with("IGNORE").values(records))).rowcount
    # IGNORE lets other mistakes pass too, such as text that is too long: those are none of ours.
    for warning in (await conn.exec_driver_sql("SHOW WARNINGS")).mappings():
        if not mysql.is_duplicate(warning["Code"]):
            raise ValueError(f"a row does not fit into {table.name}: {warning['Message']}")
    return inserted


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


def _translated(error: DBAPIError | PoolTimeout | OSError, *, committing: bool = False) -> RetryableError:
    """A driver's error as ours; the SQL and its values stay out of the text."""
    if why := mysql.why_untrusted(error):
        return DatabaseUntrusted("The database is not used", why=why, todo=tls.what_to_do(mysql.TLS_SETTING))
    if not isinstance(error, DBAPIError):
        return DatabaseUnavailable("The database does not answer", why=f"{type(error).__name__}: {error}".rstrip(": "))
    cause = f"{type(error.orig).__name__}: {error.orig}"
    if "disk is full" in cause or "No space left" in cause:
        return StorageFull("The database's disk is full", why=cause, todo="Free some room; nothing was lost.")
    if mysql.is_conflict(error):
        return WriteConflict("Another transaction was in the way", why=cause)
    if error.connection_invalidated and not committing:
        return _Disconnected("The database closed the connection", why=cause)
    return DatabaseUnavailable("The database did not do it", why=cause)


def _for_its_user_only(file: Path) -> None:
    """Make a database file with mode 0600, and its folder; SQLite gives the files beside it the same mode."""
    if str(file) == ":memory:":
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(PermissionError):  # of another user: the next step says what is not possible
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if file.stat().st_mode & 0o077 and file.stat().st_uid == os.geteuid():
            file.chmod(0o600)


def _sqlite_engine(url: Any, *, begin: str, size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=60,
        hide_parameters=True,
        connect_args={"async_creator_fn": sqlite.connect},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        record.info[sqlite.CONNECTION] = connection.driver_connection
        connection.isolation_level = None  # the driver begins nothing by itself; `begun` below does

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.connection.driver_connection.begin(begin)

    return engine


@contextlib.asynccontextmanager
async def opened(url: str) -> Any:
    """An open database, closed at the end: for tests and scripts."""
    database = Database(url)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
