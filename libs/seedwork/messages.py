"""What travels: commands and events as frozen models, and the CloudEvents 1.0 envelope around them.

A service's messages stand in its `contract.py`. A command is imperative, an event past tense; the class name is the
CloudEvents `type`. An `Envelope` is complete in itself: whoever holds it can deliver it again, later, from anywhere.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Self

import orjson
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from uuid_utils import uuid7

from seedwork.errors import InvalidInput, KnarrError


def new_id() -> str:
    """A UUIDv7 as text: unique, and sorted by the time it was made (RFC 9562, section 5.7)."""
    return str(uuid7())


class Payload(BaseModel):
    """Frozen data inside a message; unknown fields are ignored, so that a newer sender can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Payload):
    """A command or an event. `VERSION` grows with a change that an old reader would misunderstand."""

    VERSION: ClassVar[int] = 1
    EXAMPLE: ClassVar[Mapping[str, Any]] = {}
    """A valid payload: documentation, and what the test endpoints send when nothing else is given."""

    @classmethod
    def example(cls) -> Self:
        """The documented example as a model."""
        return cls.model_validate(dict(cls.EXAMPLE))


class Command(Message):
    """Asks one service to do one thing, for one saga's step."""


class Event(Message):
    """Tells that something happened."""


class UndoneEvent(Event):
    """The answer to an undo: succeeded, also when there was nothing to undo."""

    found: tuple[str, ...] = ()
    """What there was, a short phrase each ("image staging/…@sha256:…"); empty: nothing."""
    done: tuple[str, ...] = ()
    """What was done about it, a short phrase each."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"found": ["1 reference"], "done": ["dropped"]}


class FailureEvent(Event):
    """The answer of a step that did not succeed."""

    retryable: bool
    """True: a fault of the platform, worth another attempt. False: the same work would fail again."""
    code: str
    """A machine-readable reason: `build_failed`, `timed_out`, `undone`, `worker_lost`, `superseded` …"""
    message: str
    """What happened, why, what to do next."""
    log_tail: tuple[str, ...] = ()
    """The last lines of the log, oldest first."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"retryable": False, "code": "failed", "message": "It did not work."}


class WorkReported(Event):
    """A participant is alive: sent 5 s after acceptance, then every 30 s. Not kept in the saga log."""

    status: str
    """`queued` or `running`."""
    position: int | None = None
    """Place in the queue, from 1; null when running."""
    note: str = ""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"status": "running", "note": "installing 12 packages"}


class UndoFailed(FailureEvent):
    """An undo attempt did not succeed; the saga tries again, and is STUCK after the last attempt."""


class Envelope(Struct, frozen=True, kw_only=True):
    """CloudEvents 1.0 attributes, knarr's extensions, and the payload as JSON values."""

    id: str
    source: str
    """The service that sent it, `/builder`."""
    type: str
    """The message's class name."""
    time: str
    """RFC 3339, UTC."""
    correlationid: str
    """The saga."""
    appid: str
    data: Mapping[str, Any]
    subject: str = ""
    """The app's name, for people."""
    team: str = "default"
    version: int = 1
    """The message's schema version; `dataschema` is made from it."""
    causationid: str | None = None
    """The id of the message that this one answers or follows from."""
    sagastep: str | None = None
    sagaattempt: int | None = None
    fence: int | None = None
    traceparent: str | None = None
    specversion: str = "1.0"

    @property
    def dataschema(self) -> str:
        """A URI reference with the schema's version."""
        return f"/schemas/{self.type}/v{self.version}"

    def to_json(self) -> bytes:
        """The CloudEvents JSON format; extensions that are null are left out."""
        return orjson.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The CloudEvents JSON format as a dict."""
        record: dict[str, Any] = {
            "specversion": self.specversion,
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "time": self.time,
            "subject": self.subject,
            "dataschema": self.dataschema,
            "correlationid": self.correlationid,
            "appid": self.appid,
            "team": self.team,
            "data": dict(self.data),
        }
        for name in ("causationid", "sagastep", "sagaattempt", "fence", "traceparent"):
            value = getattr(self, name)
            if value is not None:
                record[name] = value
        return record

    @classmethod
    def from_json(cls, text: bytes | str) -> "Envelope":
        """Read the CloudEvents JSON format.

        Raises:
            InvalidInput: It is not JSON, or a required attribute is missing.
        """
        try:
            record = orjson.loads(text)
            schema = str(record.get("dataschema", ""))
            return cls(
                id=record["id"],
                source=record["source"],
                type=record["type"],
                time=record["time"],
                subject=record.get("subject", ""),
                correlationid=record["correlationid"],
                appid=record["appid"],
                team=record.get("team", "default"),
                data=record["data"],
                version=int(schema.rpartition("/v")[2]) if "/v" in schema else 1,
                causationid=record.get("causationid"),
                sagastep=record.get("sagastep"),
                sagaattempt=record.get("sagaattempt"),
                fence=record.get("fence"),
                traceparent=record.get("traceparent"),
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput("This is no message envelope", why=f"{type(error).__name__}: {error}") from error


def envelope(
    message: Message,
    *,
    source: str,
    saga_id: str,
    app_id: str,
    team: str = "default",
    app: str = "",
    at: datetime | None = None,
    causation_id: str | None = None,
    step: str | None = None,
    attempt: int | None = None,
    fence: int | None = None,
    traceparent: str | None = None,
    message_id: str | None = None,
) -> Envelope:
    """Put a message into an envelope.

    Args:
        message: The payload.
        source: The sending service's name, `builder`.
        saga_id: The saga that this belongs to.
        app_id: The app's identity.
        team: The app's team.
        app: The app's name, for people.
        at: When; now, if not given.
        causation_id: The id of the message that led to this one.
        step: The saga's step.
        attempt: The step's attempt, from 1.
        fence: The lane's fence under which this was sent.
        traceparent: The W3C trace context.
        message_id: An id that the caller has fixed; a new one, if not given.
    """
    return Envelope(
        id=message_id or new_id(),
        source=f"/{source}",
        type=type(message).__name__,
        time=rfc3339(at or datetime.now(UTC)),
        subject=app,
        correlationid=saga_id,
        appid=app_id,
        team=team,
        data=message.model_dump(mode="json"),
        version=type(message).VERSION,
        causationid=causation_id,
        sagastep=step,
        sagaattempt=attempt,
        fence=fence,
        traceparent=traceparent,
    )


def rfc3339(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-20T08:30:00.123Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def rfc3339_ms(at_ms: int) -> str:
    """RFC 3339 from milliseconds since 1970: a page of sagas has 500 of them."""
    at_s, ms = divmod(at_ms, 1000)
    return f"{_to_the_second(at_s)}.{ms:03d}Z"


@lru_cache(maxsize=1024)
def _to_the_second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).isoformat().removesuffix("+00:00")


class Catalog:
    """The message types of all services, by name. Built once, where a service is wired."""

    def __init__(self, types: Iterable[type[Message]]) -> None:
        """Take the types; two of one name are a programming error."""
        self._types: dict[str, type[Message]] = {}
        for message_type in types:
            if self._types.get(message_type.__name__, message_type) is not message_type:
                raise ValueError(f"two message types are called {message_type.__name__}")
            self._types[message_type.__name__] = message_type

    def __getitem__(self, name: str) -> type[Message]:
        """The type of that name.

        Raises:
            InvalidInput: No such type; the text lists what there is.
        """
        try:
            return self._types[name]
        except KeyError:
            raise InvalidInput(
                f"There is no message type {name!r}", todo=f"Known types: {', '.join(sorted(self._types))}."
            ) from None

    def __iter__(self) -> Any:
        """The types, by name."""
        return iter(sorted(self._types.values(), key=lambda each: each.__name__))

    def __contains__(self, name: object) -> bool:
        """Whether a type has that name."""
        return name in self._types

    def read(self, message: Envelope) -> Message:
        """The payload as its model.

        Raises:
            InvalidInput: Unknown type.
            pydantic.ValidationError: The data does not fit the model.
        """
        return self[message.type].model_validate(message.data)


def reason_of(error: Exception) -> str:
    """Return an error as it is kept with a dead letter: without the values of wrong fields, which may be secret."""
    if isinstance(error, KnarrError):
        return error.message
    if isinstance(error, ValidationError):
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return f"The data does not fit: {wrong}"
    return f"{type(error).__name__}: {error}"


__all__ = [
    "Catalog",
    "Command",
    "Envelope",
    "Event",
    "FailureEvent",
    "Field",
    "Message",
    "Payload",
    "UndoFailed",
    "UndoneEvent",
    "WorkReported",
    "envelope",
    "new_id",
    "reason_of",
    "rfc3339",
    "rfc3339_ms",
]
