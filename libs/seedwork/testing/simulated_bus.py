"""A broker for a simulation: at least once, in any order, late, twice, and sometimes without an answer.

What was published stays until a subscription has acknowledged it. A message that is handed to a process which dies, is
paused or raises comes again, to whichever replica is there. Publishing can fail before or after the messages are kept;
the publisher is told the same.
"""

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field

from seedwork.bus import Handle
from seedwork.errors import Unavailable
from seedwork.messages import Envelope, Message
from seedwork.testing.simulated_loop import Process, SimulatedLoop

_LATENCY_S = 0.005
_LATE_S = 20.0
"""How late a message is that is late."""
_ACK_TIMEOUT_S = 60.0
"""What is not acknowledged by then is given to somebody else."""
_AGAIN_S = 1.0
"""After how long a message comes again that nobody could take."""
_BATCH = 64
_AT_ONCE = 2
"""Batches that one replica has in hand."""


@dataclass(slots=True)
class BusFaults:
    """How often things go wrong, from 0 to 1."""

    refused: float = 0.0
    """A publish fails, and nothing was kept."""
    unheard: float = 0.0
    """A publish fails, and everything was kept."""
    twice: float = 0.0
    """A message is delivered twice."""
    late: float = 0.0
    """A message comes seconds after others that were sent later."""
    unacknowledged: float = 0.0
    """A batch was handled, and the acknowledgement gets lost."""


@dataclass(eq=False, slots=True)
class _Member:
    process: Process
    handle: Handle
    in_hand: int = 0


@dataclass(eq=False, slots=True)
class _Batch:
    member: _Member
    envelopes: Sequence[Envelope]
    open: bool = True


@dataclass(slots=True)
class _Subscription:
    types: frozenset[str]
    waiting: list[Envelope] = field(default_factory=list)
    members: list[_Member] = field(default_factory=list)
    batches: list[_Batch] = field(default_factory=list)
    looking: bool = False


class SimulatedBroker:
    """What stands between the processes, and survives them."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.faults = BusFaults()
        self.counted: dict[str, int] = {}
        """Faults by kind."""
        self.refuses = False
        """An outage: nothing is taken."""
        self._loop = loop
        self._context = contextvars.copy_context()
        self._subscriptions: dict[str, _Subscription] = {}

    def client(self, process: Process) -> "SimulatedBus":
        """The bus as that process sees it."""
        return SimulatedBus(self, process)

    @property
    def idle(self) -> bool:
        """Whether every message has been acknowledged."""
        return not any(each.waiting or each.batches for each in self._subscriptions.values())

    def undelivered(self) -> list[str]:
        """The types of messages that wait, for reports."""
        return [envelope.type for each in self._subscriptions.values() for envelope in each.waiting]

    def happens(self, kind: str, rate: float) -> bool:
        """Whether a fault happens now; counted."""
        if rate and self._loop.chance.random() < rate:
            self.counted[kind] = self.counted.get(kind, 0) + 1
            return True
        return False

    def declare(self, name: str, types: Sequence[type[Message]]) -> None:
        """Subscriptions exist before anything is published to them."""
        self._subscriptions.setdefault(name, _Subscription(frozenset(each.__name__ for each in types)))

    def join(self, name: str, process: Process, handle: Handle) -> None:
        """A replica takes messages from now on."""
        subscription = self._subscriptions[name]
        member = _Member(process, handle)
        subscription.members.append(member)
        process.on_death.append(lambda: self._left(subscription, member))
        self._look(subscription)

    def keep(self, envelopes: Sequence[Envelope]) -> None:
        """Durable from now on; delivered each in its own time."""
        for envelope in envelopes:
            for subscription in self._subscriptions.values():
                if envelope.type in subscription.types:
                    self._arrive_later(subscription, envelope)
                    if self.happens("delivered twice", self.faults.twice):
                        self._arrive_later(subscription, envelope)

    def _arrive_later(self, subscription: _Subscription, envelope: Envelope) -> None:
        late = self.happens("delivered late", self.faults.late)
        delay_s = self._loop.chance.random() * (_LATE_S if late else _LATENCY_S)
        self._again(subscription, [envelope], delay_s)

    def _again(self, subscription: _Subscription, envelopes: Sequence[Envelope], delay_s: float) -> None:
        self._loop.call_later(delay_s, self._arrived, subscription, envelopes, context=self._context)

    def _arrived(self, subscription: _Subscription, envelopes: Sequence[Envelope]) -> None:
        subscription.waiting += envelopes
        self._look(subscription)

    def _look(self, subscription: _Subscription) -> None:
        """Soon: so that messages which arrive together are delivered together."""
        if not subscription.looking:
            subscription.looking = True
            self._loop.call_later(0.0002, self._deliver, subscription, context=self._context)

    def _deliver(self, subscription: _Subscription) -> None:
        subscription.looking = False
        while subscription.waiting:
            free = [each for each in subscription.members if each.in_hand < _AT_ONCE and not each.process.paused]
            if not free:
                return
            member = free[int(self._loop.chance.random() * len(free))]
            batch = _Batch(member, subscription.waiting[:_BATCH])
            del subscription.waiting[:_BATCH]
            member.in_hand += 1
            subscription.batches.append(batch)
            member.process.spawn(self._handled(subscription, batch))
            self._loop.call_later(_ACK_TIMEOUT_S, self._unanswered, subscription, batch, context=self._context)

    async def _handled(self, subscription: _Subscription, batch: _Batch) -> None:
        """In the replica's process."""
        try:
            await batch.member.handle(batch.envelopes)
        except Exception:  # noqa: BLE001  whatever it is, the broker only knows that it was not acknowledged
            self._closed(subscription, batch, again=True)
            self.counted["handling failed"] = self.counted.get("handling failed", 0) + 1
        else:
            lost = self.happens("acknowledgement lost", self.faults.unacknowledged)
            self._closed(subscription, batch, again=lost)

    def _closed(self, subscription: _Subscription, batch: _Batch, *, again: bool) -> None:
        if batch.open:
            batch.open = False
            subscription.batches.remove(batch)
            if again:
                self._again(subscription, batch.envelopes, _AGAIN_S)
        batch.member.in_hand -= 1
        self._look(subscription)

    def _unanswered(self, subscription: _Subscription, batch: _Batch) -> None:
        if batch.open:
            batch.open = False
            subscription.batches.remove(batch)
            self._arrived(subscription, batch.envelopes)

    def _left(self, subscription: _Subscription, member: _Member) -> None:
        subscription.members.remove(member)
        for batch in [each for each in subscription.batches if each.member is member]:
            batch.open = False
            subscription.batches.remove(batch)
            self._again(subscription, batch.envelopes, _AGAIN_S)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """See `Bus.publish`."""
        await _pass(self._loop, _LATENCY_S)
        if self.refuses or self.happens("publish refused", self.faults.refused):
            raise Unavailable("The broker does not answer", why="the simulation wants it so")
        self.keep(envelopes)
        if self.happens("publish unheard", self.faults.unheard):
            raise Unavailable("The broker does not answer", why="the simulation wants it so")
        await _pass(self._loop, _LATENCY_S)


class SimulatedBus:
    """A `Bus`."""

    def __init__(self, broker: SimulatedBroker, process: Process) -> None:
        self._broker = broker
        self._process = process
        self._mine: list[tuple[str, Handle]] = []

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """See `Bus.publish`."""
        await self._broker.publish(envelopes)

    async def subscribe(self, name: str, types: Sequence[type[Message]], handle: Handle) -> None:
        """See `Bus.subscribe`."""
        self._broker.declare(name, types)
        self._mine.append((name, handle))

    async def open(self) -> None:
        """See `Bus.open`."""
        for name, handle in self._mine:
            self._broker.join(name, self._process, handle)

    async def close(self) -> None:
        """Nothing is kept open."""


async def _pass(loop: SimulatedLoop, longest_s: float) -> None:
    await asyncio.sleep(loop.chance.random() * longest_s)
