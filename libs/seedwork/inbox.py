"""Messages arrive once: the inbox remembers ids, in the transaction that acts on them."""

import contextlib
from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import Table, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.set_wise import Among, Many
from seedwork.tables import KernelTables


async def take_new(
    conn: AsyncConnection, tables: KernelTables, envelopes: Sequence[Envelope], now_ms: int
) -> list[Envelope]:
    """Those that were never taken before, in their order; from now on they were.

    Nearly always all of them are new, so a server is asked which ones it knows only after it has refused to insert
    them: that statement alone is undone then, and the transaction goes on. Two replicas that take the same id at the
    same moment collide on the primary key: the second one waits for the first one's commit, and finds the id.
    """
    if not envelopes:
        return []
    by_id = {each.id: each for each in envelopes}
    inbox = tables.inbox
    rows = [{"message_id": each, "at_ms": now_ms} for each in by_id]
    if conn.dialect.name != "sqlite":
        with contextlib.suppress(IntegrityError):
            await _insert(inbox).execute(conn, rows)  # one statement, as long as it has less than a megabyte
            return list(by_id.values())
    known = {row[0] for row in await _among(inbox).execute(conn, by_id)}
    new = [each for each in rows if each["message_id"] not in known]
    if new:
        await _insert(inbox).later(conn, new)
    return [by_id[each["message_id"]] for each in new]


@lru_cache(maxsize=64)
def _insert(inbox: Table) -> Many:
    return Many(insert(inbox))


@lru_cache(maxsize=64)
def _among(inbox: Table) -> Among:
    return Among(select(inbox.c.message_id), inbox.c.message_id)
