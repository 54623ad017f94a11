"""What people see of sagas and may do to them (DESIGN §6): lists, states, logs, a live stream, verbs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field

from seedwork.access import Access, Caller
from seedwork.chassis.auth import require
from seedwork.chassis.paging import MAX_INTEGER, Page, PagingQuery, page_of
from seedwork.chassis.streams import until
from seedwork.errors import InvalidInput
from seedwork.saga import Definitions, State, VerbName
from seedwork.unit_of_work import Database
from services.saga_coordinator.engine import Engine
from services.saga_coordinator.feed import Feed
from services.saga_coordinator.queries import Filters, Found, list_sagas, log_page, one_saga, unknown_saga
from services.saga_coordinator.shapes import EntryShape, SagaShape, entry_shape, saga_shape

HEARTBEAT_S = 10.0
"""How often a silent stream says that it is alive."""
STREAM_PAGE = 200

Reader = Annotated[Caller, Depends(require("read"))]
Operator = Annotated[Caller, Depends(require("deploy"))]
SinceUntil = Annotated[AwareDatetime | None, Query(description="RFC 3339, by the saga's start.")]


class Press(BaseModel):
    """Why, and whether against the order of deployments."""

    reason: str = Field(default="", max_length=1000)
    force: bool = Field(default=False, description="`retry` also what is older than what is live.")


def router(*, db: Database, engine: Engine, feed: Feed, definitions: Definitions, stopping: asyncio.Event) -> APIRouter:
    """The routes under `/sagas`; `stopping` ends streams."""
    routes = APIRouter(prefix="/sagas", tags=["sagas"])

    def shape(found: Found) -> SagaShape:
        return saga_shape(found.saga, definitions, found.holder)

    async def look(saga_id: str, access: Access) -> Found:
        found = await db.read(lambda conn: one_saga(conn, saga_id, access))
        if found is None:
            raise unknown_saga(saga_id)
        return found

    @routes.get("", summary="Sagas, newest first")
    async def sagas(
        *,
        caller: Reader,
        paging: PagingQuery,
        state: Annotated[State | None, Query()] = None,
        app: Annotated[str | None, Query(max_length=100, description="Name or id.")] = None,
        commit: Annotated[str | None, Query(max_length=64)] = None,
        step: Annotated[str | None, Query(max_length=64, description="Worked on now, or the one that failed.")] = None,
        needs: Annotated[Literal["attention"] | None, Query()] = None,
        since: SinceUntil = None,
        until: SinceUntil = None,
    ) -> Page[SagaShape]:
        filters = Filters(
            state=state,
            app=app,
            commit=commit,
            step=step,
            needs_attention=True if needs else None,
            since_ms=_ms(since),
            until_ms=_ms(until),
        )
        rows = await db.read(lambda conn: list_sagas(conn, filters, paging, caller.access))
        return page_of(rows, paging, key=_list_key, show=shape)

    @routes.get("/{saga_id}", summary="A saga as it stands")
    async def saga(saga_id: str, caller: Reader) -> SagaShape:
        return shape(await look(saga_id, caller.access))

    @routes.get("/{saga_id}/log", summary="Its log, oldest first")
    async def log(saga_id: str, caller: Reader, paging: PagingQuery) -> Page[EntryShape]:
        await look(saga_id, caller.access)
        after = paging.after("seq", int) or 0
        rows = await db.read(lambda conn: log_page(conn, saga_id, after, paging.limit + 1, caller.access))
        return page_of(rows, paging, key=_log_key, show=entry_shape)

    @routes.get(
        "/{saga_id}/stream",
        summary="Its log as it is written, as server-sent events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def stream(
        saga_id: str, caller: Reader, last_event_id: Annotated[str | None, Header(max_length=20)] = None
    ) -> StreamingResponse:
        await look(saga_id, caller.access)
        after = seq_of(last_event_id)
        events = until(stopping, _events(db, feed, saga_id, after, caller.access))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    @routes.post("/{saga_id}/{verb}", summary="pause, resume, retry, cancel, skip or compensate")
    async def press(
        saga_id: str, verb: VerbName, caller: Operator, response: Response, body: Press | None = None
    ) -> SagaShape:
        wish = body or Press()
        decided = await engine.press(
            saga_id, verb, access=caller.access, who=caller.name, why=wish.reason, force=wish.force
        )
        if verb in ("retry", "compensate") and decided.ended and decided.linked_id:
            response.headers["Location"] = f"/sagas/{decided.linked_id}"
        return shape(await look(saga_id, caller.access))

    return routes


async def _events(db: Database, feed: Feed, saga_id: str, after: int, access: Access) -> AsyncIterator[bytes]:
    """Entries after that one, then each new one, until the saga has ended and all of them were sent."""
    with feed.listening(saga_id) as bell:
        while True:
            bell.clear()
            found = await db.read(lambda conn: one_saga(conn, saga_id, access))
            seen = after
            rows = await db.read(lambda conn, seen=seen: log_page(conn, saga_id, seen, STREAM_PAGE, access))  # type: ignore[misc]
            for row in rows:
                after = row["seq"]
                yield f"id: {after}\nevent: log\ndata: {entry_shape(row).model_dump_json()}\n\n".encode()
            if len(rows) == STREAM_PAGE:
                continue
            if found is None or (found.saga.ended and after >= found.saga.seq):
                state = found.saga.state if found else None
                yield b"event: end\ndata: " + orjson.dumps({"saga_id": saga_id, "state": state}) + b"\n\n"
                return
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await bell.wait()
            except TimeoutError:
                yield b": still here\n\n"


def seq_of(last_event_id: str | None) -> int:
    """Return the number of the last entry that a client of a stream has seen; 0: none.

    Raises:
        InvalidInput: No log has an entry of that number.
    """
    if not last_event_id or not last_event_id.isascii() or not last_event_id.isdigit():
        return 0
    if int(last_event_id) > MAX_INTEGER:
        raise InvalidInput("Last-Event-ID is no event of this log", todo="Leave it out to read from the beginning.")
    return int(last_event_id)


def _ms(at: datetime | None) -> int | None:
    return int(at.astimezone(UTC).timestamp() * 1000) if at is not None else None


def _list_key(found: Found) -> dict[str, str | int]:
    return {"created_ms": found.saga.origin.created_ms, "id": found.saga.id}


def _log_key(row: Mapping[str, Any]) -> dict[str, str | int]:
    return {"seq": row["seq"]}
