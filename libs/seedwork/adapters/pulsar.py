"""The bus on Apache Pulsar: a topic per message type, a subscription per service, sagas kept together by their key.

`publish` returns when the broker has written the messages. A message is Avro; the envelope's attributes are properties
with the prefix `ce_` (as CloudEvents does it on Kafka) and `traceparent`, so that tools see them. What is subscribed to
comes in batches, one batch of a type at a time, to one of the service's replicas, and is acknowledged when `handle` has
returned. Nothing is left to the broker that belongs to sagas: no delayed delivery, no negative acknowledgement, no
de-duplication. While `handle` cannot (the database is away), the batch waits here and is tried again for ever.

What cannot even be read, or raises a fault again and again where it is alone, goes to the topic `dead-letters`: the
services' tables of dead letters hold what they could read and not handle (ADR 10).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import structlog

from seedwork.adapters.avro import Codec, schema_of
from seedwork.adapters.pulsar_client import Incoming, Outgoing, PulsarAddress, PulsarClient, Receiver, Sender
from seedwork.bus import Handle
from seedwork.errors import InvalidInput, Misconfigured, RetryableError, Unavailable
from seedwork.messages import Envelope, Message

BATCH = 256
DEAD_LETTERS = "dead-letters"
"""The topic of messages that no service can read."""
LARGEST_BYTES = 4 * 1024 * 1024
"""The broker takes 5 MB with everything around it; knarr's messages have some hundred bytes."""
FAULTS = 5
"""How often a message may raise what is no `RetryableError` before it is put aside."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0

_PREFIX = "ce_"
_TEXT = ("id", "source", "type", "time", "subject", "correlationid", "appid", "team", "causationid", "sagastep")
_NUMBERS = ("sagaattempt", "fence")

_ATTRIBUTES = (*_TEXT, *_NUMBERS, "specversion", "dataschema")
_NAMES = tuple(f"{_PREFIX}{name}" for name in _ATTRIBUTES)
_VALUES: Callable[[Envelope], tuple[Any, ...]] = attrgetter(*_ATTRIBUTES)

Bury = Callable[[Outgoing], Awaitable[None]]

log = structlog.get_logger(__name__)


class PulsarBus:
    """A `Bus` that other processes share.

    Args:
        address: The broker.
        types: The message types that this process sends, asked when the bus is opened: their schemas are registered
            then, so that a refused one is seen at the start and not at the first message.
    """

    def __init__(self, address: PulsarAddress, *, types: Callable[[], Iterable[type[Message]]]) -> None:
        self._client = PulsarClient(address)
        self._types = types
        self._senders: dict[str, Sender] = {}
        self._codecs: dict[str, Codec] = {}
        self._opening = asyncio.Lock()
        self._letters: Sender | None = None
        self._subscriptions: list[_Subscription] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._open = False
        self._closing = asyncio.Event()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Send; durable on return.

        Raises:
            Unavailable: Not all of them are known to be durable.
            Misconfigured: A message's type is none that this process has said it would send.
        """
        if self._closing.is_set():
            raise Unavailable("The bus is closed", why="the service is stopping")
        by_type: dict[str, list[Envelope]] = {}
        for each in envelopes:
            by_type.setdefault(each.type, []).append(each)
        await asyncio.gather(*(self._send(name, batch) for name, batch in by_type.items()))

    async def subscribe(self, name: str, types: Sequence[type[Message]], handle: Handle) -> None:
        """Begin a subscription.

        Raises:
            SchemaRefused: The broker holds messages that these models cannot read.
            NotSetUp: `knarr bus setup` has not made the topic or the subscription.
            Unavailable: The broker does not answer.
        """
        receivers = await asyncio.gather(
            *(self._client.receiver(each.__name__, name, schema_of(each)) for each in types)
        )
        made = [_Subscription(receiver, self._client, handle, self._closing, self._bury) for receiver in receivers]
        self._subscriptions += made
        if self._open:
            self._start(made)

    async def open(self) -> None:
        """Register the schemas of what is sent; let messages flow.

        Raises:
            SchemaRefused: The broker does not take a schema.
            NotSetUp: `knarr bus setup` has not made a topic.
            Unavailable: The broker does not answer.
        """
        await asyncio.gather(*(self._sender(each.__name__) for each in self._types()))
        self._open = True
        self._start(self._subscriptions)

    async def close(self) -> None:
        """Wait for handles that run, acknowledge what they did, and disconnect."""
        self._closing.set()
        for subscription in self._subscriptions:
            subscription.receiver.stop()
        await asyncio.gather(*self._pumps)
        senders = [*self._senders.values(), *([self._letters] if self._letters else [])]
        await asyncio.gather(
            *(each.receiver.close() for each in self._subscriptions), *(each.close() for each in senders)
        )
        await self._client.close()
        self._subscriptions, self._pumps, self._senders, self._letters = [], [], {}, None

    def _start(self, subscriptions: Sequence["_Subscription"]) -> None:
        """One pump for each consumer, for its whole life."""
        self._pumps += [asyncio.create_task(each.pump(), name=f"pump-{each.receiver.topic}") for each in subscriptions]

    async def _send(self, name: str, envelopes: Sequence[Envelope]) -> None:
        sender = await self._sender(name)
        messages = []
        for each in envelopes:
            try:
                messages.append(self._outgoing(each))
            except ValueError as error:  # ours: it must not hold up those behind it
                log.error("a message cannot be sent", type=name, message_id=each.id, error=str(error))  # noqa: TRY400  the traceback is the codec's
                letter = {**properties_of(each), "letter_of": name, "letter_error": str(error)}
                body = each.to_json()
                await self._bury(Outgoing(body if len(body) <= LARGEST_BYTES else b"", letter, each.correlationid))
        if messages:
            await sender.send(messages)

    def _outgoing(self, envelope: Envelope) -> Outgoing:
        payload = self._codecs[envelope.type].encode(envelope.data)
        if len(payload) > LARGEST_BYTES:
            raise ValueError(f"it has {len(payload)} bytes, and the broker takes {LARGEST_BYTES}")
        return Outgoing(payload, properties_of(envelope), envelope.correlationid)

    async def _sender(self, name: str) -> Sender:
        if name not in self._senders:
            async with self._opening:
                if name not in self._senders:
                    schema = self._schema(name)
                    self._senders[name] = await self._client.sender(name, schema)
                    self._codecs[name] = Codec(schema)
        return self._senders[name]

    def _schema(self, name: str) -> object:
        for each in self._types():
            if each.__name__ == name:
                return schema_of(each)
        raise Misconfigured(f"{name} cannot be sent", why="it is not among the messages that this service tells")

    async def _bury(self, letter: Outgoing) -> None:
        if self._letters is None:
            self._letters = await self._client.sender(DEAD_LETTERS, None)
        await self._letters.send([letter])


class _Subscription:
    """One consumer, its pump, and what is done with what it brings."""

    def __init__(
        self, receiver: Receiver, client: PulsarClient, handle: Handle, closing: asyncio.Event, bury: Bury
    ) -> None:
        self.receiver = receiver
        self._client = client
        self._handle = handle
        self._closing = closing
        self._bury = bury
        self._codecs: dict[int, Codec] = {}
        self._batch: list[Incoming] = []

    async def pump(self) -> None:
        """Batch after batch, until the bus is closed; each is acknowledged when it is done with."""
        while not self._closing.is_set():
            try:
                await self._turn()
            except Exception:  # a fault of this module; the batch is kept, since the broker will not send it again
                log.exception("a batch of messages waits for a fault to pass", topic=self.receiver.topic)
                await self._wait(_LONGEST_WAIT_S)

    async def _turn(self) -> None:
        if not self._batch:
            await self._patiently(self._fill)
        if self._batch and await self._deliver(self._batch):
            self.receiver.acknowledge(self._batch)
            self._batch = []

    async def _fill(self) -> None:
        self._batch = await self.receiver.receive(BATCH)

    async def _deliver(self, batch: Sequence[Incoming]) -> bool:
        """Whether all of it is handled or put aside; not, when the bus was closed before."""
        readable: list[Incoming] = []
        envelopes: list[Envelope] = []
        for each in batch:
            try:
                known = each.schema_version in self._codecs
                if not known and not await self._patiently(partial(self._know_schema, each)):
                    return False
                envelopes.append(self._read(each))
                readable.append(each)
            except InvalidInput as error:
                if not await self._put_aside(each, error.message):
                    return False
        return not readable or await self._handled(readable, envelopes)

    async def _handled(self, batch: Sequence[Incoming], envelopes: Sequence[Envelope]) -> bool:
        """Together; where that raises a fault, each alone; what raises one again and again alone is put aside."""
        for attempt in range(1, FAULTS + 1):
            try:
                return await self._patiently(partial(self._handle, envelopes))
            except Exception as error:  # whatever it is, the messages behind it must not wait for it
                log.exception("messages cannot be handled", topic=self.receiver.topic, messages=len(batch))
                if len(batch) > 1:
                    break
                if attempt == FAULTS:
                    return await self._put_aside(batch[0], f"{type(error).__name__}: {error}")
                await self._wait(_FIRST_WAIT_S * 2**attempt)
        for each, envelope in zip(batch, envelopes, strict=True):
            if not await self._handled([each], [envelope]):
                return False
            self.receiver.acknowledge([each])
        return True

    async def _know_schema(self, message: Incoming) -> None:
        """Ask the broker for the schema with which it was written."""
        version = message.schema_version
        self._codecs[version] = Codec(await self._client.schema(self.receiver.topic, version))

    def _read(self, message: Incoming) -> Envelope:
        try:
            return envelope_of(message.properties, self._codecs[message.schema_version].decode(message.payload))
        except (KeyError, ValueError) as error:
            raise InvalidInput("The message cannot be read", why=f"{type(error).__name__}: {error}") from error

    async def _put_aside(self, message: Incoming, why: str) -> bool:
        log.error("a message goes to the dead letters of the bus", topic=self.receiver.topic, error=why)
        properties = {
            **message.properties,
            "letter_of": self.receiver.topic,
            "letter_error": why[:2000],
            "letter_schema": str(message.schema_version),
        }
        letter = Outgoing(message.payload, properties, message.key)
        return await self._patiently(partial(self._bury, letter))

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Until it is done, however long the other side is away; False, when the bus was closed before."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await work()
            except RetryableError as error:
                log.warning("messages wait", topic=self.receiver.topic, error=error.message, wait_s=wait_s)
            else:
                return True
            if await self._wait(wait_s):
                return False
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def _wait(self, seconds: float) -> bool:
        """True, when the bus was closed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                return await self._closing.wait()
        except TimeoutError:
            return False


def properties_of(envelope: Envelope) -> dict[str, str]:
    """The envelope without its data, as properties of a message; what is null is left out."""
    found = {name: str(value) for name, value in zip(_NAMES, _VALUES(envelope), strict=True) if value is not None}
    if envelope.traceparent is not None:
        found["traceparent"] = envelope.traceparent
    return found


def envelope_of(properties: Mapping[str, str], data: Mapping[str, Any]) -> Envelope:
    """The envelope of a message.

    Raises:
        KeyError: An attribute is missing.
        ValueError: A number is none.
    """
    attempt, fence = properties.get("ce_sagaattempt"), properties.get("ce_fence")
    return Envelope(
        id=properties["ce_id"],
        source=properties["ce_source"],
        type=properties["ce_type"],
        time=properties["ce_time"],
        subject=properties.get("ce_subject", ""),
        correlationid=properties["ce_correlationid"],
        appid=properties["ce_appid"],
        team=properties.get("ce_team", "default"),
        data=data,
        version=int(properties["ce_dataschema"].rpartition("/v")[2]),
        causationid=properties.get("ce_causationid"),
        sagastep=properties.get("ce_sagastep"),
        sagaattempt=None if attempt is None else int(attempt),
        fence=None if fence is None else int(fence),
        traceparent=properties.get("traceparent"),
    )
