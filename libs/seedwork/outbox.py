"""Messages leave through a table: written with the state they tell of, published after the commit, then deleted.

`Outbox.add` inside a transaction; the relay hears of the commit and publishes at once, in the order of the commits.
What a killed process left behind is found in the table at the next start, or by another replica after `ORPHAN_S`; so is
what this process has committed without hearing of it. A replica takes orphans over by making them young again, so that
the others leave them alone. A message is published at least once, and never before its transaction is on disk.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import structlog
from sqlalchemy import bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.bus import Bus
from seedwork.clock import Clock, is_due
from seedwork.errors import RetryableError
from seedwork.messages import Envelope
from seedwork.set_wise import Many
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, after_commit

BATCH = 256
"""Envelopes per publish: a few milliseconds of work for every subscriber."""
LINGER_S = 0.05
"""How long the rows of sent messages wait for others: a commit costs the same for many. Of a process that is killed
meanwhile some are sent again, by the next one or by another replica, and the inbox of whoever takes them knows them."""
ORPHAN_S = 30.0
"""A row older than this, which this process does not hold in memory, belongs to one that died: publish it."""

_WRITTEN = ("message_id", "at_ms", "envelope")

log = structlog.get_logger(__name__)


class Outbox:
    """Where a transaction leaves its messages."""

    def __init__(self, tables: KernelTables, clock: Clock) -> None:
        self._insert = Many(insert(tables.outbox).values({name: bindparam(name) for name in _WRITTEN}))
        self._clock = clock
        self._pending: deque[Envelope] = deque()
        self._committed = asyncio.Event()
        self.held: set[str] = set()
        """Ids that this process knows of: committed, and not yet deleted."""

    async def add(self, conn: AsyncConnection, envelopes: Sequence[Envelope]) -> None:
        """Leave these messages, if the transaction commits."""
        if not envelopes:
            return
        now = self._clock.now_ms()
        rows = [{"message_id": each.id, "at_ms": now, "envelope": each.to_json().decode()} for each in envelopes]
        await self._insert.later(conn, rows)
        after_commit(conn, lambda: self._hand_over(envelopes))

    def _hand_over(self, envelopes: Sequence[Envelope]) -> None:
        self.held.update(each.id for each in envelopes)
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
    """Publishes the outbox, for ever.

    Args:
        db: The service's database.
        tables: The kernel's tables in it.
        bus: Where messages go.
        clock: For waiting, and for the age of rows.
        outbox: Where this process leaves its messages.
        orphan_s: When a row that nobody publishes is taken over.
    """

    def __init__(
        self,
        db: Database,
        tables: KernelTables,
        bus: Bus,
        clock: Clock,
        outbox: Outbox,
        *,
        orphan_s: float = ORPHAN_S,
    ) -> None:
        self._db = db
        self._table = tables.outbox
        self._forget = Many(delete(tables.outbox).where(tables.outbox.c.message_id == bindparam("sent_id")))
        self._bus = bus
        self._clock = clock
        self._outbox = outbox
        self._orphan_s = orphan_s
        self._deleting: asyncio.Task[None] | None = None
        self._sent: list[str] = []
        self._in_flight: Sequence[Envelope] = ()
        """Taken from memory, not known to be published: what a fault of `run` must not lose."""

    async def run(self) -> None:
        """First what an earlier process left, then what commits; from time to time what a replica left."""
        if self._in_flight:
            await self._publish(self._in_flight)
        if self._db.sole_process:
            await self._publish_orphans(older_than_s=0)
        every_ms = int(self._orphan_s * 1000 / 3)
        look_at_ms = self._clock.now_ms() + every_ms
        try:
            while True:
                batch = await self._outbox.take(timeout_s=self._orphan_s / 3)
                if batch:
                    await self._publish(batch, linger_s=LINGER_S)
                elif self._sent:
                    self._forget_soon(linger_s=LINGER_S)  # the database did not do it the last time
                now_ms = self._clock.now_ms()
                if not self._db.sole_process and is_due(now_ms, look_at_ms, every_ms):
                    look_at_ms = now_ms + every_ms
                    await self._take_orphans_over()
        finally:
            if self._deleting:
                self._deleting.cancel()

    async def backlog(self) -> int:
        """Messages that are not known to be published."""
        return await self._db.read(self._count)

    async def _count(self, conn: AsyncConnection) -> int:
        return int((await conn.execute(select(func.count()).select_from(self._table))).scalar_one())

    async def settle(self) -> None:
        """After `run` has ended, forget what was sent: the next start would send it again."""
        await self._delete_sent(linger_s=0)

    async def _publish(self, batch: Sequence[Envelope], *, linger_s: float = 0) -> None:
        """Until it is durable; waits longer each time, at most 5 s."""
        wait_s = 0.05
        self._in_flight = batch
        crash.point("outbox.before_publish", batch)
        while True:
            try:
                await self._bus.publish(batch)
                break
            except RetryableError as error:
                log.warning("publish failed, trying again", error=error.message, messages=len(batch), wait_s=wait_s)
                await self._clock.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
        crash.point("outbox.after_publish", batch)
        self._in_flight = ()
        self._sent.extend(each.id for each in batch)
        self._forget_soon(linger_s=linger_s)

    def _forget_soon(self, *, linger_s: float) -> None:
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.create_task(self._delete_sent(linger_s=linger_s), name="outbox-delete")

    async def _delete_sent(self, *, linger_s: float) -> None:
        """Off the path of the messages: a crash before it only means that they are published again."""
        while self._sent:
            if linger_s:
                await self._clock.sleep(linger_s)
            sent = tuple(self._sent)

            async def forget(conn: AsyncConnection, sent: Sequence[str] = sent) -> None:
                await self._forget_rows(conn, sent)

            try:
                await self._db.write(forget)
            except RetryableError as error:
                log.warning("the outbox keeps sent messages for now", error=error.message)
                return
            del self._sent[: len(sent)]
            self._outbox.held.difference_update(sent)

    async def _forget_rows(self, conn: AsyncConnection, sent: Sequence[str]) -> None:
        if conn.dialect.name == "sqlite":
            await self._forget.later(conn, [{"sent_id": each} for each in sent])
        else:
            await conn.execute(self._table.delete().where(self._table.c.message_id.in_(sent)))

    async def _take_orphans_over(self) -> None:
        try:
            await self._publish_orphans(older_than_s=self._orphan_s)
        except RetryableError as error:
            log.warning("cannot look for messages of others", error=error.message)

    async def _publish_orphans(self, older_than_s: float) -> None:
        """Those of that age which this process does not hold in memory."""
        while batch := await self._db.write(lambda conn: self._adopt(conn, older_than_s)):
            log.info("publishing what another process left", messages=len(batch))
            await self._publish(batch)
            if self._deleting:
                await self._deleting

    async def _adopt(self, conn: AsyncConnection, older_than_s: float) -> list[Envelope]:
        """Locked while they are read: what another replica adopts in this moment is skipped.

        A row from the future was written before a clock was put back: nobody can say how old it is.
        """
        now_ms, age_ms = self._clock.now_ms(), int(older_than_s * 1000)
        rows = self._table.c
        query = select(rows.seq, rows.envelope)
        query = query.where(or_(rows.at_ms <= now_ms - age_ms, rows.at_ms > now_ms + age_ms))
        if self._outbox.held:
            query = query.where(rows.message_id.not_in(self._outbox.held))
        query = query.order_by(rows.seq).limit(BATCH)
        if conn.dialect.name != "sqlite":
            query = query.with_for_update(skip_locked=True)
        found = (await conn.execute(query)).all()
        if found and older_than_s:
            mine = rows.seq.in_([row.seq for row in found])
            await conn.execute(update(self._table).where(mine).values(at_ms=now_ms))
        return [Envelope.from_json(row.envelope) for row in found]
