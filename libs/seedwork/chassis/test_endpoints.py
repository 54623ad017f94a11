"""Put a message on the bus by hand: `POST /test/commands/{Type}` and `POST /test/events/{Type}`.

For trying things and for tests of a whole service. Only messages that this service takes or tells; what the body leaves
out is taken from the type's example. Without `KNARR_TEST_ENDPOINTS=true` there are no such routes. A message can name
any app, saga or image, so the routes need a token for every team: a team's own token is refused.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Body, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from seedwork.access import Caller
from seedwork.bus import Bus
from seedwork.chassis.auth import require
from seedwork.chassis.paging import MAX_INTEGER
from seedwork.chassis.tracing import current_traceparent
from seedwork.errors import InvalidInput, NotFound
from seedwork.messages import Command, Event, Message, envelope, new_id

Kind = type[Command] | type[Event]


def _as_message(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """Refuse what no message can hold: numbers beyond 64 bits, lone surrogates, nesting without end."""
    try:
        orjson.dumps(data)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return data


class TestMessage(BaseModel):
    """What to send; everything has a default."""

    __test__ = False  # not a pytest class
    model_config = ConfigDict(extra="forbid")

    saga_id: str | None = Field(default=None, max_length=36, description="A new saga id, if left out.")
    app_id: str | None = Field(default=None, max_length=36, description="A new app id, if left out.")
    step: str | None = Field(default=None, max_length=64, description="The saga's step; `test` for a command.")
    attempt: int = Field(default=1, ge=1, le=MAX_INTEGER)
    fence: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    data: Annotated[dict[str, Any] | None, AfterValidator(_as_message)] = Field(
        default=None, description="The payload; the type's example, if left out."
    )


class Sent(BaseModel):
    """It is on the bus."""

    status: Literal["ok"] = "ok"
    message_id: str
    saga_id: str


def router(*, service: str, bus: Bus, messages: Callable[[], Iterable[type[Message]]]) -> APIRouter:
    """The two routes.

    Args:
        service: The service's name, the `source` of its events.
        bus: Where messages go.
        messages: The types that may be sent, asked at each request, since handlers are wired after this.
    """
    routes = APIRouter(prefix="/test", tags=["test"])
    admin = Annotated[Caller, Depends(require("admin", "platform"))]
    body = Annotated[TestMessage | None, Body()]

    async def send(kind: Kind, name: str, message: TestMessage, caller: Caller) -> Sent:
        payload = _payload(_find(kind, name, messages()), message)
        made = envelope(
            payload,
            source=service,
            saga_id=message.saga_id or new_id(),
            app_id=message.app_id or new_id(),
            team=caller.team,
            app=str(getattr(payload, "app", "")),
            step=message.step or ("test" if kind is Command else None),
            attempt=message.attempt,
            fence=message.fence,
            traceparent=current_traceparent(),
        )
        await bus.publish([made])
        return Sent(message_id=made.id, saga_id=made.correlationid)

    @routes.post("/commands/{name}", summary="Send a command")
    async def command(name: str, caller: admin, message: body = None) -> Sent:
        return await send(Command, name, message or TestMessage(), caller)

    @routes.post("/events/{name}", summary="Send an event")
    async def event(name: str, caller: admin, message: body = None) -> Sent:
        return await send(Event, name, message or TestMessage(), caller)

    return routes


def _find(kind: Kind, name: str, messages: Iterable[type[Message]]) -> type[Message]:
    found = {each.__name__: each for each in messages if issubclass(each, kind)}
    if name not in found:
        noun = kind.__name__.lower()
        raise NotFound(
            f"This service knows no {noun} {name!r}", todo=f"Its {noun}s: {', '.join(sorted(found)) or 'none'}."
        )
    return found[name]


def _payload(message_type: type[Message], message: TestMessage) -> Message:
    try:
        return message_type.model_validate(dict(message_type.EXAMPLE) if message.data is None else message.data)
    except ValidationError as error:
        wrong = "; ".join(f"data.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidInput(f"The data is no {message_type.__name__}", why=wrong) from error
