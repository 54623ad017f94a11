"""How sagas and log entries look to clients (DESIGN §6)."""

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field

from seedwork.messages import rfc3339_ms
from seedwork.saga import Definitions, SagaState, StepState


class StepError(BaseModel):
    """Why the latest attempt failed."""

    code: str
    message: str
    retryable: bool
    log_tail: list[str]
    attempt: int
    at: str


class StepShape(BaseModel):
    """A step; `attempts` counts those forward, `undo_attempts` those of its undo."""

    name: str
    state: str
    attempts: int
    undo_attempts: int
    started_at: str | None
    ended_at: str | None
    error: StepError | None


class WaitingFor(BaseModel):
    """What has to happen next, and who has to do it."""

    what: Literal["answer", "timer", "lane", "operator"]
    from_: str | None = Field(serialization_alias="from")
    """A service (answer), a step (timer), a saga (lane), a person who paused it (operator)."""
    since: str
    until: str | None
    note: str


class LeftOver(BaseModel):
    """What a person decided to leave."""

    what: str
    where: str


class SagaShape(BaseModel):
    """A saga as it stands."""

    id: str
    saga: str
    definition: str
    app: str
    app_id: str
    team: str
    commit: str | None
    ref: str | None
    source_digest: str | None
    trigger: str
    number: int | None
    fence: int | None
    state: str
    direction: str
    held: bool
    reason: str | None
    superseded_by: str | None
    parent_id: str | None
    linked_id: str | None
    needs_attention: bool
    left_over: list[LeftOver]
    created_at: str
    updated_at: str
    steps: list[StepShape]
    waiting_for: WaitingFor | None


class EntryShape(BaseModel):
    """One entry of a saga's log."""

    seq: int
    at: str
    direction: Literal["in", "out", "timer", "operator"]
    type: str
    message_id: str | None
    causation_id: str | None
    step: str | None
    attempt: int | None
    payload: dict[str, Any]
    state: str


def saga_shape(saga: SagaState, definitions: Definitions, holder: SagaState | None = None) -> SagaShape:
    """A saga for a client.

    Args:
        saga: As it stands.
        definitions: With its own, if it has not ended.
        holder: Who has the lane that it waits for, where that is known.
    """
    origin = saga.origin
    return SagaShape(
        id=origin.saga_id,
        saga=origin.saga,
        definition=origin.definition,
        app=origin.app,
        app_id=origin.app_id,
        team=origin.team,
        commit=saga.commit,
        ref=origin.data.get("ref"),
        source_digest=origin.data.get("source_digest"),
        trigger=origin.trigger,
        number=origin.number,
        fence=saga.fence,
        state=saga.state,
        direction=saga.direction,
        held=saga.held,
        reason=saga.reason,
        superseded_by=saga.superseded_by,
        parent_id=origin.parent_id,
        linked_id=saga.linked_id,
        needs_attention=saga.needs_attention,
        left_over=[LeftOver(**each) for each in saga.left_over],
        created_at=rfc3339_ms(origin.created_ms),
        updated_at=rfc3339_ms(saga.updated_ms),
        steps=[_step(each) for each in saga.steps],
        waiting_for=waiting_for(saga, definitions, holder),
    )


def entry_shape(row: Mapping[str, Any]) -> EntryShape:
    """A row of the log for a client."""
    return EntryShape(
        seq=row["seq"],
        at=rfc3339_ms(row["at_ms"]),
        direction=row["direction"],
        type=row["type"],
        message_id=row["message_id"],
        causation_id=row["causation_id"],
        step=row["step"],
        attempt=row["attempt"],
        payload=orjson.loads(row["payload"]),
        state=row["state"],
    )


def waiting_for(saga: SagaState, definitions: Definitions, holder: SagaState | None = None) -> WaitingFor | None:
    """What this saga waits for; None once it has ended."""
    if saga.ended:
        return None
    if saga.state == "QUEUED":
        return _wait("lane", holder.id if holder else None, saga.origin.created_ms, note=_of_holder(holder))
    if saga.needs_attention or saga.pause is not None:
        return _for_a_person(saga)
    return _for_a_step(saga, definitions)


def _for_a_person(saga: SagaState) -> WaitingFor:
    wait, step, pause = saga.wait, saga.current, saga.pause
    if saga.state == "STUCK":
        since_ms = step.ended_ms if step and step.ended_ms else saga.updated_ms
        return _wait("operator", None, since_ms, note=f"retry or skip: {_error(step)}")
    if saga.held:
        since_ms, until_ms = (wait.since_ms, wait.due_ms) if wait else (saga.updated_ms, None)
        by = f" (kept by {pause.by})" if pause else ""
        return _wait(
            "operator", pause.by if pause else None, since_ms, until_ms, note=f"retry or cancel{by}: {_error(step)}"
        )
    if pause is None:
        raise ValueError(f"saga {saga.id} waits for nobody")
    note = f"paused by {pause.by}" + (f": {pause.why}" if pause.why else "")
    return _wait("operator", pause.by, pause.since_ms, note=note)


def _for_a_step(saga: SagaState, definitions: Definitions) -> WaitingFor | None:
    wait, step = saga.wait, saga.current
    if wait is None or step is None:
        return None
    definition = definitions[saga.origin.definition]
    defined = definition.steps[definition.positions[step.name]]
    if wait.kind == "retry":
        allowed = defined.retry if saga.direction == "forward" else defined.undo_retry
        note = f"attempt {step.tries + 1} of {allowed.attempts} after: {_error(step)}"
        return _wait("timer", step.name, wait.since_ms, wait.due_ms, note=note)
    return _wait("answer", defined.participant, wait.since_ms, wait.due_ms, note=wait.note)


def _wait(
    what: Literal["answer", "timer", "lane", "operator"],
    who: str | None,
    since_ms: int,
    until_ms: int | None = None,
    *,
    note: str = "",
) -> WaitingFor:
    until = rfc3339_ms(until_ms) if until_ms is not None else None
    return WaitingFor(what=what, from_=who, since=rfc3339_ms(since_ms), until=until, note=note)


def _of_holder(holder: SagaState | None) -> str:
    if holder is None:
        return "about to begin"
    if holder.pause is not None:
        return f"the {holder.origin.saga} before it is paused by {holder.pause.by}"
    return f"the {holder.origin.saga} before it is {holder.state}"


def _error(step: StepState | None) -> str:
    return str(step.error["message"]) if step is not None and step.error is not None else "no answer"


def _step(step: StepState) -> StepShape:
    error = step.error
    return StepShape(
        name=step.name,
        state=step.state,
        attempts=step.attempt - step.undo_attempts,
        undo_attempts=step.undo_attempts,
        started_at=rfc3339_ms(step.started_ms) if step.started_ms is not None else None,
        ended_at=rfc3339_ms(step.ended_ms) if step.ended_ms is not None else None,
        error=StepError(
            code=error["code"],
            message=error["message"],
            retryable=error["retryable"],
            log_tail=list(error["log_tail"]),
            attempt=error["attempt"],
            at=rfc3339_ms(error["at_ms"]),
        )
        if error is not None
        else None,
    )
