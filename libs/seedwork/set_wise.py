"""Many rows written by one statement: as they are, or each only if it is still what it was; and many rows asked for.

`Many` hands a statement to the driver for each row, `Among` asks for the rows of many keys. `update_each` takes rows
that say which row they mean and what it must still hold (`key_…`), and what it becomes, and says how many were so.
SQLite runs one prepared statement for all rows inside the connection's thread; MySQL would go to the server and back
for each, so there the rows travel as one table value, joined with the table by its primary key.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, Table, and_, bindparam, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters import sqlite

_KEY = "key_"
_ROWS = 200
"""In one statement of MySQL: far below what the server takes (64 MB)."""


class Many:
    """A statement for many rows, handed to the driver as it is: SQLAlchemy's own way costs three times as much."""

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]] = {}

    async def execute(self, conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each row; how many rows it touched."""
        sql, values = self._for(conn)
        result = await conn.exec_driver_sql(sql, [values(row) for row in rows])
        return int(result.rowcount)

    async def later(self, conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it for each row before the next statement or the COMMIT: on SQLite that saves a visit to its thread."""
        file = sqlite.connection_of(conn)
        if file is None:
            await self.execute(conn, rows)
        else:
            sql, values = self._for(conn)
            file.later(sql, [values(row) for row in rows])

    def _for(self, conn: AsyncConnection) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
        known = self._compiled.get(conn.dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=conn.dialect)
            known = self._compiled[conn.dialect.name] = (str(compiled), _values_of(compiled.positiontup))
        return known


class Among:
    """A query for the rows whose column is among many values, handed to the driver as it is.

    Args:
        query: A SELECT without that condition.
        column: The one whose values are given.
    """

    def __init__(self, query: Select[Any], column: ColumnElement[Any]) -> None:
        self._query = query
        self._column = column
        self._compiled: dict[tuple[str, int], str] = {}

    async def execute(self, conn: AsyncConnection, values: Collection[Any]) -> CursorResult[Any]:
        """The rows, as the driver gives them (a boolean is a number)."""
        # As many places as the next power of two, so that few statements are ever made; the last value stands in all
        # that are left over.
        places = 1 << (len(values) - 1).bit_length()
        given = [*values]
        given += given[-1:] * (places - len(given))
        known = self._compiled.get((conn.dialect.name, places))
        if known is None:
            whole = self._query.where(self._column.in_(given))
            compiled = whole.compile(dialect=conn.dialect, compile_kwargs={"render_postcompile": True})
            known = self._compiled[conn.dialect.name, places] = str(compiled)
        return await conn.exec_driver_sql(known, tuple(given))


def _values_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Those values of a row, in their order."""
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)


async def update_each(
    conn: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]], *, only_where_null: tuple[str, ...] = ()
) -> int:
    """Change rows, each by what it was.

    Args:
        conn: The transaction.
        table: Its columns are named in `rows`.
        rows: All with the same names: `key_<column>` is compared (the whole primary key among them, never null),
            `<column>` is set.
        only_where_null: These columns must be null besides.

    Returns:
        How many rows were found as described; they count also where nothing had to change.
    """
    if not rows:
        return 0
    names = tuple(rows[0])
    if conn.dialect.name == "sqlite":
        return await _statement(table, names, only_where_null).execute(conn, rows)
    # The same order in every transaction: two that change the same rows wait for each other instead of deadlocking.
    keys = [name for name in names if name.startswith(_KEY)]
    ordered = sorted(rows, key=lambda row: [str(row[key]) for key in keys])
    found = 0
    for start in range(0, len(ordered), _ROWS):
        part = ordered[start : start + _ROWS]
        values = tuple(row[name] for row in part for name in names)
        found += (await conn.exec_driver_sql(_joined(table, names, only_where_null, len(part)), values)).rowcount
    return found


@lru_cache(maxsize=64)
def _statement(table: Table, names: tuple[str, ...], only_where_null: tuple[str, ...]) -> Many:
    """One row's change; executed many times."""
    same = [table.c[name.removeprefix(_KEY)] == bindparam(name) for name in names if name.startswith(_KEY)]
    empty = [table.c[name].is_(None) for name in only_where_null]
    changes: dict[str, Any] = {name: bindparam(name) for name in names if not name.startswith(_KEY)}
    return Many(update(table).where(and_(*same, *empty)).values(changes))


@lru_cache(maxsize=1024)
def _joined(table: Table, names: tuple[str, ...], only_where_null: tuple[str, ...], count: int) -> str:
    """MySQL's UPDATE of a join; STRAIGHT_JOIN, so that the few rows lead and each finds its one by the primary key."""
    row = f"ROW({', '.join(['%s'] * len(names))})"
    columns = ", ".join(f"`{name}`" for name in names)
    same = [f"t.`{name.removeprefix(_KEY)}` = v.`{name}`" for name in names if name.startswith(_KEY)]
    changes = ", ".join(f"t.`{name}` = v.`{name}`" for name in names if not name.startswith(_KEY))
    empty = "".join(f" AND t.`{name}` IS NULL" for name in only_where_null)
    return (
        f"UPDATE (VALUES {', '.join([row] * count)}) AS v ({columns}) "  # noqa: S608  names of our own columns
        f"STRAIGHT_JOIN `{table.name}` AS t ON {' AND '.join(same)}{empty} SET {changes}"
    )
