"""Apache Pulsar keeps the contract of the port, and what only a broker between processes can promise."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest
from msgspec import structs
from pydantic import create_model

from seedwork.adapters import pulsar_admin
from seedwork.adapters.avro import Codec, schema_of, unreadable
from seedwork.adapters.pulsar import PulsarBus, properties_of
from seedwork.adapters.pulsar_admin import Letter, Letters, Plan, set_up
from seedwork.adapters.pulsar_client import NotSetUp, Outgoing, PulsarAddress, PulsarClient, SchemaRefused
from seedwork.bus import Bus
from seedwork.errors import Conflict, NotFound, RetryableError, Unavailable
from seedwork.messages import Envelope, envelope, new_id
from seedwork.testing.bus_contract import (
    SOON_S,
    SUBSCRIPTIONS,
    TYPES,
    Brew,
    Brewed,
    BusContract,
    Collected,
    Place,
    brew,
    publish,
)
from seedwork.testing.servers import pulsar_namespace
from tests.stack.faulty_proxy import Fault, faulty_proxy

pytestmark = pytest.mark.stack("PULSAR_URL", "PULSAR_ADMIN_URL")


class Broker:
    """A namespace of the test's own; each bus is a process of its own for the broker."""

    def __init__(self, address: PulsarAddress) -> None:
        self.address = address
        self._made: list[PulsarBus] = []

    async def bus(self) -> PulsarBus:
        self._made.append(PulsarBus(self.address, types=lambda: TYPES))
        return self._made[-1]

    async def kill(self, bus: Bus) -> None:
        """What was not acknowledged goes to somebody else as soon as the broker notices."""
        await bus.close()

    async def close(self) -> None:
        for each in self._made:
            await each.close()


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with pulsar_namespace() as address:
        await set_up(address, Plan(types=TYPES, subscriptions=SUBSCRIPTIONS))
        broker = Broker(address)
        yield broker
        await broker.close()


class TestPulsarBus(BusContract):
    @pytest.fixture
    async def place(self, broker: Broker) -> Place:
        return broker


async def two_replicas(broker: Broker, subscription: str) -> list[Collected]:
    """What each of them gets from now on."""
    got = [Collected(), Collected()]
    for each in got:
        bus = await broker.bus()
        await bus.subscribe(subscription, SUBSCRIPTIONS[subscription], each.handle)
        await bus.open()
    return got


async def assert_kept_together(got: Sequence[Collected], sagas: Mapping[str, Sequence[Envelope]]) -> None:
    """All messages come; those of a saga to one replica, in order."""
    wanted = {each.id for envelopes in sagas.values() for each in envelopes}
    await until(lambda: got[0].ids | got[1].ids == wanted)
    for saga, envelopes in sagas.items():
        shares = [[each.id for each in share.envelopes if each.correlationid == saga] for share in got]
        assert [each.id for each in envelopes] in shares


async def test_replicas_share_a_subscription_and_keep_each_saga_together(broker: Broker) -> None:
    """Two replicas, forty sagas: each message comes to one of them, each saga's messages to the same one, in order."""
    got = await two_replicas(broker, "brewery")
    sender = await broker.bus()
    sagas = {saga: [brew(str(n), saga=saga) for n in range(5)] for saga in (new_id() for _ in range(40))}
    for n in range(5):
        await publish(sender, [envelopes[n] for envelopes in sagas.values()])
    await assert_kept_together(got, sagas)
    assert got[0].ids.isdisjoint(got[1].ids)
    assert all(each.ids for each in got)


async def test_a_saga_stays_together_whether_its_messages_go_alone_or_with_many(broker: Broker) -> None:
    """They leave by two producers, one of which batches; the same replica gets them, in order."""
    got = await two_replicas(broker, "brewery")
    sender = await broker.bus()
    sagas = {saga: [brew(str(n), saga=saga) for n in range(4)] for saga in (new_id() for _ in range(40))}
    for n in range(4):
        together = 40 if n % 2 else 1
        column = [envelopes[n] for envelopes in sagas.values()]
        for start in range(0, 40, together):
            await publish(sender, column[start : start + together])
    await assert_kept_together(got, sagas)


async def test_a_replica_gets_all_types_of_messages_of_its_sagas(broker: Broker) -> None:
    """Each type is a topic of its own; what a coordinator remembers of a saga is of use for its next answer only so."""
    got = await two_replicas(broker, "archive")
    sender = await broker.bus()
    sagas = [new_id() for _ in range(60)]
    commands = [brew(saga=saga) for saga in sagas]
    answers = [envelope(Brewed(beer="ale"), source="test", saga_id=saga, app_id="app") for saga in sagas]
    await publish(sender, [*commands, *answers])
    await until(lambda: len(got[0].ids | got[1].ids) == 120)
    of_each = [{each.correlationid for each in share.envelopes} for share in got]
    assert all(of_each)
    assert of_each[0].isdisjoint(of_each[1])


async def test_many_messages_at_once_are_stored_together(broker: Broker) -> None:
    """At most an entry for each group of sagas; a few messages are an entry each, and wait for nobody."""
    sender = await broker.bus()
    await publish(sender, [brew() for _ in range(3)])
    assert await entries(broker.address, "Brew") == 3
    await publish(sender, [brew() for _ in range(200)])
    assert 3 < await entries(broker.address, "Brew") < 3 + 200 / 2


async def entries(address: PulsarAddress, topic: str) -> int:
    """What the broker has stored, by its own count."""
    path = f"/admin/v2/persistent/{address.tenant}/{address.namespace}/{topic}-partition-0/internalStats"
    async with httpx2.AsyncClient(base_url=address.admin_url, timeout=20, trust_env=False) as http:
        return int((await http.get(path)).raise_for_status().json()["entriesAddedCounter"])


async def test_what_a_replica_had_when_it_left_comes_to_another(broker: Broker) -> None:
    """It had taken messages and acknowledged none."""
    took, got = Collected(), Collected()

    async def takes(envelopes: Sequence[Envelope]) -> None:
        await took.handle(envelopes)
        raise RetryableError("kill -9")

    first = await broker.bus()
    await first.subscribe("brewery", SUBSCRIPTIONS["brewery"], takes)
    await first.open()
    commands = [brew() for _ in range(30)]
    await publish(first, commands)
    await until(lambda: bool(took.ids))
    second = await broker.bus()
    await second.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
    await second.open()
    await broker.kill(first)
    await got.until({each.id for each in commands})


async def test_the_envelope_travels_as_properties_and_the_payload_as_avro(broker: Broker) -> None:
    """So that Pulsar's own tools show what a message is about, and a trace goes on in any language."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = structs.replace(brew("porter"), traceparent=traceparent)
    await publish(await broker.bus(), [sent])
    client = PulsarClient(broker.address)
    receiver = await client.receiver("Brew", "archive", None)
    [message] = await receiver.receive(1)
    assert message.properties["ce_id"] == sent.id
    assert message.properties["ce_type"] == "Brew"
    assert message.properties["ce_correlationid"] == message.key == sent.correlationid
    assert message.properties["traceparent"] == traceparent
    assert Codec(schema_of(Brew)).decode(message.payload)["beer"] == "porter"
    assert unreadable(await client.schema("Brew", message.schema_version), schema_of(Brew)) == []
    await receiver.close()
    await client.close()


async def test_releases_beside_each_other_read_each_others_messages(broker: Broker) -> None:
    """A newer release has added a field with a default: it reads what the older one wrote, and the other way round."""
    newer_brew = create_model("Brew", __base__=Brew, bottles=(int, 12))
    older, newer = await broker.bus(), PulsarBus(broker.address, types=lambda: (newer_brew,))
    by_old, by_new = Collected(), Collected()
    await older.subscribe("brewery", [Brew], by_old.handle)
    await older.open()
    await newer.subscribe("archive", [newer_brew], by_new.handle)
    await newer.open()
    before, after = brew("old"), brew("new")
    after = structs.replace(after, data={**after.data, "bottles": 6})
    await publish(older, [before])
    await publish(newer, [after])
    for got in (by_old, by_new):
        await got.until({before.id, after.id})
    read_by_old = {each.id: Brew.model_validate(each.data) for each in by_old.envelopes}
    read_by_new = {each.id: newer_brew.model_validate(each.data).model_dump() for each in by_new.envelopes}
    assert read_by_old[after.id].beer == "new"
    assert (read_by_new[before.id]["bottles"], read_by_new[after.id]["bottles"]) == (12, 6)
    await newer.close()


async def test_a_type_that_changed_incompatibly_is_refused_at_the_start(broker: Broker) -> None:
    """A field without a default was added: neither sender nor subscriber may start, and the text says what to do."""
    changed = create_model("Brew", __base__=Brew, yeast=(str, ...))
    bus = PulsarBus(broker.address, types=lambda: (changed,))
    with pytest.raises(SchemaRefused, match="gain or lose fields that have a default"):
        await bus.open()
    with pytest.raises(SchemaRefused, match="brewery cannot take messages from Brew"):
        await bus.subscribe("brewery", [changed], Collected().handle)
    await bus.close()


def test_a_refused_schema_ends_the_process_with_its_own_words(tmp_path: Path) -> None:
    """Not with an abort of the C++ client, which was seen to happen when it goes away after a refusal."""
    script = Path(__file__).parent / "refused.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert "Cannot send to Brew" in ended.stderr.splitlines()[-1]


async def test_a_bus_that_was_not_set_up_is_said_so_at_the_start() -> None:
    """Topics and subscriptions are made by one command, and never by a mistyped name."""
    async with pulsar_namespace() as address:
        bus = PulsarBus(address, types=lambda: TYPES)
        with pytest.raises(NotSetUp, match="knarr bus setup"):
            await bus.open()
        await set_up(address, Plan(types=TYPES, subscriptions={}))
        with pytest.raises(NotSetUp, match="knarr bus setup"):
            await bus.subscribe("brewery", [Brew], Collected().handle)
        await bus.close()


async def test_setting_up_again_makes_what_is_missing_and_nothing_else(broker: Broker) -> None:
    """More types, more subscriptions, more partitions; what is there stays, with its messages."""
    waiting = brew()
    await publish(await broker.bus(), [waiting])
    assert await set_up(broker.address, Plan(types=TYPES, subscriptions=SUBSCRIPTIONS)) == []
    more = Plan(types=TYPES, subscriptions={**SUBSCRIPTIONS, "museum": (Brew,)}, partitions=2)
    done = await set_up(broker.address, more)
    assert "subscription museum to Brew" in done
    assert "topic Brew: 1 partitions became 2" in done
    for name in ("brewery", "museum"):
        bus, got = await broker.bus(), Collected()
        await bus.subscribe(name, [Brew], got.handle)
        await bus.open()
        await got.until({waiting.id})


async def test_setting_up_outlives_faults_of_the_broker_that_are_soon_over(broker: Broker) -> None:
    """A broker that has just started, or whose storage was away for a moment, answers 500."""
    async with faulty_proxy(urlsplit(broker.address.admin_url).netloc) as proxy:
        proxy.faults = [
            Fault(how="answer", path="/clusters", times=2),
            Fault(how="answer", method="PUT", path="/subscription/museum", times=2),
        ]
        address = replace(broker.address, admin_url=proxy.url)
        done = await set_up(address, Plan(types=TYPES, subscriptions={**SUBSCRIPTIONS, "museum": (Brew,)}))
    assert done == ["subscription museum to Brew"]
    assert proxy.asked("PUT", "/subscription/museum") == 3


async def test_a_fault_of_the_broker_that_stays_is_told_in_one_line(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulsar sends the stack of its faults in place of a reason; a person wants the cause."""
    monkeypatch.setattr(pulsar_admin, "_TRIES", 2)
    cause = "org.example.LedgerException: Not enough bookies"
    reason = f"\n --- An error ---\n\nMessage: \n --- Within ---\n\nMessage: {cause}\n\nStacktrace:\n\tat x.y"
    async with faulty_proxy(urlsplit(broker.address.admin_url).netloc) as proxy:
        proxy.faults = [Fault(how="answer", path="/clusters", times=99, body=orjson.dumps({"reason": reason}))]
        with pytest.raises(Unavailable) as told:
            await set_up(replace(broker.address, admin_url=proxy.url), Plan(types=TYPES, subscriptions={}))
    assert told.value.message == f"Pulsar could not do GET clusters: 500: {cause}."
    assert proxy.asked("GET", "/clusters") == 2


async def test_a_message_that_cannot_be_read_is_put_aside_listed_and_sent_again(broker: Broker) -> None:
    """Those behind it pass; once a release can read it, an operator sends it to its topic again."""
    bus, got = await broker.bus(), Collected()
    await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
    await bus.open()
    poison, sound = brew(), brew()
    client = PulsarClient(broker.address)
    sender = await client.sender("Brew", schema_of(Brew))
    await sender.send([Outgoing(b"\xff\xff\xff", properties_of(poison), poison.correlationid)])
    await publish(bus, [sound])
    await got.until({sound.id})
    letters = Letters(broker.address)
    [letter] = await eventually(letters.show)
    assert (letter.id, letter.topic, letter.size_bytes) == (poison.id, "Brew", 3)
    assert "cannot be read" in letter.error
    assert [each.id for each in await letters.show()] == [poison.id]
    await letters.resend(poison.id)
    [again] = await eventually(letters.show)  # still nobody can read it
    assert again.id == poison.id
    with pytest.raises(NotFound, match="no dead letter"):
        await letters.resend("none")
    assert got.ids == {sound.id}
    await client.close()


async def test_a_message_that_raises_faults_again_and_again_is_put_aside(broker: Broker) -> None:
    """Its neighbours in the batch are handled, and what comes later passes too."""
    bus, got = await broker.bus(), Collected()

    async def chokes(envelopes: Sequence[Envelope]) -> None:
        if any(each.data["beer"] == "poison" for each in envelopes):
            raise ValueError("I cannot drink this")
        await got.handle(envelopes)

    await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], chokes)
    poison = brew("poison")
    sound = [brew(), brew()]
    await publish(bus, [sound[0], poison, sound[1]])
    await bus.open()
    await got.until({each.id for each in sound})
    [letter] = await eventually(Letters(broker.address).show)
    assert (letter.id, letter.error) == (poison.id, "ValueError: I cannot drink this")
    late = brew()
    await publish(bus, [late])
    await got.until({late.id})


async def test_a_message_that_does_not_fit_its_own_schema_holds_nothing_up(broker: Broker) -> None:
    """A fault of ours: it is put aside, those published with it arrive, and sending it again is refused."""
    bus, got = await broker.bus(), Collected()
    await bus.subscribe("brewery", SUBSCRIPTIONS["brewery"], got.handle)
    await bus.open()
    wrong, sound = structs.replace(brew(), data={"beer": 7}), brew()
    await bus.publish([wrong, sound])
    await got.until({sound.id})
    letters = Letters(broker.address)
    [letter] = await eventually(letters.show)
    assert letter.id == wrong.id
    with pytest.raises(Conflict, match="never on its topic"):
        await letters.resend(wrong.id)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110  a condition over several subscribers
            await asyncio.sleep(0.01)


async def eventually(show: Callable[[], Awaitable[list[Letter]]]) -> list[Letter]:
    """What the broker's figures show a moment later."""
    async with asyncio.timeout(SOON_S):
        while not (found := await show()):  # noqa: ASYNC110  the broker is asked
            await asyncio.sleep(0.1)
    return found
