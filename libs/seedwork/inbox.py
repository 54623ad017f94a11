"""Messages arrive once: the inbox remembers ids, in the transaction that acts on them."""

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.set_wise import Among, Many
from seedwork.tables import KernelTables


async def take_new(
    conn: AsyncConnection, tables: KernelTables, envelopes: Sequence[Envelope], now_ms: int
) -> list[Envelope]:
    """Those that were never taken before, in their order; from now on they were.

    Two replicas that take the same id at the same moment collide on the primary key: the second one waits for the
    first one's commit, then its transaction fails, is run again by `Database.write`, and finds the id.
    """
    if not envelopes:
        return []
    by_id = {each.id: each for each in envelopes}
    inbox = tables.inbox
    known = {row[0] for row in await _among(inbox).execute(conn, by_id)}
    new = [each for message_id, each in by_id.items() if message_id not in known]
    if new:
        await _insert(inbox).later(conn, [{"message_id": each.id, "at_ms": now_ms} for each in new])
    return new


@lru_cache(maxsize=64)
def _insert(inbox: Table) -> Many:
    return Many(insert(inbox))


@lru_cache(maxsize=64)
def _among(inbox: Table) -> Among:
    return Among(select(inbox.c.message_id), inbox.c.message_id)
