"""HTTP: what runs, and requests to run something else."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field, StrictInt

from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.paging import MAX_INTEGER, Page, PagingQuery, page_of
from seedwork.chassis.streams import until
from seedwork.clock import Clock
from seedwork.errors import InvalidInput
from seedwork.messages import rfc3339_ms
from seedwork.unit_of_work import Database
from services.deployer import addons, drifts, releases
from services.deployer.addons import KnownAddOn, Removal
from services.deployer.app_logs import Selection, selected
from services.deployer.config_api import SagaStarted, add_config
from services.deployer.drifts import KnownDrift
from services.deployer.ports import Instance, Runtime
from services.deployer.releases import KnownRelease
from services.deployer.requests import Asked, Requests
from services.deployer.state import AppState, has_address, state_of

Reader = Annotated[Caller, Depends(require("read"))]
Operator = Annotated[Caller, Depends(require("deploy"))]


class ShownInstance(BaseModel):
    """One copy of a process."""

    id: str
    process: str
    """`web.1`"""
    state: str
    """`starting`, `up`, `crashed`, `stopping`, `down` or `drifted`."""
    since: str
    release: int
    restarts: int
    next_start: str | None
    """Of a crashed instance: when it is started again; null: it waits for nothing."""
    note: str


class ShownApp(BaseModel):
    """An app as it runs."""

    id: str
    name: str
    team: str
    url: str | None
    """Null where nothing is routed, or no instance of `web` is wanted."""
    state: AppState
    reason: str
    """Of the state, for people; empty where the state says everything."""
    release: int | None
    saga_id: str | None
    """Of the current release."""
    digest: str | None
    commit: str | None
    health: str
    """`healthy`, `degraded` (some instances are not up), `starting`, `down` or `none` (nothing is live)."""
    note: str
    """Why it is not healthy, for people."""
    formation: dict[str, int]
    config_version: int | None
    drifts: list["ShownDrift"]
    """Differences between the release and what runs, newest first."""
    observing_until: str | None
    """End of the observation of the current release; null: it is not observed."""
    instances: list[ShownInstance]


class ShownDrift(BaseModel):
    """A difference between what the release wants and what runs."""

    what: str
    at: str
    repaired_at: str | None
    """Null: it is still there."""


class ShownRelease(BaseModel):
    """One release."""

    number: int
    app: str
    kind: str
    commit: str | None
    digest: str
    config_version: int
    formation: dict[str, int]
    manifest_hash: str
    saga_id: str
    state: str
    """`pending`, `live`, `superseded` (can be rolled back to), `undone` or `retired`."""
    created_at: str


class ShownAddOn(BaseModel):
    """A database or cache of the app."""

    name: str
    kind: str
    version: str | None
    state: str
    """`pending` (its first deployment is not live yet), `live` or `leaving`."""
    variable: str
    """The config var that has its URL."""
    created_at: str


class RollBack(BaseModel):
    """Which release comes back."""

    rollback_to: StrictInt = Field(ge=1, le=MAX_INTEGER)


def router(
    *,
    db: Database,
    requests: Requests,
    runtime: Runtime,
    removal: Removal,
    coordinator_url: str,
    clock: Clock,
    stopping: asyncio.Event,
) -> APIRouter:
    """All routes of the deployer.

    Args:
        db: The service's database.
        requests: Takes requests for releases.
        runtime: Says what runs.
        removal: Of add-ons.
        coordinator_url: Where sagas are looked at.
        clock: Of the service.
        stopping: Ends logs that are followed.
    """
    routes = APIRouter(tags=["apps"])

    def started(asked: Asked, response: Response) -> SagaStarted:
        if asked.saga_id:
            response.status_code = 202
            response.headers["Location"] = f"{coordinator_url}/sagas/{asked.saga_id}"
        return SagaStarted(
            id=asked.saga_id, saga_id=asked.saga_id, config_version=asked.config_version, changed=asked.changed
        )

    _add_apps(routes, db, requests, runtime, clock=clock, stopping=stopping)
    _add_releases(routes, db, requests, started)
    add_config(routes, db, requests, started)
    _add_addons(routes, db, requests, removal)
    return routes


def _add_apps(
    routes: APIRouter, db: Database, requests: Requests, runtime: Runtime, *, clock: Clock, stopping: asyncio.Event
) -> None:
    @routes.get("/apps/{app}", summary="The app's address, its live release and its instances")
    async def app(app: str, caller: Reader) -> ShownApp:
        found = await requests.app(app, caller)
        live = await db.read(lambda conn: releases.live(conn, found.app_id))
        route = await db.read(lambda conn: releases.route_of(conn, found.app_id))
        instances = await runtime.instances(found.app_id)
        trouble = await runtime.trouble(found.app_id)
        health, note = health_of(live, instances, trouble)
        until_ms = await db.read(lambda conn: releases.observing_until(conn, live.saga_id)) if live else None
        state, reason = state_of(live, instances, trouble, now_ms=clock.now_ms())
        return ShownApp(
            id=found.app_id,
            name=found.name,
            team=found.team,
            url=route.url if route and has_address(live) else None,
            drifts=[_drift(each) for each in await db.read(lambda conn: drifts.of_app(conn, found.app_id))],
            observing_until=None if until_ms is None or until_ms <= clock.now_ms() else rfc3339_ms(until_ms),
            state=state,
            reason=reason,
            release=live.number if live else None,
            saga_id=live.saga_id if live else None,
            digest=live.digest if live else None,
            commit=live.commit if live else None,
            health=health,
            note=note,
            formation=dict(live.formation) if live else {},
            config_version=live.config_version if live else None,
            instances=[_instance(each) for each in instances],
        )

    @routes.get("/apps/{app}/logs", summary="What the instances print", response_class=StreamingResponse)
    async def logs(
        app: str,
        caller: Reader,
        lines: Annotated[int, Query(ge=0, le=10_000, description="How many of the last lines.")] = 100,
        *,
        follow: Annotated[bool, Query(description="Go on with what comes.")] = False,
        process: Annotated[str | None, Query(description="Only of `web.1`, or of `web`: all its instances.")] = None,
        since: Annotated[AwareDatetime | None, Query(description="Only lines from this time on (RFC 3339).")] = None,
    ) -> StreamingResponse:
        found = await requests.app(app, caller)
        selection = Selection(process=process, since=since)
        pieces = until(stopping, selected(runtime, found.app_id, selection, lines=lines, follow=follow))
        return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})


def _add_releases(routes: APIRouter, db: Database, requests: Requests, started: Any) -> None:
    @routes.get("/apps/{app}/releases", summary="The app's releases, newest first")
    async def listed(app: str, caller: Reader, paging: PagingQuery) -> Page[ShownRelease]:
        found = await requests.app(app, caller)
        below = paging.after("number", int)
        rows = await db.read(lambda conn: releases.page(conn, found.app_id, below=below, limit=paging.limit + 1))
        return page_of(rows, paging, key=lambda row: {"number": row.number}, show=lambda row: _release(row, found.name))

    @routes.post("/apps/{app}/releases", summary="Roll back to an earlier release", status_code=202)
    async def roll_back(app: str, wanted: RollBack, caller: Operator, response: Response) -> SagaStarted:
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.roll_back(found, wanted.rollback_to, caller), response)
        return result

    @routes.patch("/apps/{app}/formation", summary="Change the number of instances", status_code=202)
    async def scale(
        app: str,
        wanted: Annotated[
            dict[str, Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]], Body(examples=[{"web": 2}])
        ],
        caller: Operator,
        response: Response,
    ) -> SagaStarted:
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.scale(found, wanted, caller), response)
        return result

    @routes.post("/apps/{app}/stop", summary="Stop all instances; releases, config and address stay")
    async def stop(app: str, caller: Operator, response: Response) -> SagaStarted:
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.stop(found, caller), response)
        return result

    @routes.post("/apps/{app}/start", summary="Start a stopped app with the instances that it had")
    async def start(app: str, caller: Operator, response: Response) -> SagaStarted:
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.start(found, caller), response)
        return result

    @routes.post("/apps/{app}/restart", summary="Replace all instances by fresh ones", status_code=202)
    async def restart(app: str, caller: Operator, response: Response) -> SagaStarted:
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.restart(found, caller), response)
        return result


def _add_addons(routes: APIRouter, db: Database, requests: Requests, removal: Removal) -> None:
    @routes.get("/apps/{app}/addons", summary="The app's add-ons")
    async def listed(app: str, caller: Reader) -> Page[ShownAddOn]:
        found = await requests.app(app, caller)
        known = await db.read(lambda conn: addons.of_app(conn, found.app_id))
        kinds = {each.kind for each in known}
        return Page(items=[_addon(each, kinds) for each in known])

    @routes.delete("/apps/{app}/addons/{name}", summary="Remove an add-on with its data", status_code=204)
    async def remove(
        app: str, name: str, caller: Operator, confirm: Annotated[str, Query(description="The add-on's name.")]
    ) -> None:
        found = await requests.app(app, caller)
        if confirm != name:
            raise InvalidInput("The add-on is not removed", why=f"`confirm` must be {name!r}: its data would be lost")
        await removal.wanted(found, name)


def health_of(live: KnownRelease | None, instances: Sequence[Instance], trouble: str) -> tuple[str, str]:
    """In one word, and why."""
    if live is None:
        return "none", trouble or "nothing was deployed yet"
    if trouble:
        return "down", trouble
    ours = [each for each in instances if each.saga_id == live.saga_id]
    wanted = sum(live.formation.values())
    up = sum(each.state == "up" for each in ours)
    if up >= wanted:
        return "healthy", "" if wanted else "scaled to no instance"
    note = next((each.note for each in ours if each.note), "")
    if up:
        return "degraded", note or f"{up} of {wanted} instances are up"
    if any(each.state == "crashed" for each in ours):
        return "down", note
    return "starting", note or "waiting for its instances"


def _drift(drift: KnownDrift) -> ShownDrift:
    return ShownDrift(
        what=drift.what,
        at=rfc3339_ms(drift.at_ms),
        repaired_at=None if drift.repaired_ms is None else rfc3339_ms(drift.repaired_ms),
    )


def _instance(instance: Instance) -> ShownInstance:
    return ShownInstance(
        id=instance.id,
        process=instance.process,
        state=instance.state,
        since=rfc3339_ms(instance.since_ms),
        release=instance.release,
        restarts=instance.restarts,
        next_start=None if instance.next_start_ms is None else rfc3339_ms(instance.next_start_ms),
        note=instance.note,
    )


def _addon(known: KnownAddOn, kinds: set[str]) -> ShownAddOn:
    return ShownAddOn(
        name=known.name,
        kind=known.kind,
        version=known.version,
        state=known.state,
        variable=addons.variable_of(known.kind, kinds),
        created_at=rfc3339_ms(known.created_ms),
    )


def _release(release: KnownRelease, app: str) -> ShownRelease:
    shown: Mapping[str, Any] = {
        name: getattr(release, name) for name in ShownRelease.model_fields if hasattr(release, name)
    }
    return ShownRelease(app=app, created_at=rfc3339_ms(release.created_ms), **shown)
