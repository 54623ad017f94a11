"""Requests to put the current release of an app onto a newer run image, without its source.

Nothing is changed here but the database: `RebaseRequested` is left in the outbox under the id of the saga that it
starts. Only images that buildpacks built can be rebased, so the others are refused before anything begins.
"""

from fastapi import APIRouter, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.store import ImageStore
from seedwork.chassis.auth import Caller
from seedwork.errors import Conflict
from seedwork.messages import envelope, new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.deployer import apps, releases
from services.deployer.api import Operator
from services.deployer.apps import App
from services.deployer.config_api import SagaStarted
from services.deployer.contract import RebaseRequested
from services.deployer.image import buildpacks_layers
from services.deployer.requests import Asked, Requests

NOT_BUILDPACKS = "not_buildpacks"
"""Code of the refusal by which `knarr apps rebase --all` passes an app over."""


async def rebase(app: App, caller: Caller, *, db: Database, outbox: Outbox, images: ImageStore) -> Asked:
    """Ask for the current release on the builder's current run image.

    Raises:
        Conflict: Nothing is live, or buildpacks did not build what is.
        NotFound: The image is not in the store.
    """
    live = await db.read(lambda conn: releases.live(conn, app.app_id))
    if live is None:
        raise Conflict(
            f"{app.name} has no live release",
            why="nothing was deployed yet",
            todo=f"Deploy it first: `knarr deploy DIR --app {app.name}`",
            code=NOT_BUILDPACKS,
        )
    if buildpacks_layers(await images.get(live.repository, live.digest, tagged=False)) is None:
        raise Conflict(
            f"Release {live.number} of {app.name} cannot be rebased",
            why="its image was not built by buildpacks, so nothing says where the run image ends and the app begins",
            todo=f"Deploy it again: `knarr deploy DIR --app {app.name}` or `knarr deploy --app {app.name} --ref REF`",
            code=NOT_BUILDPACKS,
        )
    saga_id = new_id()
    event = RebaseRequested(
        app=app.name,
        repository=live.repository,
        digest=live.digest,
        commit=live.commit,
        requested_by=caller.name,
    )

    async def ask(conn: AsyncConnection) -> None:
        await apps.note_newest(conn, app.app_id, saga_id)
        await outbox.add(
            conn, [envelope(event, source="deployer", saga_id=saga_id, app_id=app.app_id, team=app.team, app=app.name)]
        )

    await db.write(ask)
    return Asked(saga_id=saga_id, config_version=live.config_version)


def router(*, db: Database, outbox: Outbox, images: ImageStore, requests: Requests, coordinator_url: str) -> APIRouter:
    """The route that starts a rebase."""
    routes = APIRouter(tags=["apps"])

    @routes.post("/apps/{app}/rebase", summary="Put the current release onto the current run image", status_code=202)
    async def start(app: str, caller: Operator, response: Response) -> SagaStarted:
        found = await requests.app(app, caller)
        asked = await rebase(found, caller, db=db, outbox=outbox, images=images)
        response.headers["Location"] = f"{coordinator_url}/sagas/{asked.saga_id}"
        return SagaStarted(id=asked.saga_id, saga_id=asked.saga_id, config_version=asked.config_version)

    return routes
