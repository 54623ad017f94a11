"""SQLite behind asyncio with one visit to the connection's thread per statement, and none for what needs none.

aiosqlite goes there four times for a SELECT (open a cursor, execute, fetch, close), and on a busy machine each visit
costs two switches between threads: 50 to 100 µs. Here a statement is executed, fetched and closed in one visit, BEGIN
goes along with the first one, what nobody waits for (`later`) with the next one or with the COMMIT, and a connection on
which nothing happened since its COMMIT is not rolled back. Rows are always fetched whole, which is what SQLAlchemy's
aiosqlite dialect does as well; there are no streaming cursors.
"""

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite
from sqlalchemy.ext.asyncio import AsyncConnection

CONNECTION = "knarr.sqlite"
"""Under this name a pool remembers the connection itself."""
_LOCKED_MS = 30_000
"""How long whoever finds the file locked waits."""


class OneVisitCursor:
    """What SQLAlchemy's dialect needs of a cursor; nothing is open between two calls."""

    def __init__(self, connection: "OneVisitConnection") -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Self:
        """Run one statement and keep its rows."""
        await self._visit(lambda cursor: cursor.execute(sql, parameters))
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Self:
        """Run one statement for each set of parameters."""
        await self._visit(lambda cursor: cursor.executemany(sql, parameters))
        return self

    async def fetchall(self) -> Sequence[Any]:
        """The rows that are left."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    async def fetchone(self) -> Any:
        """The next row, or None."""
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """The next rows."""
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    async def close(self) -> None:
        """Nothing is open."""

    async def _visit(self, run: Callable[[sqlite3.Cursor], object]) -> None:
        def there(cursor: sqlite3.Cursor) -> tuple[Any, list[Any], int, int | None]:
            run(cursor)
            rows = cursor.fetchall() if cursor.description else []
            return cursor.description, rows, cursor.rowcount, cursor.lastrowid

        self.description, rows, self.rowcount, self.lastrowid = await self._connection.visit(there)
        self._rows = deque(rows)


class OneVisitConnection(aiosqlite.Connection):
    """An aiosqlite connection with these cursors."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        self._begin: str | None = None
        self._later: list[tuple[str, Sequence[Sequence[Any]]]] = []
        self._clean = True
        """Nothing was sent to the thread since a COMMIT or ROLLBACK that was answered."""

    def cursor(self) -> OneVisitCursor:  # type: ignore[override]  # SQLAlchemy enters it, and needs no more
        """A cursor, without a visit."""
        return OneVisitCursor(self)

    def begin(self, sql: str) -> None:
        """Begin a transaction in these words, together with its first statement; without one, not at all."""
        self._begin = sql

    def later(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run it for each set of parameters, before the next statement or the COMMIT; what it raises, that raises."""
        self._later.append((sql, parameters))

    def now_ms(self) -> int:
        """The clock that `julianday('now')` reads: this machine's, without a visit."""
        return time.time_ns() // 1_000_000

    async def visit(self, run: Callable[[sqlite3.Cursor], Any]) -> Any:
        """What `run` gives, in the connection's thread."""
        begin, self._begin = self._begin, None
        later, self._later = self._later, []
        self._clean = False

        def there() -> Any:
            cursor = self._conn.cursor()
            try:
                if begin is not None:
                    cursor.execute(begin)
                for sql, parameters in later:
                    cursor.executemany(sql, parameters)
                return run(cursor)
            finally:
                cursor.close()

        return await self._execute(there)  # type: ignore[no-untyped-call]

    async def commit(self) -> None:
        """COMMIT, if there is something to commit."""
        if self._later:
            await self.visit(lambda cursor: cursor.execute("COMMIT"))
        elif not self._clean:
            await super().commit()
        self._begin = None
        self._clean = True

    async def rollback(self) -> None:
        """ROLLBACK, if there may be something to roll back: also behind a statement of which nobody heard the end."""
        self._begin = None
        self._later.clear()
        if not self._clean:
            await super().rollback()
            self._clean = True


def connection_of(conn: AsyncConnection) -> OneVisitConnection | None:
    """The connection below SQLAlchemy's; None where it is another database's."""
    found: OneVisitConnection | None = conn.info.get(CONNECTION)
    return found


def connect(database: str, **options: Any) -> OneVisitConnection:
    """A connection to be awaited: SQLAlchemy's `async_creator_fn`.

    Args:
        database: The file.
        options: As `sqlite3.connect` takes them.
    """
    connection = OneVisitConnection(lambda: _opened(database, **options))
    connection._thread.daemon = True  # noqa: SLF001  as SQLAlchemy does with connections that it makes
    return connection


def _opened(database: str, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(database, **options)
    try:
        for pragma in (f"busy_timeout={_LOCKED_MS}", "synchronous=FULL", "foreign_keys=ON", "cache_size=-4000"):
            connection.execute(f"PRAGMA {pragma}")
        _use_wal(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """The file stays in this mode; of several that open a new file at once, SQLite lets only one wait for the lock."""
    until = time.monotonic() + _LOCKED_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)  # this is the connection's own thread
        else:
            return
