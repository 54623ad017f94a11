"""Many rows changed by one statement, each only if it is still what it was.

In: rows that say which row they mean and what it must still hold (`key_…`), and what it becomes. Out: how many were
so. SQLite runs one prepared statement for all rows inside the connection's thread; MySQL would go to the server and
back for each, so there the rows travel as one table value, joined with the table by its primary key.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Table, Update, and_, bindparam, update
from sqlalchemy.ext.asyncio import AsyncConnection

_KEY = "key_"
_ROWS = 200
"""In one statement of MySQL: far below what the server takes (64 MB)."""


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
        return (await conn.execute(_statement(table, names, only_where_null), rows)).rowcount
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
def _statement(table: Table, names: tuple[str, ...], only_where_null: tuple[str, ...]) -> Update:
    """One row's change; executed many times."""
    same = [table.c[name.removeprefix(_KEY)] == bindparam(name) for name in names if name.startswith(_KEY)]
    empty = [table.c[name].is_(None) for name in only_where_null]
    changes: dict[str, Any] = {name: bindparam(name) for name in names if not name.startswith(_KEY)}
    return update(table).where(and_(*same, *empty)).values(changes)


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
