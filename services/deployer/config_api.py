"""HTTP: config vars, their scopes, and the audit of those who read their values."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Response
from pydantic import BaseModel, StrictStr

from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.paging import Page, PagingQuery, page_of
from seedwork.errors import InvalidInput, NotAllowed
from seedwork.masking import MASK
from seedwork.messages import rfc3339_ms
from seedwork.unit_of_work import Database
from services.deployer import audit
from services.deployer.requests import Requests

Reader = Annotated[Caller, Depends(require("read"))]
Operator = Annotated[Caller, Depends(require("deploy"))]


class SagaStarted(BaseModel):
    """A saga was started, or (`saga_id` null) none was needed."""

    id: str | None
    saga_id: str | None
    config_version: int
    changed: bool = True
    """False: the values are there already; nothing was written."""


class ShownEntry(BaseModel):
    """One reading of secrets."""

    at: str
    team: str
    app: str
    app_id: str
    by: str
    """Name of the token."""
    what: str


def add_config(routes: APIRouter, db: Database, requests: Requests, started: Any) -> None:
    """Add the routes of config vars.

    Args:
        routes: Where to.
        db: The service's database.
        requests: Takes requests for releases.
        started: Makes the answer for a saga that was started.
    """
    _add_config(routes, db, requests, started)
    _add_scopes(routes, requests, started)
    _add_audit(routes, db, requests)


def _add_config(routes: APIRouter, db: Database, requests: Requests, started: Any) -> None:
    @routes.get("/apps/{app}/config", summary="The newest config vars; values are masked unless revealed")
    async def config(
        app: str,
        caller: Reader,
        reveal: bool = False,
        scope: Annotated[Literal["build"] | None, Query(description="Only what a build of the app gets.")] = None,
    ) -> dict[str, str]:
        if reveal and not caller.may("reveal"):
            raise NotAllowed(
                f"The token {caller.name!r} may not see config values",
                why="`reveal=1` needs the scope 'reveal'",
                todo="Use a token that has it, or leave `reveal` out to see the names.",
            )
        found = await requests.app(app, caller)
        values = await requests.shown_config(found, scope=scope)
        if reveal and values and "service" not in caller.scopes:  # the builder gets them for each build
            names = ", ".join(sorted(values))
            await db.write(lambda conn: audit.record(conn, found, caller, f"read the values of {names}"))
        return dict(sorted((name, value if reveal else MASK) for name, value in values.items()))

    @routes.patch("/apps/{app}/config", summary="Set (a text) and remove (null) config vars")
    async def change(
        app: str,
        wanted: Annotated[dict[str, StrictStr | None], Body(examples=[{"GREETING": "hello", "OLD": None}])],
        caller: Operator,
        response: Response,
    ) -> SagaStarted:
        if not wanted:
            raise InvalidInput("No config var is named", todo="Name one: `knarr config set APP GREETING=hello`")
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.change_config(found, wanted, caller), response)
        return result


def _add_scopes(routes: APIRouter, requests: Requests, started: Any) -> None:
    @routes.get("/apps/{app}/config/scopes", summary="Scope of each config var that is not for builds and instances")
    async def scopes(app: str, caller: Reader) -> dict[str, str]:
        _, config = await requests.config(await requests.app(app, caller))
        return dict(sorted(config.scopes.items()))

    @routes.patch("/apps/{app}/config/scopes", summary="Say who gets config vars: `build`, `run` or `both`")
    async def change(
        app: str,
        wanted: Annotated[dict[str, StrictStr], Body(examples=[{"NEXT_PUBLIC_API": "build"}])],
        caller: Operator,
        response: Response,
    ) -> SagaStarted:
        if not wanted:
            raise InvalidInput(
                "No config var is named", todo="Name one: `knarr config set APP --scope build NAME=value`"
            )
        found = await requests.app(app, caller)
        result: SagaStarted = started(await requests.change_scopes(found, wanted, caller), response)
        return result


def _add_audit(routes: APIRouter, db: Database, requests: Requests) -> None:
    @routes.get("/audit", summary="Who read values of config vars, newest first")
    async def listed(
        caller: Annotated[Caller, Depends(require("admin"))],
        paging: PagingQuery,
        app: Annotated[str | None, Query(max_length=100, description="Of this app only, by name or id.")] = None,
    ) -> Page[ShownEntry]:
        app_id = (await requests.app(app, caller)).app_id if app else None
        below = paging.after("id", str)
        rows = await db.read(
            lambda conn: audit.page(conn, caller.access, app_id=app_id, below=below, limit=paging.limit + 1)
        )
        return page_of(rows, paging, key=lambda row: {"id": row.entry_id}, show=_entry)


def _entry(entry: audit.Entry) -> ShownEntry:
    return ShownEntry(
        at=rfc3339_ms(entry.at_ms), team=entry.team, app=entry.app, app_id=entry.app_id, by=entry.by, what=entry.what
    )
