"""A saga's state as JSON and back: what stands in its row, and a log read as a history again.

`from_json(*to_json(state)) == state`; the origin stands apart, since it never changes. A field that has its default is
left out, so that rows stay small and a field added later reads as its default from an older row.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any

import orjson

from seedwork.decide import decide
from seedwork.frozen import changed
from seedwork.lanes import Lane
from seedwork.saga import (
    Answered,
    Definitions,
    Input,
    LaneAwaited,
    LaneGranted,
    Origin,
    Pause,
    Pressed,
    SagaState,
    Started,
    StepState,
    Superseded,
    TimerFired,
    Wait,
)

_NOTICES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Input]] = {
    "LaneGranted": lambda _, common: LaneGranted(**common),
    "LaneAwaited": lambda payload, common: LaneAwaited(by=payload["by"], **common),
    "Superseded": lambda payload, common: Superseded(by=payload["by"], **common),
}


class _Shape:
    """The fields of a dataclass that are written, each if it has not its default."""

    def __init__(self, kind: type[Any], *, without: tuple[str, ...] = ()) -> None:
        chosen = [each for each in fields(kind) if each.name not in without]
        self._names = tuple(each.name for each in chosen)
        self._defaults = tuple(None if each.default is MISSING else each.default for each in chosen)
        self._values = attrgetter(*self._names)

    def record(self, value: Any) -> dict[str, Any]:
        """As a dict."""
        values = zip(self._names, self._values(value), self._defaults, strict=True)
        return {name: found for name, found, default in values if found is not default and found != default}


_ORIGIN = _Shape(Origin)
_STEP = _Shape(StepState)
_SAGA = _Shape(SagaState, without=("origin", "steps", "pause", "wait", "left_over"))


def origin_to_json(origin: Origin) -> str:
    """What never changes, as one line of JSON."""
    return orjson.dumps(_ORIGIN.record(origin)).decode()


def body_to_json(saga: SagaState) -> str:
    """The rest of the state, as one line of JSON."""
    record = _SAGA.record(saga)
    record["steps"] = [_STEP.record(step) for step in saga.steps]
    if saga.wait is not None:
        wait = saga.wait
        record["wait"] = [wait.kind, wait.since_ms, wait.due_ms, wait.note]
    if saga.pause is not None:
        record["pause"] = [saga.pause.by, saga.pause.since_ms, saga.pause.why]
    if saga.left_over:
        record["left_over"] = saga.left_over
    return orjson.dumps(record).decode()


def to_json(saga: SagaState) -> tuple[str, str]:
    """Origin and body."""
    return origin_to_json(saga.origin), body_to_json(saga)


def from_json(origin: str, body: str) -> SagaState:
    """The state from its row."""
    record = orjson.loads(body)
    wait, pause = record.pop("wait", None), record.pop("pause", None)
    return SagaState(
        origin=Origin(**orjson.loads(origin)),
        steps=tuple([StepState(**step) for step in record.pop("steps")]),
        wait=Wait(kind=wait[0], since_ms=wait[1], due_ms=wait[2], note=wait[3]) if wait else None,
        pause=Pause(by=pause[0], since_ms=pause[1], why=pause[2]) if pause else None,
        left_over=tuple(record.pop("left_over", ())),
        **record,
    )


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
    return changed(saga, wait=changed(saga.wait, due_ms=told["due_ms"], note=told["last_report"]))


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
