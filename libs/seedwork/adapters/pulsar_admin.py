"""What must be there before messages flow: tenant, namespace, topics, subscriptions, by the broker's admin API.

`set_up` may run again and again; it makes what is missing, sets the policies, and says what it did. It is run by
`knarr bus setup`, by one process, before the services: a service that finds no topic or subscription does not start.
Nothing is ever deleted.

The dead letters of the bus are listed and sent again here too (`Letters`): those who look are few, and one at a time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import stamina

from seedwork import tls
from seedwork.adapters.avro import schema_of
from seedwork.adapters.pulsar import DEAD_LETTERS
from seedwork.adapters.pulsar_client import TLS_SETTING, Incoming, Outgoing, PulsarAddress, PulsarClient
from seedwork.errors import Conflict, Misconfigured, NotAllowed, NotFound, Unavailable
from seedwork.messages import Message

OPERATORS = "operators"
"""The subscription that keeps dead letters until somebody has sent them again."""
_RETENTION_MIN = 3 * 24 * 60
_RETENTION_MB = 1024
"""What was acknowledged stays for three days and 1 GB a topic, for people who look what happened: a message has some
300 bytes."""
_TIMEOUT_S = 30.0
_TRIES = 8
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 4.0
_PATIENCE_S = 30.0
"""A request to which the broker answers with a fault of its own is made again, for so long at most: one that has just
started or has lost its storage for a moment is well again soon."""

_REASON_CHARS = 300

POLICIES: Mapping[str, tuple[str, Any]] = {
    "retention": (
        "POST",
        {"retentionTimeInMinutes": _RETENTION_MIN, "retentionSizeInMB": _RETENTION_MB},
    ),
    # Replicas of two releases run beside each other: the older one must read the newer one's messages and the other
    # way round, and a service that was away for a while meets messages of releases before (ADR 9).
    "schemaCompatibilityStrategy": ("PUT", "FULL_TRANSITIVE"),
    "schemaValidationEnforced": ("POST", True),
    # A mistyped name must not become a topic to which nobody listens.
    "autoTopicCreation": ("POST", {"allowAutoTopicCreation": False}),
    "autoSubscriptionCreation": ("POST", {"allowAutoSubscriptionCreation": False}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the services need of the bus."""

    types: Sequence[type[Message]]
    subscriptions: Mapping[str, Sequence[type[Message]]]
    """By the name of the subscription."""
    partitions: int = 1
    """Of each topic; more can be added later, never taken away."""


async def set_up(address: PulsarAddress, plan: Plan) -> list[str]:
    """Make what is missing; what was made or changed, a short phrase each.

    Raises:
        SchemaRefused: A message type has changed in a way that the broker does not take.
        Misconfigured: The broker does not let us, or the plan asks for fewer partitions than there are.
        Unavailable: The broker does not answer.
    """
    done: list[str] = []
    async with _admin(address) as admin:
        done += await admin.tenant_and_namespace()
        for each in plan.types:
            done += await admin.topic(each.__name__, plan.partitions)
        done += await admin.topic(DEAD_LETTERS, 1)
        for name, types in plan.subscriptions.items():
            for each in types:
                done += await admin.subscription(each.__name__, name)
        done += await admin.subscription(DEAD_LETTERS, OPERATORS)
    await _register_schemas(address, plan.types)
    return done


async def lacking_of(address: PulsarAddress, name: str, types: Sequence[type[Message]]) -> str:
    """Which topic or subscription of that name is not there yet, in a short phrase; empty: none.

    Raises:
        Unavailable: The broker does not answer.
    """
    async with _admin(address) as admin:
        for each in types:
            if not await admin.subscribed(each.__name__, name):
                return f"Pulsar has no subscription {name} to {each.__name__} yet: `knarr bus setup` makes it"
    return ""


async def _register_schemas(address: PulsarAddress, types: Iterable[type[Message]]) -> None:
    """A refused schema is seen here, before any service has stopped for an upgrade."""
    client = PulsarClient(address)
    try:
        for each in types:
            sender = await client.sender(each.__name__, schema_of(each))
            await sender.close()
    finally:
        await client.close()


class _Admin:
    """The admin API, as far as it is needed."""

    def __init__(self, http: httpx2.AsyncClient, address: PulsarAddress) -> None:
        self._http = http
        self._space = f"{quote(address.tenant, safe='')}/{quote(address.namespace, safe='')}"
        self._tenant = quote(address.tenant, safe="")

    async def tenant_and_namespace(self) -> list[str]:
        done = []
        clusters = await self._call("GET", "clusters")
        if await self._call("GET", f"tenants/{self._tenant}", missing_ok=True) is None:
            body = {"adminRoles": [], "allowedClusters": clusters}
            await self._call("PUT", f"tenants/{self._tenant}", body, conflict_ok=True)
            done.append(f"tenant {self._tenant}")
        if await self._call("GET", f"namespaces/{self._space}", missing_ok=True) is None:
            body = {"replication_clusters": clusters}
            await self._call("PUT", f"namespaces/{self._space}", body, conflict_ok=True)
            done.append(f"namespace {self._space}")
        for name, (method, body) in POLICIES.items():
            await self._call(method, f"namespaces/{self._space}/{name}", body)
        return done

    async def topic(self, name: str, partitions: int) -> list[str]:
        path = f"persistent/{self._space}/{name}/partitions"
        there = await self._call("GET", path, missing_ok=True)
        count = int(there["partitions"]) if there else 0
        if count == 0:
            await self._call("PUT", path, partitions, conflict_ok=True)
            return [f"topic {name}"]
        if count < partitions:
            await self._call("POST", path, partitions)
            return [f"topic {name}: {count} partitions became {partitions}"]
        return []

    async def subscription(self, topic: str, name: str) -> list[str]:
        """From the first message on, whichever is there: none may be missed."""
        path = f"persistent/{self._space}/{topic}"
        if name in await self._call("GET", f"{path}/subscriptions"):
            return []
        await self._call("PUT", f"{path}/subscription/{quote(name, safe='')}", "earliest", conflict_ok=True)
        return [f"subscription {name} to {topic}"]

    async def subscribed(self, topic: str, name: str) -> bool:
        return name in (
            await self._call("GET", f"persistent/{self._space}/{topic}/subscriptions", missing_ok=True) or ()
        )

    async def backlog(self, topic: str, subscription: str) -> int:
        stats = await self._call("GET", f"persistent/{self._space}/{topic}/partitioned-stats?perPartition=false")
        found = stats["subscriptions"].get(subscription)
        return int(found["msgBacklog"]) if found else 0

    async def _call(
        self, method: str, path: str, body: Any = None, *, missing_ok: bool = False, conflict_ok: bool = False
    ) -> Any:
        """What the API answers; None for a 404 or 409 that is all right.

        What makes something has `conflict_ok`: an attempt before, or somebody else, may have made it.
        """
        async for attempt in stamina.retry_context(
            on=_Faulty,
            attempts=_TRIES,
            timeout=_PATIENCE_S,
            wait_initial=_FIRST_WAIT_S,
            wait_max=_LONGEST_WAIT_S,
        ):
            with attempt:
                return await self._once(method, path, body, missing_ok=missing_ok, conflict_ok=conflict_ok)
        raise AssertionError("stamina gives at least one attempt")

    async def _once(self, method: str, path: str, body: Any, *, missing_ok: bool, conflict_ok: bool) -> Any:
        content = None if body is None else orjson.dumps(body)
        try:
            answer = await self._http.request(
                method, f"admin/v2/{path}", content=content, headers={"Content-Type": "application/json"}
            )
        except httpx2.HTTPError as error:
            if why := tls.why_untrusted(error):
                what = f"Pulsar's admin API at {self._http.base_url} is not used"
                raise Misconfigured(what, why=why, todo=tls.what_to_do(TLS_SETTING)) from error
            raise Unavailable(
                "Pulsar's admin API does not answer",
                why=f"{self._http.base_url}: {type(error).__name__}",
                todo="Look at KNARR_PULSAR_ADMIN_URL, and whether the broker runs.",
            ) from error
        if answer.status_code == 404 and missing_ok:
            return None
        if answer.status_code == 409 and conflict_ok:
            return None
        if answer.status_code in (401, 403):
            raise NotAllowed(f"Pulsar does not allow {method} {path}", todo="Look at KNARR_PULSAR_TOKEN.")
        if answer.status_code >= 500:
            raise _Faulty(f"Pulsar could not do {method} {path}", why=_reason(answer))
        if answer.status_code >= 400:
            raise Misconfigured(f"Pulsar refuses {method} {path}", why=_reason(answer))
        return orjson.loads(answer.content) if answer.content else None


class _Faulty(Unavailable):
    """The broker's own fault, which may be over soon."""


def _reason(answer: httpx2.Response) -> str:
    """In one line; a broker that did not expect the fault sends its whole stack."""
    try:
        text = str(orjson.loads(answer.content)["reason"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return str(answer.status_code)
    lines = [line.strip() for line in text.splitlines()]
    causes = [line.removeprefix("Message:").strip() for line in lines if line.startswith("Message:")]
    # A fault is told within a fault: the last one is the cause.
    last = next((each for each in reversed(causes) if each), "") or next((each for each in lines if each), "")
    return f"{answer.status_code}: {last[:_REASON_CHARS]}"


@contextlib.asynccontextmanager
async def _admin(address: PulsarAddress) -> AsyncIterator[_Admin]:
    headers = {"Authorization": f"Bearer {address.token.get_secret_value()}"} if address.token else {}
    verify = address.trust() or True
    async with httpx2.AsyncClient(
        base_url=address.admin_url, timeout=_TIMEOUT_S, headers=headers, trust_env=False, verify=verify
    ) as http:
        yield _Admin(http, address)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of the bus."""

    id: str
    """The message's own id; where it has none, nothing."""
    topic: str
    """Where it came from, or was to go."""
    error: str
    properties: Mapping[str, str]
    size_bytes: int


class Letters:
    """The topic of dead letters, for people.

    Args:
        address: The broker.
    """

    def __init__(self, address: PulsarAddress) -> None:
        self._address = address

    async def show(self) -> list[Letter]:
        """Those that nobody has sent again, oldest first.

        Raises:
            Unavailable: The broker does not answer, or somebody else looks at this moment.
        """
        async with self._all() as (_client, _acknowledge, letters):
            return [_letter(each) for each in letters]

    async def resend(self, message_id: str) -> Letter:
        """Send it to its topic once more, as it was, and forget it here.

        Raises:
            NotFound: There is no such letter.
            Unavailable: The broker does not answer, or somebody else looks at this moment.
        """
        async with self._all() as (client, acknowledge, letters):
            for each in letters:
                letter = _letter(each)
                if letter.id == message_id:
                    await _send_again(client, letter, each)
                    acknowledge([each])
                    return letter
        raise NotFound(
            f"There is no dead letter {message_id!r} on the bus", todo="`knarr bus dead-letters` lists them."
        )

    @contextlib.asynccontextmanager
    async def _all(self) -> AsyncIterator[tuple[PulsarClient, Any, list[Incoming]]]:
        async with _admin(self._address) as admin:
            count = await admin.backlog(DEAD_LETTERS, OPERATORS)
        client = PulsarClient(self._address)
        try:
            receiver = await client.receiver(DEAD_LETTERS, OPERATORS, None, shared=False)
            letters: list[Incoming] = []
            async with asyncio.timeout(_TIMEOUT_S):
                while len(letters) < count:
                    letters += await receiver.receive(count - len(letters))
            yield client, receiver.acknowledge, letters
            await receiver.close()
        finally:
            await client.close()


async def _send_again(client: PulsarClient, letter: Letter, message: Incoming) -> None:
    """As it was, under the schema with which it was written."""
    version = int(letter.properties.get("letter_schema", -1))
    if version < 0:
        raise Conflict(
            f"The message {letter.id} cannot be sent again",
            why="it was never on its topic, or without a schema",
            todo="Its sender repeats it where a saga waits for it: `knarr sagas show ID` shows what a saga waits for.",
        )
    sender = await client.sender(letter.topic, await client.schema(letter.topic, version))
    kept = {name: value for name, value in letter.properties.items() if not name.startswith("letter_")}
    await sender.send([Outgoing(message.payload, kept, message.key)])
    await sender.close()


def _letter(message: Incoming) -> Letter:
    return Letter(
        id=message.properties.get("ce_id", ""),
        topic=message.properties.get("letter_of", ""),
        error=message.properties.get("letter_error", ""),
        properties=message.properties,
        size_bytes=len(message.payload),
    )
