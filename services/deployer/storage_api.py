"""HTTP: volumes of apps. They are listed, added, read, replaced and deleted here."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StrictInt, StrictStr

from seedwork.access import Caller
from seedwork.archives import disk_errors
from seedwork.chassis.auth import require
from seedwork.chassis.body import stream_limited
from seedwork.chassis.paging import MAX_INTEGER, Page
from seedwork.errors import Conflict, InvalidInput, NotFound
from seedwork.messages import rfc3339_ms
from seedwork.unit_of_work import Database
from services.deployer import apps, releases, volumes
from services.deployer.apps import App
from services.deployer.errors import CannotRun
from services.deployer.ports import Runtime, Volumes
from services.deployer.requests import Requests
from services.deployer.volumes import KnownVolume, VolumeRemoval

Reader = Annotated[Caller, Depends(require("read"))]
Operator = Annotated[Caller, Depends(require("deploy"))]
Admin = Annotated[Caller, Depends(require("admin"))]


class NewVolume(BaseModel):
    """A volume that is asked for."""

    path: StrictStr = "/data"
    name: StrictStr | None = None
    """Null: the last part of the path."""
    size_bytes: Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)] | None = None


class ShownVolume(BaseModel):
    """A volume."""

    app_id: str
    app: str
    name: str
    path: str
    variable: str
    """Config var that holds the path."""
    size_bytes: int
    used_bytes: int | None
    """Null: not known, or never mounted."""
    state: str
    """`live`, or `leaving`: deleted as soon as no instance uses it."""
    orphan: bool
    """True: its app was removed."""
    created_at: str
    saga_id: str | None = None
    """The saga that starts instances with (or without) it; null: none was needed."""


def router(
    *, db: Database, requests: Requests, runtime: Runtime, provider: Volumes | None, removal: VolumeRemoval
) -> APIRouter:
    """Return the routes of volumes.

    Args:
        db: The service's database.
        requests: Finds apps, and starts releases.
        runtime: Lists instances.
        provider: Reads and replaces content; None: this runtime has no volumes.
        removal: Deletes volumes.
    """
    routes = APIRouter(tags=["storage"])
    _add_lists(routes, db, requests, provider)
    _add_changes(routes, db, requests, provider, removal)
    _add_content(routes, db, requests, runtime, provider)
    return routes


def _add_lists(routes: APIRouter, db: Database, requests: Requests, provider: Volumes | None) -> None:
    @routes.get("/storage", summary="All volumes, also those of apps that were removed")
    async def all_volumes(caller: Reader) -> Page[ShownVolume]:
        known = await db.read(lambda conn: volumes.visible(conn, caller.access))
        there = await db.read(apps.all_apps)
        return Page(items=[await _shown(each, provider, orphan=each.app_id not in there) for each in known])

    @routes.get("/apps/{app}/storage", summary="The app's volumes")
    async def of_app(app: str, caller: Reader) -> Page[ShownVolume]:
        found = await requests.app(app, caller)
        known = await db.read(lambda conn: volumes.of_app(conn, found.app_id))
        return Page(items=[await _shown(each, provider) for each in known])


def _add_changes(
    routes: APIRouter, db: Database, requests: Requests, provider: Volumes | None, removal: VolumeRemoval
) -> None:
    @routes.post("/apps/{app}/storage", summary="Add a volume; running instances are replaced", status_code=201)
    async def add(app: str, wanted: NewVolume, caller: Operator) -> ShownVolume:
        found = await requests.app(app, caller)
        _provided(provider)
        made = await db.write(
            lambda conn: volumes.add(conn, found, path=wanted.path, name=wanted.name, size_bytes=wanted.size_bytes)
        )
        return await _shown(made, provider, saga_id=await _restarted(db, requests, found, caller))

    @routes.delete("/storage/{app_id}/{name}", summary="Delete a volume with its content", status_code=202)
    async def delete(
        app_id: str, name: str, caller: Operator, confirm: Annotated[str, Query(description="The volume's name.")]
    ) -> ShownVolume:
        if confirm != name:
            raise InvalidInput(
                "The volume is not deleted",
                why=f"`confirm` must be {name!r}: its content would be lost",
                todo=f"Repeat the command with `--confirm {name}`.",
            )
        _provided(provider)
        known = await removal.mark(app_id, name, caller.access)
        app = await db.read(lambda conn: apps.find_app(conn, app_id, caller.access))
        saga_id = await _restarted(db, requests, app, caller) if app else None
        if saga_id is None:
            await removal.finish()
        return await _shown(known, None, orphan=app is None, saga_id=saga_id)


def _add_content(
    routes: APIRouter, db: Database, requests: Requests, runtime: Runtime, provider: Volumes | None
) -> None:
    async def volume_of(app: str, name: str, caller: Caller) -> KnownVolume:
        found = await requests.app(app, caller)
        known = await db.read(lambda conn: volumes.of_app(conn, found.app_id))
        for each in known:
            if each.name == name:
                return each
        raise NotFound(
            f"{found.name} has no volume {name[:100]!r}", todo=f"`knarr storage list {found.name}` lists them."
        )

    @routes.get("/apps/{app}/storage/{name}/content", summary="A tar archive of a volume's content")
    async def read(app: str, name: str, caller: Admin) -> StreamingResponse:
        known = await volume_of(app, name, caller)
        pieces = _provided(provider).read(known.volume)
        return StreamingResponse(pieces, media_type="application/x-tar", headers={"Cache-Control": "no-store"})

    @routes.put("/apps/{app}/storage/{name}/content", summary="Replace a volume's content", status_code=204)
    async def replace(app: str, name: str, caller: Admin, request: Request) -> Response:
        known = await volume_of(app, name, caller)
        using = _provided(provider)
        running = await runtime.instances(known.app_id)
        if running:
            raise Conflict(
                f"The content of {known.name} is not replaced",
                why=f"{len(running)} instances of {known.app} run and may write to it",
                todo=f"Stop the app first: `knarr stop {known.app}`.",
            )
        with disk_errors(), tempfile.TemporaryDirectory(prefix="knarr-import-") as folder:
            archive = Path(folder) / "content.tar"
            await _save(request, archive, size_bytes=known.size_bytes)
            await using.replace(known.volume, archive)
        return Response(status_code=204)


async def _save(request: Request, archive: Path, *, size_bytes: int) -> None:
    """Write the body to a file.

    Raises:
        TooLarge: It is larger than the volume.
        StorageFull: The disk has no room left.
    """
    limit = size_bytes + size_bytes // 10 + 1024**2  # headers and padding of the archive
    with archive.open("xb") as file:
        async for piece in stream_limited(request, limit):
            await asyncio.to_thread(file.write, piece)


async def _restarted(db: Database, requests: Requests, app: App, caller: Caller) -> str | None:
    """Replace the running instances; return the saga, or None: nothing runs."""
    live = await db.read(lambda conn: releases.live(conn, app.app_id))
    if live is None or not sum(live.formation.values()):
        return None
    return (await requests.restart(app, caller)).saga_id


async def _shown(
    known: KnownVolume, provider: Volumes | None, *, orphan: bool = False, saga_id: str | None = None
) -> ShownVolume:
    return ShownVolume(
        app_id=known.app_id,
        app=known.app,
        name=known.name,
        path=known.path,
        variable=known.volume.variable,
        size_bytes=known.size_bytes,
        used_bytes=await provider.used_bytes(known.volume) if provider else None,
        state=known.state,
        orphan=orphan,
        created_at=rfc3339_ms(known.created_ms),
        saga_id=saga_id,
    )


def _provided(provider: Volumes | None) -> Volumes:
    if provider is None:
        raise CannotRun("This runtime has no volumes", todo="Set KNARR_RUNTIME to process, docker or kubernetes.")
    return provider
