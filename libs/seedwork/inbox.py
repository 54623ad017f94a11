"""Messages arrive once: the inbox remembers ids, in the transaction that acts on them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, Table, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.tables import KernelTables


async def take_new(
    conn: AsyncConnection, tables: KernelTables, envelopes: Sequence[Envelope], now_ms: int
) -> list[Envelope]:
    """Those that were never taken before, in their order; from now on they were.

    Two replicas that take the same id at the same moment collide on the primary key: the second one waits for the
    first one's commit, then its transaction fails, is run again by `Database.write`, and finds the id.
    """
    by_id = {each.id: each for each in envelopes}
    inbox = tables.inbox
    known = {row[0] for row in await conn.execute(_among(inbox), {"ids": list(by_id)})}
    new = [each for message_id, each in by_id.items() if message_id not in known]
    if new:
        await conn.execute(insert(inbox), [{"message_id": each.id, "at_ms": now_ms} for each in new])
    return new


@lru_cache(maxsize=64)
def _among(inbox: Table) -> Select[Any]:
    """Built once for each service's table: putting a statement together costs more than running it."""
    return select(inbox.c.message_id).where(inbox.c.message_id.in_(bindparam("ids", expanding=True)))
