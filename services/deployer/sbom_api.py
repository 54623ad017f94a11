"""HTTP: the bill of materials (SBOM) of a release."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel

from ocistore.store import Image, ImageStore
from seedwork.chassis.auth import Caller
from seedwork.chassis.paging import MAX_INTEGER, Page
from seedwork.errors import Conflict, NotFound
from seedwork.unit_of_work import Database
from services.deployer import releases, sbom
from services.deployer.api import Reader
from services.deployer.requests import Requests

Number = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="Of the release.")]


class ShownDocument(BaseModel):
    """A document of the bill of materials."""

    name: str
    """Which buildpack and layer it is of."""
    format: sbom.Format
    media_type: str
    size_bytes: int | None
    """Null: it is made of the image when it is asked for."""


def router(*, db: Database, images: ImageStore, requests: Requests) -> APIRouter:
    """The routes of bills of materials."""
    routes = APIRouter(tags=["releases"])

    async def image_of(app: str, number: int, caller: Caller) -> Image:
        found = await requests.app(app, caller)
        release = await db.read(lambda conn: releases.numbered(conn, found.app_id, number))
        if release is None:
            raise NotFound(
                f"{found.name} has no release {number}", todo=f"Run `knarr releases {found.name}` to list them."
            )
        if release.state not in releases.KEPT_STATES:
            raise Conflict(
                f"The image of release {number} is not kept any more",
                why=f"the release is {release.state}",
                todo="Ask for a newer release, or keep more: KNARR_REGISTRY_KEEP.",
            )
        return await images.get(release.repository, release.digest, tagged=False)

    @routes.get("/apps/{app}/releases/{number}/sbom", summary="The documents of a release's bill of materials")
    async def listed(app: str, number: Number, caller: Reader) -> Page[ShownDocument]:
        found = await sbom.documents(await image_of(app, number, caller), images)
        return Page(
            items=[
                ShownDocument(
                    name=each.name,
                    format=each.format,
                    media_type=sbom.MEDIA_TYPES[each.format],
                    size_bytes=each.size_bytes,
                )
                for each in found
            ]
        )

    @routes.get(
        "/apps/{app}/releases/{number}/sbom/{kind}",
        summary="One document of a release's bill of materials",
        response_class=Response,
        responses={200: {"content": {media: {} for media in sbom.MEDIA_TYPES.values()}}},
    )
    async def one(
        app: str,
        number: Number,
        kind: sbom.Format,
        caller: Reader,
        name: Annotated[str | None, Query(max_length=500, description="Of the document, where there are more.")] = None,
    ) -> Response:
        content = await sbom.document(app, await image_of(app, number, caller), images, kind=kind, name=name)
        return Response(content, media_type=sbom.MEDIA_TYPES[kind])

    return routes
