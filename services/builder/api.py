"""`GET /builds/{saga_id}` and its log: what a person or the CLI asks of the builder."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.streams import until
from seedwork.clock import Clock
from seedwork.errors import NotFound
from seedwork.messages import rfc3339_ms
from services.builder.builds import Build, Builds
from services.builder.contract import BuiltLayer
from services.builder.logs import BuildLogs

_PIECE_BYTES = 64 * 1024
_LOOK_S = 0.2
"""Between two looks at a log that is followed: soon enough for a person, no load for a disk."""
NEXT_OFFSET = "X-Next-Offset"

Reader = Annotated[Caller, Depends(require("read"))]


class BuildView(BaseModel):
    """A build, its newest attempt."""

    saga_id: str
    app: str
    app_id: str
    commit: str | None = Field(description="Null for an uploaded archive.")
    state: Literal["running", "succeeded", "failed", "discarded"]
    digest: str | None = Field(description="Of the image's manifest.")
    layers: tuple[BuiltLayer, ...]
    error: str | None = Field(description="Why it failed, and what to do.")
    started_at: str
    ended_at: str | None
    log_bytes: int


def router(builds: Builds, logs: BuildLogs, clock: Clock, stopping: asyncio.Event) -> APIRouter:
    """The routes; `stopping` ends logs that are followed."""
    routes = APIRouter(tags=["builds"])

    @routes.get("/builds/{saga_id}", summary="A build")
    async def build(saga_id: str, caller: Reader) -> BuildView:
        await asyncio.to_thread(logs.path, saga_id)
        found = await builds.get(saga_id, caller.access)
        if found is None:
            raise _not_found(saga_id)
        return _view(found, await asyncio.to_thread(logs.size, saga_id))

    @routes.get(
        "/builds/{saga_id}/log",
        summary="A build's log",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/plain": {}},
                "description": "What was printed from `offset` on.",
                "headers": {NEXT_OFFSET: {"schema": {"type": "integer"}, "description": "Where to go on from."}},
            }
        },
    )
    async def log(
        saga_id: str,
        caller: Reader,
        offset: Annotated[int, Query(ge=0, le=2**62, description="Bytes to skip.")] = 0,
        follow: Annotated[bool, Query(description="Go on until the build has ended, or the service stops.")] = False,
    ) -> StreamingResponse:
        size = await asyncio.to_thread(logs.size, saga_id)
        if not await builds.visible(saga_id, caller.access):
            raise _not_found(saga_id)
        if not size and not await builds.goes_on(saga_id):
            raise _not_found(saga_id)
        lines = _read(logs, saga_id, offset, end=size)
        if follow:
            lines = until(stopping, _follow(builds, logs, clock, saga_id, offset))
        headers = {NEXT_OFFSET: str(max(offset, size)), "Cache-Control": "no-store"}
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=headers)

    return routes


async def _read(logs: BuildLogs, saga_id: str, offset: int, *, end: int) -> AsyncIterator[bytes]:
    while offset < end:
        piece = await asyncio.to_thread(logs.read, saga_id, offset, min(_PIECE_BYTES, end - offset))
        if not piece:
            return
        offset += len(piece)
        yield piece


async def _follow(builds: Builds, logs: BuildLogs, clock: Clock, saga_id: str, offset: int) -> AsyncIterator[bytes]:
    """What is there, then what comes; ends when the build has ended and everything was sent."""
    while True:
        goes_on = await builds.goes_on(saga_id)  # asked before the log is read: what was printed last is not missed
        size = await asyncio.to_thread(logs.size, saga_id)
        async for piece in _read(logs, saga_id, offset, end=size):
            offset += len(piece)
            yield piece
        if not goes_on:
            return
        await clock.sleep(_LOOK_S)


def _view(build: Build, log_bytes: int) -> BuildView:
    return BuildView(
        saga_id=build.saga_id,
        app=build.app,
        app_id=build.app_id,
        commit=build.commit,
        state=build.state,
        digest=build.digest,
        layers=build.layers,
        error=build.error,
        started_at=rfc3339_ms(build.started_ms),
        ended_at=rfc3339_ms(build.ended_ms) if build.ended_ms is not None else None,
        log_bytes=log_bytes,
    )


def _not_found(saga_id: str) -> NotFound:
    return NotFound(
        f"There is no build of {saga_id}",
        why="nothing was built for this saga, or its log was removed (KNARR_BUILD_LOG_KEEP_DAYS)",
        todo="Run `knarr deployments` to list what was deployed.",
    )
