"""The Pulsar client as the bus needs it: batches in, batches out, errors of our own tree.

`pulsar.asyncio` makes a future and a trip through the event loop for each message. With batches of 256 that was half of
what a message costs here (75 to 120 µs, 50 to 60 without), so messages go through the C++ objects inside its `Producer`
and `Consumer`, which is why this module, and no other, reaches into them. Connecting, subscribing and closing use the
public calls.

What the C++ client does by itself: it connects again for ever, re-creates producers and consumers, and sends what was
not confirmed once more, until `SEND_S` is over. Its threads must not be forked, its own logger is a file (a Python
logger has led to deadlocks with the interpreter's lock), and `receive` is never cancelled: one stays open.
"""

import asyncio
import json
import os
import ssl
import threading
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from pydantic import SecretStr

from seedwork import tls
from seedwork.errors import InvalidInput, KnarrError, Misconfigured, Unavailable
from seedwork.messages import new_id

if TYPE_CHECKING:
    import pulsar.asyncio

TLS_SETTING = "KNARR_PULSAR_TLS_CA"
CONNECT_S = 10
SEND_S = 30
"""A message that is not confirmed for so long is reported as not sent; whoever sent it does it again."""
QUEUED = 1000
"""Messages that the broker hands to one consumer ahead of time; a slow one keeps no more from its neighbours."""
MANY = 8
"""From so many messages on that are sent at once, those of one group are stored and acknowledged as one entry."""
GROUPS = 16
"""Into so many groups the keys are divided (ADR 17). A group goes to one consumer of a subscription, so more replicas
of a service than this would have nothing to do."""
_UNTRUSTED = "certificate verify failed"
"""What the client says of a broker whose authority or name is not the one that it was told."""
_GATHERED_MS = 1
"""How long a producer of many waits for more: the least that the client knows."""
_PENDING = 10_000
"""Messages of one producer that wait for their confirmation: more than the relay has under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulsarAddress:
    """Where the broker is, and who we are."""

    url: str
    admin_url: str
    tenant: str = "knarr"
    namespace: str = "default"
    token: SecretStr | None = None
    tls_ca: str | None = None
    """A file with the authority's certificate, for `pulsar+ssl` and https; none: public ones are trusted."""
    client_log: str = os.devnull
    """Where the C++ client writes its own warnings."""

    def trust(self) -> ssl.SSLContext | None:
        """By what the servers are checked; None: by the authorities that the library knows.

        Raises:
            Misconfigured: The authority's file is of no use.
        """
        return tls.trusting(self.tls_ca, setting=TLS_SETTING) if self.tls_ca else None

    def topic(self, name: str) -> str:
        """The whole name of one of our topics."""
        return f"persistent://{self.tenant}/{self.namespace}/{name}"


class Outgoing(Struct, frozen=True):
    """A message to send."""

    payload: bytes
    properties: Mapping[str, str]
    key: str
    """Messages of one key go to one consumer of a subscription, and so do those of its group."""


class Incoming(Struct, frozen=True):
    """A message that has come."""

    payload: bytes
    properties: Mapping[str, str]
    key: str
    schema_version: int
    handle: Any
    """The client's own object: what is acknowledged."""


class SchemaRefused(Misconfigured):
    """The broker keeps older schemas of this topic, and ours does not go with them."""

    code = "schema_refused"


class NotSetUp(Misconfigured):
    """A topic or a subscription is not there."""

    code = "bus_not_set_up"


class PulsarClient:
    """One connection to the broker, made when it is first used."""

    def __init__(self, address: PulsarAddress) -> None:
        self.address = address
        self._made: pulsar.asyncio.Client | None = None
        self._name = new_id()
        """Of our consumers. The broker divides the keys by it: of all topics of a subscription we get the same ones."""

    async def sender(self, topic: str, schema: Any | None) -> "Sender":
        """Begin to send to a topic, and register the schema.

        Args:
            topic: Its short name.
            schema: Avro; None: bytes.

        Raises:
            SchemaRefused: The broker does not take the schema.
            NotSetUp: There is no such topic.
            Unavailable: The broker does not answer.
        """
        first = await self._producer(topic, schema, together=False)
        return Sender(topic, first, lambda: self._producer(topic, schema, together=True))

    async def _producer(self, topic: str, schema: Any | None, *, together: bool) -> "pulsar.asyncio.Producer":
        import pulsar.asyncio

        try:
            return await self._client.create_producer(
                self.address.topic(topic),
                schema=_schema(schema),
                batching_enabled=together,
                batching_type=pulsar.BatchingType.KeyBased,  # else a batch goes where its first message does
                batching_max_publish_delay_ms=_GATHERED_MS,
                max_pending_messages=_PENDING,
                send_timeout_millis=SEND_S * 1000,
                compression_type=pulsar.CompressionType.LZ4,
            )
        except pulsar.asyncio.PulsarException as error:
            raise self._error(f"Cannot send to {topic}", topic, error) from error

    async def receiver(self, topic: str, subscription: str, schema: Any | None, *, shared: bool = True) -> "Receiver":
        """Begin to take from a subscription; the messages of one key come to one of those who share it.

        Args:
            topic: Its short name.
            subscription: Its name; it must exist.
            schema: Avro, what we can read; None: bytes.
            shared: False: nobody else may take from it meanwhile.

        Raises:
            SchemaRefused: What is in the topic cannot be read with this schema.
            NotSetUp: There is no such topic or subscription.
            Unavailable: The broker does not answer.
        """
        import pulsar.asyncio

        kind = pulsar.ConsumerType.KeyShared if shared else pulsar.ConsumerType.Exclusive
        try:
            consumer = await self._client.subscribe(
                self.address.topic(topic),
                subscription,
                consumer_name=self._name,
                consumer_type=kind,
                schema=_schema(schema),
                receiver_queue_size=QUEUED,
                initial_position=pulsar.InitialPosition.Earliest,
            )
        except pulsar.asyncio.PulsarException as error:
            what = f"{subscription} cannot take messages from {topic}"
            if error.error() == pulsar.Result.Timeout and await self._answers(topic):
                raise self._not_set_up(what, topic) from error  # the client asks again where a subscription is missing
            raise self._error(what, topic, error) from error
        return Receiver(topic, consumer)

    async def _answers(self, topic: str) -> bool:
        """Whether the broker is there and knows the topic."""
        import pulsar.asyncio

        try:
            await self._client.get_topic_partitions(self.address.topic(topic))
        except pulsar.asyncio.PulsarException:
            return False
        return True

    async def schema(self, topic: str, version: int) -> Any:
        """A schema that the topic has or had.

        Raises:
            InvalidInput: It never had this one.
            Unavailable: The broker does not answer.
        """
        import _pulsar
        import pulsar

        inner = self._client._client  # noqa: SLF001  the public client has no such call
        try:
            info = await asyncio.to_thread(inner.get_schema_info, self.address.topic(topic), version)
        except pulsar.exceptions.TopicNotFound as error:
            raise InvalidInput(f"{topic} has no schema {version}", why=str(error)) from error
        except pulsar.exceptions.PulsarException as error:
            raise Unavailable(f"The schema {version} of {topic} cannot be had", why=str(error)) from error
        if info.schema_type() != _pulsar.SchemaType.AVRO:
            raise InvalidInput(f"The schema {version} of {topic} is not Avro")
        return json.loads(info.schema())

    async def close(self) -> None:
        """Close the connection."""
        if self._made is not None:
            made, self._made = self._made, None
            await _quietly(made.close())

    @property
    def _client(self) -> "pulsar.asyncio.Client":
        if self._made is None:
            self._made = _connect(self.address)
        return self._made

    def _error(self, what: str, topic: str, error: "pulsar.asyncio.PulsarException") -> KnarrError:
        import pulsar

        result = error.error()
        if result == pulsar.Result.IncompatibleSchema:
            return SchemaRefused(
                what,
                why=f"its schema of {topic} and ours do not go together: {str(error).splitlines()[0][:300]}",
                todo="A message may only gain or lose fields that have a default; else it needs a new name.",
            )
        if result in (pulsar.Result.TopicNotFound, pulsar.Result.SubscriptionNotFound):
            return self._not_set_up(what, topic)
        if result in (pulsar.Result.AuthenticationError, pulsar.Result.AuthorizationError):
            return Misconfigured(what, why=f"the broker does not let us: {error}", todo="Look at KNARR_PULSAR_TOKEN.")
        if result == pulsar.Result.ConnectError and _UNTRUSTED in str(error):
            return Misconfigured(what, why=f"{self.address.url}: {error}", todo=tls.what_to_do(TLS_SETTING))
        return Unavailable(what, why=f"Pulsar at {self.address.url}: {error}")

    def _not_set_up(self, what: str, topic: str) -> NotSetUp:
        return NotSetUp(
            what,
            why=f"{self.address.topic(topic)} or the subscription to it is not there",
            todo="Run `knarr bus setup` with the same KNARR_PULSAR_… settings, then start it again.",
        )


class Sender:
    """Sends to one topic: a few messages at once, each as it is; many with a delay of a millisecond, in batches.

    Args:
        topic: Its short name.
        producer: For few.
        for_many: Makes the one for many, when it is first needed.
    """

    def __init__(
        self,
        topic: str,
        producer: "pulsar.asyncio.Producer",
        for_many: "Callable[[], Awaitable[pulsar.asyncio.Producer]]",
    ) -> None:
        self.topic = topic
        self._for_few = producer
        self._for_many: pulsar.asyncio.Producer | None = None
        self._make_for_many = for_many
        self._making = asyncio.Lock()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """All of them; on return the broker has them on disk.

        Raises:
            Unavailable: Not all of them are known to be there.
        """
        import _pulsar

        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        waiting = len(messages)
        failed: Any = None

        def confirmed(result: Any, _message_id: Any) -> None:  # in a thread of the client
            nonlocal waiting, failed
            if result != _pulsar.Result.Ok:
                failed = result
            waiting -= 1
            if waiting == 0:
                _soon(loop, _settle, done, failed)

        producer = self._for_few if len(messages) < MANY else await self._batching()
        inner = producer._producer  # noqa: SLF001  see the module's text
        for each in messages:
            builder = _pulsar.MessageBuilder()
            builder.content(each.payload)
            builder.properties(dict(each.properties))
            builder.partition_key(each.key)
            builder.ordering_key(group_of(each.key))
            inner.send_async(builder.build(), confirmed)
        result = await done
        if result is not None:
            raise Unavailable(f"Pulsar has not confirmed messages for {self.topic}", why=result.name)

    async def _batching(self) -> "pulsar.asyncio.Producer":
        """The producer for many.

        It is never told to flush: that call keeps the interpreter's lock while it waits for one of the client's, whose
        holder may wait for the interpreter's (ADR 17).
        """
        async with self._making:
            if self._for_many is None:
                self._for_many = await self._make_for_many()
        return self._for_many

    async def close(self) -> None:
        """Send no more."""
        for each in (self._for_few, self._for_many):
            if each is not None:
                await _quietly(each.close())


def group_of(key: str) -> str:
    """To which group a key belongs: the messages of a group go to one consumer of a subscription, in their order."""
    return str(zlib.crc32(key.encode()) % GROUPS)


class Receiver:
    """Takes from one subscription, in batches."""

    def __init__(self, topic: str, consumer: "pulsar.asyncio.Consumer") -> None:
        self.topic = topic
        self._consumer = consumer
        self._inner = consumer._consumer  # noqa: SLF001  see the module's text
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._arrived: deque[tuple[Any, Any]] = deque()
        self._wake = asyncio.Event()
        self._asked = False
        """Whether the client still owes us a message; it is asked for one at a time, and never told to forget it."""
        self._stopped = False

    async def receive(self, limit: int) -> list[Incoming]:
        """What is there, at least one message; empty: stopped.

        Raises:
            Unavailable: The consumer is broken.
        """
        while not self._stopped:
            batch = self._drained(limit)
            if batch:
                return batch
            self._wake.clear()
            if not self._arrived:
                await self._wake.wait()
        return []

    def stop(self) -> None:
        """Let `receive` return; what was not acknowledged comes again, to whoever takes from the subscription then."""
        self._stopped = True
        self._wake.set()

    def acknowledge(self, messages: Sequence[Incoming]) -> None:
        """They are done with. The client tells the broker a little later; before that they may come again.

        Nobody listens for what becomes of it: where an acknowledgement does not arrive, the message comes again, and
        the inbox knows it.
        """
        for each in messages:
            self._inner.acknowledge_async(each.handle, None)

    async def close(self) -> None:
        """Take no more; acknowledgements that were not told yet are told."""
        self.stop()
        await _quietly(self._consumer.close())

    def _drained(self, limit: int) -> list[Incoming]:
        """Messages that the client holds are given during the call that asks for them."""
        import _pulsar

        batch: list[Incoming] = []
        while len(batch) < limit:
            if not self._asked:
                self._asked = True
                self._inner.receive_async(self._came)
            if not self._arrived:
                break
            result, message = self._arrived.popleft()
            self._asked = False
            if result != _pulsar.Result.Ok and batch:
                break  # the next call meets it again
            if result != _pulsar.Result.Ok:
                raise Unavailable(f"Cannot take messages from {self.topic}", why=result.name)
            batch.append(
                Incoming(
                    message.data(),
                    message.properties(),
                    message.partition_key(),
                    message.int_schema_version(),
                    message,
                )
            )
        return batch

    def _came(self, result: Any, message: Any) -> None:
        self._arrived.append((result, message))
        if threading.get_ident() != self._thread:
            _soon(self._loop, self._wake.set)


def _connect(address: PulsarAddress) -> "pulsar.asyncio.Client":
    try:
        import pulsar
        import pulsar.asyncio
    except ModuleNotFoundError as error:
        raise Misconfigured(
            "KNARR_BUS is pulsar, but its client is not installed",
            why=str(error),
            todo="Install it with `pip install 'knarr[pulsar]'`.",
        ) from error
    address.trust()  # a file that cannot be read has words of its own
    token = pulsar.AuthenticationToken(address.token.get_secret_value()) if address.token else None
    return pulsar.asyncio.Client(
        address.url,
        authentication=token,
        operation_timeout_seconds=CONNECT_S,
        connection_timeout_ms=CONNECT_S * 1000,
        tls_trust_certs_file_path=address.tls_ca or None,
        tls_validate_hostname=True,
        logger=pulsar.FileLogger(pulsar.LoggerLevel.Warn, address.client_log),
    )


def _schema(schema: Any | None) -> Any:
    import pulsar.schema

    return pulsar.schema.BytesSchema() if schema is None else pulsar.schema.AvroSchema(None, schema_definition=schema)


def _soon(loop: asyncio.AbstractEventLoop, callback: Any, *arguments: Any) -> None:
    """From a thread of the client, which may speak when the loop is gone."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _settle(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)


async def _quietly(closing: Any) -> None:
    """A broker that is away cannot be told that we leave; it finds out."""
    import pulsar.asyncio

    try:
        async with asyncio.timeout(CONNECT_S):
            await closing
    except (pulsar.asyncio.PulsarException, TimeoutError):
        return
