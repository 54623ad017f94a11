"""Messages arrive once: the inbox remembers ids, in the transaction that acts on them."""

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

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
    inbox, new = tables.inbox, list(by_id)
    if conn.dialect.name != "sqlite":
        with contextlib.suppress(IntegrityError):
            await _insert(inbox).execute(conn, _rows(new, now_ms))  # one statement, if it has less than a megabyte
            return list(by_id.values())
    known = {row[0] for row in await _among(inbox).execute(conn, by_id)}
    new = [each for each in new if each not in known]
    if new:
        await _insert(inbox).later(conn, _rows(new, now_ms))
    return [by_id[each] for each in new]


def _rows(message_ids: Sequence[str], now_ms: int) -> list[dict[str, Any]]:
    return [{"message_id": each, "at_ms": now_ms} for each in message_ids]


@lru_cache(maxsize=64)
def _insert(inbox: Table) -> Many:
    return Many(insert(inbox))


@lru_cache(maxsize=64)
def _among(inbox: Table) -> Among:
    return Among(select(inbox.c.message_id), inbox.c.message_id)
