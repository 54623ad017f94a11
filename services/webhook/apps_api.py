"""Apps over HTTP: made, shown, changed, held, removed."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row

from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.paging import Page, PagingQuery, page_of
from seedwork.messages import rfc3339_ms
from services.webhook.app_settings import settings_of
from services.webhook.apps import Apps, NewApp

Reader = Annotated[Caller, Depends(require("read"))]
Deployer = Annotated[Caller, Depends(require("deploy"))]


class AppSettings(BaseModel):
    """How an app is built and observed; null means that it is detected, or the platform's default."""

    builder: str | None = Field(default=None, description="`layers`, `buildx` or `buildpacks`.")
    dockerfile: str | None = Field(default=None, description="Path of the Dockerfile, relative to the app's root.")
    docker_target: str | None = Field(default=None, description="Stage of the Dockerfile that is built.")
    docker_args: tuple[str, ...] | None = Field(
        default=None, description="Names of config vars that the Dockerfile gets as build arguments."
    )
    watch: tuple[str, ...] | None = Field(
        default=None,
        description="Patterns like those of .gitignore, relative to the repository: a change of a file that matches"
        " deploys the app, beside changes under its root.",
    )
    observe_s: float | None = Field(default=None, description="Seconds of the step `observe`; 0: off.")


class AppWanted(AppSettings):
    """A new app; all but the name has a default."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Lower-case letters, digits and dashes, as it stands in host names.")
    repository: str | None = Field(default=None, description="`owner/name`; none: deployed by upload only.")
    clone_url: str | None = Field(default=None, description="Where to clone from, without credentials; GitHub's.")
    ref: str | None = Field(default=None, description="The branch that it follows; none: the repository's default.")
    root: str = Field(default=".", description="The folder of the repository in which the app is.")
    webhook_secret: str | None = Field(default=None, description="16 characters or more; made, if left out.")


class AppChanges(AppSettings):
    """What to change; null means the default, and a new secret."""

    model_config = ConfigDict(extra="forbid")

    repository: str | None = None
    clone_url: str | None = None
    ref: str | None = None
    root: str | None = None
    webhook_secret: str | None = None


class Polling(BaseModel):
    """How asking for the app's ref goes."""

    failures: int
    """In a row."""
    error: str | None


class AutoDeploy(BaseModel):
    """Whether pushes and polls are deployed."""

    on: bool
    since: str | None = None
    """Time of the hold."""
    by: str | None = None
    """Name of the token that holds it; empty: the platform."""
    why: str | None = None
    waiting_commit: str | None = None
    """Newest commit that was not deployed because of the hold."""


class App(AppSettings):
    """An app as the intake knows it."""

    id: str
    name: str
    team: str
    repository: str | None
    clone_url: str | None
    ref: str
    root: str
    state: Literal["active", "removing"]
    created_at: str
    polling: Polling
    auto_deploy: AutoDeploy
    docker_args: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()


class AppWithSecret(App):
    """An app, and its webhook secret: shown once."""

    webhook_secret: str
    note: str | None = None
    """What must be known about the new app, for example that its default branch could not be asked for."""


class HoldWanted(BaseModel):
    """Why automatic deployment is held."""

    model_config = ConfigDict(extra="forbid")

    why: str = Field(default="", max_length=200, description="Shown with the app and its deliveries.")


class Released(App):
    """An app whose hold has ended."""

    waiting_commit: str | None
    """Newest commit that was not deployed because of the hold; null: none came."""


class SagaStarted(BaseModel):
    """A saga has begun; `Location` says where to look."""

    id: str
    saga_id: str


def add_apps(routes: APIRouter, apps: Apps, location: Callable[[str], str]) -> None:
    """Add the routes of apps.

    Args:
        routes: Where to.
        apps: Keeps apps.
        location: Makes the address of a saga.
    """

    @routes.post("/apps", status_code=201, tags=["apps"])
    async def createapp_shown(wanted: AppWanted, caller: Deployer, response: Response) -> AppWithSecret:
        """Make an app. Its webhook secret is in the answer, and nowhere else afterwards."""
        app, secret, note = await apps.create(_new_app(wanted, caller.team))
        response.headers["Location"] = f"/apps/{app.name}"
        return AppWithSecret(**app_shown(app).model_dump(), webhook_secret=secret, note=note)

    @routes.get("/apps", tags=["apps"])
    async def list_apps(caller: Reader, paging: PagingQuery) -> Page[App]:
        """The apps of the caller's teams, by name."""
        rows = await apps.page(paging, caller.access)
        return page_of(rows, paging, key=lambda row: {"name": row.name, "id": row.app_id}, show=app_shown)

    @routes.get("/apps/{app}", tags=["apps"])
    async def getapp_shown(app: str, caller: Reader) -> App:
        """One app, by its name or id."""
        return app_shown(await apps.get(app, caller))

    @routes.patch("/apps/{app}", tags=["apps"])
    async def changeapp_shown(app: str, changes: AppChanges, caller: Deployer) -> App | AppWithSecret:
        """Change an app. A new webhook secret is in the answer, and nowhere else afterwards."""
        row, secret = await apps.change(app, caller, changes.model_dump(exclude_unset=True))
        shown = app_shown(row)
        return shown if secret is None else AppWithSecret(**shown.model_dump(), webhook_secret=secret)

    @routes.delete("/apps/{app}", status_code=202, tags=["apps"])
    async def removeapp_shown(app: str, caller: Deployer, response: Response) -> SagaStarted:
        """Remove an app with all that it has; asked again, the same saga answers."""
        saga_id = await apps.remove(app, caller)
        response.headers["Location"] = location(saga_id)
        return SagaStarted(id=saga_id, saga_id=saga_id)

    _add_holds(routes, apps)


def _add_holds(routes: APIRouter, apps: Apps) -> None:
    @routes.post("/apps/{app}/hold", tags=["apps"])
    async def hold_app(app: str, caller: Deployer, wanted: HoldWanted | None = None) -> App:
        """Hold automatic deployment: pushes are recorded and not deployed until the app is released."""
        why = wanted.why if wanted else ""
        return app_shown(await apps.hold(app, caller, why=why))

    @routes.post("/apps/{app}/release", tags=["apps"])
    async def release_app(app: str, caller: Deployer) -> Released:
        """End the hold. The next poll deploys the tip of the ref, where it is a commit that was not deployed yet."""
        row, waiting = await apps.release(app, caller)
        return Released(**app_shown(row).model_dump(), waiting_commit=waiting)


def _new_app(wanted: AppWanted, team: str) -> NewApp:
    fields = wanted.model_dump(exclude_unset=True)
    settings = {name: fields.pop(name) for name in AppSettings.model_fields if name in fields}
    return NewApp(team=team, settings=settings, **fields)


def app_shown(row: Row[Any]) -> App:
    """Return an app's row as it is shown."""
    held = row.held_ms is not None
    return App(
        id=row.app_id,
        name=row.name,
        team=row.team,
        repository=row.repository,
        clone_url=row.clone_url,
        ref=row.ref,
        root=row.root,
        state=row.state,
        created_at=rfc3339_ms(row.created_ms),
        polling=Polling(failures=row.poll_failures, error=row.poll_error),
        auto_deploy=AutoDeploy(
            on=not held,
            since=rfc3339_ms(row.held_ms) if held else None,
            by=row.held_by,
            why=row.held_why,
            waiting_commit=row.held_commit,
        ),
        observe_s=row.observe_s,
        **settings_of(row).model_dump(),
    )
