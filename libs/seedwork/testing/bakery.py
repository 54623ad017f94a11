"""A participant to try the kernel with: it bakes bread, and takes it back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.in_process import InProcessBus
from seedwork.clock import SystemClock
from seedwork.messages import Command, Envelope, Event, FailureEvent, UndoFailed, UndoneEvent, envelope
from seedwork.outbox import Outbox, Relay
from seedwork.participant import Participant, Timing, Work
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database


class Bake(Command):
    """Bake one bread."""

    bread: str = "rye"


class Baked(Event):
    """It is baked."""

    bread: str


class BakeFailed(FailureEvent):
    """It is not."""


class Unbake(Command):
    """Take it back."""


class Unbaked(UndoneEvent):
    """Nothing is left of it."""


class Sold(Event):
    """An event that the bakery hears."""

    bread: str = "rye"


COMMANDS = (Bake, Unbake)
ANSWERS = (Baked, BakeFailed, Unbaked, UndoFailed)


@dataclass
class Bakery:
    """A participant with one step, and everything that it answers; two on one database are replicas."""

    db: Database
    tables: KernelTables
    bus: InProcessBus = field(default_factory=InProcessBus)
    answers: "asyncio.Queue[Envelope]" = field(default_factory=asyncio.Queue)
    bakes: int = 0
    unbakes: int = 0
    at_once: int = 0
    most_at_once: int = 0
    body: Callable[..., Any] | None = None
    undo_body: Callable[..., Any] | None = None
    heard: list[str] = field(default_factory=list)

    async def bake(self, command: Bake, *, work: Work) -> Event:
        """The handler: `body(work)` is what a test wants of it."""
        self.bakes += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.body:
                await self.body(work)
        finally:
            self.at_once -= 1
        return Baked(bread=command.bread)

    async def unbake(self, _command: Unbake, *, work: Work) -> Unbaked:
        """The undo's handler."""
        self.unbakes += 1
        if self.undo_body:
            await self.undo_body(work)
        return Unbaked(found=("a loaf",), done=("eaten",))

    async def sold(self, event: Sold, _envelope: Envelope, _conn: AsyncConnection) -> None:
        """The event's handler."""
        if event.bread == "poison":
            raise ValueError("this bread cannot be sold")
        self.heard.append(event.bread)

    @asynccontextmanager
    async def open(
        self, *, slots: int = 4, limit_s: float | None = None, lease_s: float = 30.0
    ) -> AsyncIterator["Bakery"]:
        """Work until the block is left."""
        clock = SystemClock()
        outbox = Outbox(self.tables, clock)
        participant = Participant(
            "bakery", db=self.db, tables=self.tables, bus=self.bus, clock=clock, outbox=outbox,
            timing=Timing.of_lease(lease_s),
        )  # fmt: skip
        self.participant = participant
        participant.step(
            Bake, self.bake, ok=Baked, failed=BakeFailed, undo=Unbake, undo_handler=self.unbake, undone=Unbaked,
            slots=slots, limit_s=limit_s,
        )  # fmt: skip
        participant.on(Sold, self.sold)
        await participant.subscribe()
        await self.bus.subscribe("test", ANSWERS, self._collect)
        await self.bus.open()
        relay = Relay(self.db, self.tables, self.bus, clock, outbox, orphan_s=1)
        tasks = [asyncio.create_task(participant.run()), asyncio.create_task(relay.run())]
        try:
            yield self
        finally:
            await participant.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _collect(self, envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            self.answers.put_nowait(each)

    async def answer(self) -> Envelope:
        """The next answer."""
        async with asyncio.timeout(30):
            return await self.answers.get()

    async def send(
        self, command: Command | Event, saga: str, *, attempt: int = 1, message_id: str | None = None
    ) -> None:
        """As the coordinator does."""
        await self.bus.publish(
            [
                envelope(
                    command, source="test", saga_id=saga, app_id="app", step="bake", attempt=attempt, fence=3,
                    message_id=message_id,
                )
            ]
        )  # fmt: skip
