"""HTTP: which images are published, and who holds them."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from seedwork.access import Caller
from seedwork.chassis.auth import require
from seedwork.chassis.paging import Page, Paging, PagingQuery, page_of
from seedwork.messages import rfc3339_ms
from services.registry.references import Published, Reference, References, tags_of


class PublishedImage(BaseModel):
    """An image that was published and read back."""

    app: str
    app_id: str
    team: str
    repository: str
    """In the image store: the image is `<repository>@<digest>`."""
    digest: str
    tags: list[str]
    """Commits whose newest image this is."""
    size_bytes: int
    """Manifest, config and layers together; layers that it shares with other images are counted here too."""
    published_at: str
    releases: list[int]
    """Numbers of the releases that hold it."""
    held_by: list[str]
    """The sagas that hold it, oldest first; those of `releases` among them."""


def router(references: References) -> APIRouter:
    """`GET /images`."""
    routes = APIRouter(tags=["images"])

    @routes.get("/images", summary="Published images, newest first")
    async def images(
        paging: PagingQuery,
        caller: Annotated[Caller, Depends(require("read"))],
        app: Annotated[str | None, Query(max_length=100, description="An app's name or id.")] = None,
    ) -> Page[PublishedImage]:
        rows = await references.published(
            access=caller.access,
            app=app,
            after=_after(paging),
            limit=paging.limit + 1,
        )
        holders = await references.of_images(rows)
        return page_of(rows, paging, key=_key, show=lambda row: _shown(row, holders))

    return routes


def _after(paging: Paging) -> tuple[int, str, str] | None:
    at_ms = paging.after("at_ms", int)
    digest, repository = paging.after("digest", str), paging.after("repository", str)
    if at_ms is None or digest is None or repository is None:
        return None
    return at_ms, digest, repository


def _key(row: Published) -> dict[str, str | int]:
    return {"at_ms": row.published_ms, "digest": row.digest, "repository": row.repository}


def _shown(row: Published, holders: Sequence[Reference]) -> PublishedImage:
    neighbours = [each for each in holders if each.repository == row.repository]
    ours = [each for each in neighbours if each.digest == row.digest]
    return PublishedImage(
        app=row.app,
        app_id=row.app_id,
        team=row.team,
        repository=row.repository,
        digest=row.digest,
        tags=list(tags_of(neighbours).get(row.digest, ())),
        size_bytes=row.size_bytes,
        published_at=rfc3339_ms(row.published_ms),
        releases=sorted(each.number for each in ours if each.number is not None),
        held_by=[each.saga_id for each in ours],
    )
