"""Messages leave through a table: written with the state they tell of, published after the commit, then deleted.

`Outbox.add` inside a transaction; the relay hears of the commit and publishes at once, in the order of the commits.
What a killed process left behind is found in the table at the next start, or by another replica after `ORPHAN_S`.
So a message is published at least once, and never before its transaction is on disk.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import structlog
from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.bus import Bus
from seedwork.clock import Clock
from seedwork.errors import RetryableError
from seedwork.messages import Envelope
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, after_commit

BATCH = 256
"""Envelopes per publish: a few milliseconds of work for every subscriber."""
ORPHAN_S = 30.0
"""A row older than this, which this process did not write, belongs to a process that died: publish it."""

log = structlog.get_logger(__name__)


class Outbox:
    """Where a transaction leaves its messages."""

    def __init__(self, tables: KernelTables, clock: Clock) -> None:
        self._insert = insert(tables.outbox)
        self._clock = clock
        self._pending: deque[Envelope] = deque()
        self._committed = asyncio.Event()

    async def add(self, conn: AsyncConnection, envelopes: Sequence[Envelope]) -> None:
        """Leave these messages, if the transaction commits."""
        if not envelopes:
            return
        now = self._clock.now_ms()
        await conn.execute(
            self._insert,
            [{"message_id": each.id, "at_ms": now, "envelope": each.to_json().decode()} for each in envelopes],
        )
        after_commit(conn, lambda: self._hand_over(envelopes))

    def _hand_over(self, envelopes: Sequence[Envelope]) -> None:
        self._pending.extend(envelopes)
        self._committed.set()

    async def take(self, timeout_s: float) -> list[Envelope]:
        """The next committed messages, at most `BATCH`; empty after `timeout_s` without any."""
        if not self._pending:
            self._committed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._committed.wait()
            except TimeoutError:
                return []
        return [self._pending.popleft() for _ in range(min(len(self._pending), BATCH))]


class Relay:
    """Publishes the outbox, for ever."""

    def __init__(self, db: Database, tables: KernelTables, bus: Bus, clock: Clock, outbox: Outbox) -> None:
        self._db = db
        self._table = tables.outbox
        self._bus = bus
        self._clock = clock
        self._outbox = outbox
        self._delete = tables.outbox.delete().where(tables.outbox.c.message_id == bindparam("sent_id"))
        self._deleting: asyncio.Task[None] | None = None
        self._sent: list[str] = []

    async def run(self) -> None:
        """First what an earlier process left, then what commits; from time to time what a replica left."""
        await self._publish_orphans(older_than_s=0 if self._db.sole_process else ORPHAN_S)
        try:
            while True:
                batch = await self._outbox.take(timeout_s=ORPHAN_S)
                if batch:
                    await self._publish(batch)
                elif not self._db.sole_process:
                    await self._publish_orphans(older_than_s=ORPHAN_S)
        finally:
            if self._deleting:
                self._deleting.cancel()

    async def backlog(self) -> int:
        """Messages that are not known to be published."""
        return await self._db.read(self._count)

    async def _count(self, conn: AsyncConnection) -> int:
        return int((await conn.execute(select(func.count()).select_from(self._table))).scalar_one())

    async def _publish(self, batch: Sequence[Envelope]) -> None:
        """Until it is durable; waits longer each time, at most 5 s."""
        wait_s = 0.05
        crash.point("outbox.before_publish", batch[0].type)
        while True:
            try:
                await self._bus.publish(batch)
                break
            except RetryableError as error:
                log.warning("publish failed, trying again", error=error.message, messages=len(batch), wait_s=wait_s)
                await self._clock.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
        crash.point("outbox.after_publish", batch[0].type)
        self._sent.extend(each.id for each in batch)
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.create_task(self._delete_sent(), name="outbox-delete")

    async def _delete_sent(self) -> None:
        """Off the path of the messages: a crash before it only means that they are published again."""
        while self._sent:
            sent, self._sent = self._sent, []

            async def delete(conn: AsyncConnection, sent: Sequence[str] = tuple(sent)) -> None:
                await conn.execute(self._delete, [{"sent_id": each} for each in sent])

            try:
                await self._db.write(delete)
            except RetryableError as error:
                log.warning("the outbox keeps sent messages for now", error=error.message)
                self._sent.extend(sent)
                return

    async def _publish_orphans(self, older_than_s: float) -> None:
        limit = self._clock.now_ms() - int(older_than_s * 1000)

        async def load(conn: AsyncConnection) -> list[Envelope]:
            rows = await conn.execute(
                select(self._table.c.envelope)
                .where(self._table.c.at_ms <= limit)
                .order_by(self._table.c.seq)
                .limit(BATCH)
            )
            return [Envelope.from_json(row[0]) for row in rows]

        while batch := await self._db.read(load):
            await self._publish(batch)
            if self._deleting:
                await self._deleting
