"""Pulsar is killed under traffic and away for longer than a message waits to be confirmed: nothing is lost."""

import asyncio
from collections.abc import Sequence

import pytest

from seedwork.adapters.pulsar import PulsarBus
from seedwork.adapters.pulsar_admin import Plan, set_up
from seedwork.adapters.pulsar_client import SEND_S
from seedwork.errors import RetryableError
from seedwork.messages import Envelope
from seedwork.testing.bus_contract import SUBSCRIPTIONS, TYPES, Collected, brew
from seedwork.testing.servers import answers, healthy, own_pulsar

pytestmark = pytest.mark.stack("PULSAR_URL", "DOCKER_HOST")

BOUND_S = 240.0


class Sender:
    """An outbox relay: everything is published again until it is durable."""

    def __init__(self, bus: PulsarBus) -> None:
        self._bus = bus
        self.published: list[str] = []
        self.refusals = 0

    async def run(self, done: asyncio.Event) -> None:
        while not done.is_set():
            batch: Sequence[Envelope] = [brew() for _ in range(5)]
            while True:
                try:
                    await self._bus.publish(batch)
                except RetryableError:
                    self.refusals += 1
                    await asyncio.sleep(0.1)
                else:
                    break
            self.published += [each.id for each in batch]
            await asyncio.sleep(0.02)

    async def more(self, count: int) -> None:
        """Wait until so many more are published."""
        wanted = len(self.published) + count
        async with asyncio.timeout(BOUND_S):
            while len(self.published) < wanted:  # noqa: ASYNC110  another process has its part in it
                await asyncio.sleep(0.05)


async def test_a_broker_that_is_killed_and_then_away_for_a_while_loses_nothing() -> None:
    """Kill -9 and start; kill -9, forty seconds of nothing, and start. Senders and subscribers go on by themselves."""
    async with own_pulsar() as (server, address):
        await set_up(address, Plan(types=TYPES, subscriptions=SUBSCRIPTIONS))
        got = {name: Collected() for name in ("brewery", "archive")}
        bus, other = PulsarBus(address, types=lambda: TYPES), PulsarBus(address, types=lambda: TYPES)
        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got["brewery"].handle)
        await other.subscribe("archive", SUBSCRIPTIONS["archive"], got["archive"].handle)
        await bus.open()
        await other.open()
        senders, done = [Sender(bus), Sender(other)], asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for each in senders:
                group.create_task(each.run(done))
            for away_s in (0, SEND_S + 10):
                await asyncio.gather(*(each.more(50) for each in senders))
                await server.kill()
                await asyncio.sleep(away_s)  # the time that the broker is away is the case
                await server.restart()
                await answers(lambda: healthy(address))
                await asyncio.gather(*(each.more(50) for each in senders))
            done.set()
        published = {message_id for each in senders for message_id in each.published}
        for subscriber in got.values():
            async with asyncio.timeout(BOUND_S):
                await subscriber.until(published)
        assert sum(each.refusals for each in senders) > 0
        await bus.close()
        await other.close()
