"""A saga's state as JSON and back: what stands in its row, and a log read as a history again.

`from_json(*to_json(state)) == state`; the origin stands apart, since it never changes. A field that has its default is
left out, so that rows stay small and a field added later reads as its default from an older row.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from msgspec import defstruct
from msgspec.json import Decoder, Encoder
from msgspec.structs import asdict, fields, replace

from seedwork.decide import decide
from seedwork.lanes import Lane
from seedwork.saga import (
    Answered,
    Definitions,
    Input,
    LaneAwaited,
    LaneGranted,
    Origin,
    Pressed,
    SagaState,
    Started,
    Superseded,
    TimerFired,
)

_NOTICES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Input]] = {
    "LaneGranted": lambda _, common: LaneGranted(**common),
    "LaneAwaited": lambda payload, common: LaneAwaited(by=payload["by"], **common),
    "Superseded": lambda payload, common: Superseded(by=payload["by"], **common),
}


_BODY = tuple(each for each in fields(SagaState) if each.name != "origin")
_Body: Any = defstruct(
    "Body",
    [(each.name, each.type) if each.required else (each.name, each.type, each.default) for each in _BODY],
    omit_defaults=True,
)
"""A saga's state without its origin."""
_body_of = attrgetter(*(each.name for each in _BODY))
_encode = Encoder().encode
_origin_from, _body_from = Decoder(Origin).decode, Decoder(_Body).decode


def origin_to_json(origin: Origin) -> str:
    """What never changes, as one line of JSON."""
    return _encode(origin).decode()


def body_to_json(saga: SagaState) -> str:
    """The rest of the state, as one line of JSON."""
    return _encode(_Body(*_body_of(saga))).decode()


def to_json(saga: SagaState) -> tuple[str, str]:
    """Origin and body."""
    return origin_to_json(saga.origin), body_to_json(saga)


def from_json(origin: str, body: str) -> SagaState:
    """The state from its row.

    Raises:
        msgspec.ValidationError: It is none.
    """
    return SagaState(origin=_origin_from(origin), **asdict(_body_from(body)))


def replay(definitions: Definitions, saga_id: str, entries: Iterable[Mapping[str, Any]]) -> list[SagaState]:
    """The states that a saga's log leads through, one for each entry that came in.

    Args:
        definitions: With the one that the saga began with.
        saga_id: Whose log it is.
        entries: Oldest first, as dicts with the fields of `Entry`; those of direction `out` are passed over.
    """
    saga: SagaState | None = None
    states: list[SagaState] = []
    for entry in entries:
        if entry["direction"] == "out":
            continue
        given = _input(saga_id, entry)
        if isinstance(given, TimerFired) and saga is not None:
            saga = _reported(saga, entry["payload"])
        key = given.origin.definition if isinstance(given, Started) else _known(saga).origin.definition
        saga = decide(definitions[key], saga, _lane(saga_id, saga, entry), given).saga
        states.append(saga)
    return states


def _reported(saga: SagaState, told: Mapping[str, Any]) -> SagaState:
    """As reports had left its wait when it was over: they are not in the log, what came of them is."""
    if saga.wait is None:
        return saga
    return replace(saga, wait=replace(saga.wait, due_ms=told["due_ms"], note=told["last_report"]))


def _known(saga: SagaState | None) -> SagaState:
    if saga is None:
        raise ValueError("the log does not begin with a starting event")
    return saga


def _lane(saga_id: str, saga: SagaState | None, entry: Mapping[str, Any]) -> Lane:
    """As it was seen; where the entry is silent, the saga had it and nobody waited."""
    seen = entry["context"].get("lane")
    if seen is not None:
        return Lane.from_record(seen)
    known = _known(saga)
    return Lane(app_id=known.origin.app_id, holder=saga_id, fence=known.fence or 0)


def _input(saga_id: str, entry: Mapping[str, Any]) -> Input:
    """What came in, as `decide` received it."""
    context, payload, kind = entry["context"], entry["payload"], entry["type"]
    common = {"at_ms": entry["at_ms"], "jitter": context.get("jitter", 1.0), "message_id": entry["message_id"]}
    if "origin" in context:
        origin = Origin(saga_id=saga_id, data=payload, **context["origin"])
        return Started(type=kind, origin=origin, causation_id=entry["causation_id"], **common)
    if entry["direction"] == "timer":
        return TimerFired(
            step=entry["step"], attempt=entry["attempt"], epoch=context["epoch"], kind=payload["kind"], **common
        )
    if entry["direction"] == "operator":
        return Pressed(
            verb=kind,
            who=payload["by"],
            why=payload["reason"],
            force=payload.get("force", False),
            new_id=context["new_id"],
            **common,
        )
    if kind in _NOTICES:
        return _NOTICES[kind](payload, common)
    return Answered(
        type=kind,
        data=payload,
        step=entry["step"],
        attempt=entry["attempt"],
        causation_id=entry["causation_id"],
        **common,
    )
