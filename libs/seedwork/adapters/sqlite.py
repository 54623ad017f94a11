"""SQLite behind asyncio with one visit to the connection's thread per statement.

aiosqlite goes there four times for a SELECT (open a cursor, execute, fetch, close), and on a busy machine each visit
costs two switches between threads: 50 to 100 µs. Here a statement is executed, fetched and closed in one visit. Rows
are always fetched whole, which is what SQLAlchemy's aiosqlite dialect does as well; there are no streaming cursors.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite


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
        def there() -> tuple[Any, list[Any], int, int | None]:
            cursor = self._connection._conn.cursor()  # noqa: SLF001  as aiosqlite's own cursor does
            try:
                run(cursor)
                rows = cursor.fetchall() if cursor.description else []
                return cursor.description, rows, cursor.rowcount, cursor.lastrowid
            finally:
                cursor.close()

        self.description, rows, self.rowcount, self.lastrowid = await self._connection._execute(  # type: ignore[no-untyped-call]  # noqa: SLF001  likewise
            there
        )
        self._rows = deque(rows)


class OneVisitConnection(aiosqlite.Connection):
    """An aiosqlite connection with these cursors."""

    def cursor(self) -> OneVisitCursor:  # type: ignore[override]  # SQLAlchemy enters it, and needs no more
        """A cursor, without a visit."""
        return OneVisitCursor(self)


def connect(database: str, **options: Any) -> OneVisitConnection:
    """A connection to be awaited: SQLAlchemy's `async_creator_fn`.

    Args:
        database: The file.
        options: As `sqlite3.connect` takes them.
    """
    connection = OneVisitConnection(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # noqa: SLF001  as SQLAlchemy does with connections that it makes
    return connection
