"""The contract suite of the `Bus` port: what passes it can carry sagas.

An adapter's test class inherits `BusContract` and gives a `place` where processes meet. A process publishes as the
outbox relay does (again, until it is durable) and may get everything twice; what arrives once is the inbox's work, so
the suite brings one along where it matters.
"""
# ruff: noqa: S101 - these are tests, kept where every adapter's tests find them

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import MetaData

from seedwork.bus import Bus, Handle
from seedwork.errors import RetryableError
from seedwork.inbox import take_new
from seedwork.messages import Command, Envelope, Event, envelope, new_id
from seedwork.tables import kernel_tables
from seedwork.unit_of_work import Database, database_now_ms

SOON_S = 60.0
"""How long to wait for what must come: only a hanging test gets there."""


class Brew(Command):
    """A message with a field of every kind that messages have."""

    beer: str
    litres: int = 20
    strength: float = 4.7
    cold: bool = True
    note: str | None = None
    malts: tuple[str, ...] = ()
    hops: Mapping[str, int] = {}


class Brewed(Event):
    """Its answer."""

    beer: str


class Drunk(Event):
    """What nobody asked for."""

    beer: str


TYPES = (Brew, Brewed, Drunk)
SUBSCRIPTIONS = {"brewery": (Brew,), "pub": (Brewed, Drunk), "archive": (Brew, Brewed)}


class Place(Protocol):
    """Where the processes of a test meet: each has a bus of its own, or all share one."""

    async def bus(self) -> Bus:
        """The bus of a new process; topics and the SUBSCRIPTIONS exist."""

    async def kill(self, bus: Bus) -> None:
        """End that process without acknowledging anything that it has."""


class Collected:
    """A subscriber that remembers what it got, in its order."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.batches: list[int] = []
        self._changed = asyncio.Condition()

    async def handle(self, envelopes: Sequence[Envelope]) -> None:
        """As a `Handle`."""
        self.batches.append(len(envelopes))
        self.envelopes += envelopes
        async with self._changed:
            self._changed.notify_all()

    @property
    def ids(self) -> set[str]:
        """What came, each once."""
        return {each.id for each in self.envelopes}

    async def until(self, wanted: set[str]) -> None:
        """Wait until all of these have come."""
        async with asyncio.timeout(SOON_S), self._changed:
            await self._changed.wait_for(lambda: wanted <= self.ids)

    async def until_some(self) -> None:
        """Wait until the first batch has come: how many make one is the bus's affair."""
        async with asyncio.timeout(SOON_S), self._changed:
            await self._changed.wait_for(lambda: bool(self.envelopes))


def brew(beer: str = "stout", *, saga: str | None = None, **fields: Any) -> Envelope:
    """A command in its envelope."""
    return envelope(
        Brew(beer=beer, **fields), source="test", saga_id=saga or new_id(), app_id="app", step="brew", attempt=1
    )


async def publish(bus: Bus, envelopes: Sequence[Envelope]) -> None:
    """As the relay does: again, until it is durable."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await bus.publish(envelopes)
            except RetryableError:
                await asyncio.sleep(0.01)
            else:
                return


class BusContract:
    """Inherited by the tests of every adapter."""

    @pytest.fixture
    async def place(self) -> Place:
        """Overridden by each adapter's tests."""
        raise NotImplementedError

    async def test_an_envelope_arrives_as_it_was_sent(self, place: Place) -> None:
        """Every attribute and every kind of field, text of all scripts, null and empty among them."""
        bus, got = await place.bus(), Collected()
        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
        await bus.open()
        full = envelope(
            Brew(beer="Öl 🍺", litres=-3, strength=0.5, cold=False, note="", malts=("a", "b"), hops={"saaz": 7}),
            source="coordinator",
            saga_id=new_id(),
            app_id=new_id(),
            team="brewers",
            app="brauhaus-köln",
            causation_id=new_id(),
            step="brew",
            attempt=3,
            fence=9,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        bare = envelope(Brew(beer=""), source="test", saga_id=new_id(), app_id="")
        await publish(bus, [full, bare])
        await got.until({full.id, bare.id})
        assert {each.id: each.to_dict() for each in got.envelopes} == {
            full.id: full.to_dict(),
            bare.id: bare.to_dict(),
        }
        await bus.close()

    async def test_each_subscription_gets_its_types_and_no_other(self, place: Place) -> None:
        """Two services hear the same command; the third hears of other things only."""
        bus = await place.bus()
        got = {name: Collected() for name in SUBSCRIPTIONS}
        for name, types in SUBSCRIPTIONS.items():
            await bus.subscribe(name, types, got[name].handle)
        await bus.open()
        command = brew()
        event = envelope(Brewed(beer="stout"), source="test", saga_id=command.correlationid, app_id="app")
        await publish(bus, [command, event])
        await got["brewery"].until({command.id})
        await got["pub"].until({event.id})
        await got["archive"].until({command.id, event.id})
        assert got["brewery"].ids == {command.id}
        assert got["pub"].ids == {event.id}
        await bus.close()

    async def test_nothing_is_lost_before_the_bus_is_open(self, place: Place) -> None:
        """What is published early waits for the subscribers."""
        bus, got = await place.bus(), Collected()
        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
        command = brew()
        publishing = asyncio.create_task(publish(bus, [command]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert got.ids == set()
        await bus.open()
        await got.until({command.id})
        await publishing
        await bus.close()

    async def test_many_at_once_arrive_in_batches_and_in_the_order_of_each_saga(self, place: Place) -> None:
        """Two thousand messages of forty sagas, published side by side saga by saga."""
        bus, got = await place.bus(), Collected()
        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
        await bus.open()
        sagas = {saga: [brew(str(n), saga=saga) for n in range(50)] for saga in (new_id() for _ in range(40))}

        async def tell(envelopes: Sequence[Envelope]) -> None:
            for start in range(0, len(envelopes), 10):
                await publish(bus, envelopes[start : start + 10])

        await asyncio.gather(*(tell(each) for each in sagas.values()))
        await got.until({each.id for envelopes in sagas.values() for each in envelopes})
        for saga, envelopes in sagas.items():
            came = [each.id for each in got.envelopes if each.correlationid == saga]
            assert list(dict.fromkeys(came)) == [each.id for each in envelopes]
        assert max(got.batches) <= 256
        await bus.close()

    async def test_what_a_handle_did_not_take_comes_again(self, place: Place) -> None:
        """Raising acknowledges nothing; the messages come until `handle` returns."""
        bus, got = await place.bus(), Collected()
        refusals = [3]

        async def sometimes(envelopes: Sequence[Envelope]) -> None:
            if refusals[0]:
                refusals[0] -= 1
                raise RetryableError("The cellar is flooded")
            await got.handle(envelopes)

        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], sometimes)
        await bus.open()
        commands = [brew() for _ in range(5)]
        await publish(bus, commands)
        await got.until({each.id for each in commands})
        assert refusals == [0]
        await bus.close()

    async def test_a_subscriber_that_cannot_does_not_keep_another_from_its_messages(self, place: Place) -> None:
        """One service's database is away; the others hear everything."""
        bus, got = await place.bus(), Collected()
        asked = asyncio.Event()

        async def never(_envelopes: Sequence[Envelope]) -> None:
            asked.set()
            raise RetryableError("The cellar is flooded")

        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], never)
        await bus.subscribe("archive", SUBSCRIPTIONS["archive"], got.handle)
        await bus.open()
        command = brew()
        publishing = asyncio.create_task(publish(bus, [command]))
        await got.until({command.id})
        async with asyncio.timeout(SOON_S):
            await asked.wait()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await bus.close()

    async def test_a_slow_subscriber_gets_everything(self, place: Place) -> None:
        """It takes one batch at a time, and what waits for it is not lost."""
        bus, got = await place.bus(), Collected()
        at_work = [0]

        async def slowly(envelopes: Sequence[Envelope]) -> None:
            at_work[0] += 1
            await asyncio.sleep(0.01)
            await got.handle(envelopes)
            at_work[0] -= 1

        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], slowly)
        await bus.open()
        commands = [brew() for _ in range(600)]
        for start in range(0, len(commands), 50):
            await publish(bus, commands[start : start + 50])
        await got.until({each.id for each in commands})
        await bus.close()

    async def test_a_handle_that_runs_is_waited_for_when_the_bus_is_closed(self, place: Place) -> None:
        """What it has taken it may finish."""
        bus, began, go, done = await place.bus(), asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work(_envelopes: Sequence[Envelope]) -> None:
            began.set()
            await go.wait()
            done.set()

        await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], work)
        await bus.open()
        publishing = asyncio.create_task(publish(bus, [brew()]))
        async with asyncio.timeout(SOON_S):
            await began.wait()
        closing = asyncio.create_task(bus.close())
        for _ in range(100):
            await asyncio.sleep(0)
        go.set()
        await asyncio.gather(closing, publishing)
        assert done.is_set()

    async def test_a_crash_between_commit_and_acknowledgement_repeats_the_message_and_not_its_effect(
        self, place: Place, tmp_path: Path
    ) -> None:
        """The inbox row is on disk, the process dies: the message comes again, and the inbox knows it."""
        metadata = MetaData()
        tables = kernel_tables(metadata)
        db = Database(f"sqlite+aiosqlite:///{tmp_path}/inbox.db")
        await db.open()
        async with db.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        effects: list[str] = []
        deliveries, again = Collected(), Collected()

        def commits(seen: Collected, then: Callable[[], Awaitable[None]]) -> Handle:
            async def handle(envelopes: Sequence[Envelope]) -> None:
                async def work(conn: Any) -> list[Envelope]:
                    return await take_new(conn, tables, envelopes, await database_now_ms(conn))

                effects.extend(each.id for each in await db.write(work))
                await seen.handle(envelopes)
                await then()

            return handle

        async def dies() -> None:
            raise RetryableError("kill -9")  # nothing after the commit runs, and nothing is acknowledged

        async def lives() -> None:
            return None

        commands = {each.id: each for each in (brew() for _ in range(20))}
        first = await place.bus()
        await first.subscribe("brewery", SUBSCRIPTIONS["brewery"], commits(deliveries, dies))
        await first.open()
        publishing = asyncio.create_task(publish(first, list(commands.values())))
        await deliveries.until_some()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await place.kill(first)

        second = await place.bus()
        await second.subscribe("brewery", SUBSCRIPTIONS["brewery"], commits(again, lives))
        await second.open()
        await publish(second, list(commands.values()))  # as the outbox of the sender does, which may have died as well
        await again.until(set(commands))
        assert sorted(effects) == sorted(commands)
        await second.close()
        await db.close()
