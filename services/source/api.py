"""`/sources/{digest}`: archives out, for the builder; uploads in, for the webhook. Services only."""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from seedwork.chassis.auth import require
from seedwork.chassis.body import stream_limited
from seedwork.errors import NotFound
from seedwork.threads import in_thread
from services.source.archives import Archives
from services.source.uploads import Uploads

_CHUNK_BYTES = 256 * 1024
_GZIP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Stored(BaseModel):
    """An upload that is safe on disk."""

    digest: str
    size_bytes: int


def router(*, archives: Archives, uploads: Uploads, upload_max_bytes: int) -> APIRouter:
    """The routes of `source`."""
    routes = APIRouter(prefix="/sources", tags=["sources"], dependencies=[Depends(require("service"))])

    @routes.get(
        "/{digest}",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-tar": {}, "application/gzip": {}}}},
    )
    async def get_source(digest: str) -> StreamingResponse:
        """The archive's bytes (`application/x-tar`), or an upload's as they came (`application/gzip`)."""
        try:
            file, media_type = await in_thread(lambda _: archives.open(digest)), "application/x-tar"
        except NotFound as error:
            with contextlib.suppress(NotFound):
                upload = await in_thread(lambda _: uploads.open(digest))
                return _streamed(upload, "application/gzip")
            raise error from None
        return _streamed(file, media_type)

    @routes.put("/{digest}", status_code=201, openapi_extra=_GZIP_BODY)
    async def put_source(digest: str, request: Request) -> Stored:
        """Store an upload (a tar.gz whose SHA-256 is in the path); with the 201 it is on disk."""
        size = await uploads.store(digest, stream_limited(request, upload_max_bytes))
        return Stored(digest=digest, size_bytes=size)

    return routes


def _streamed(file: BinaryIO, media_type: str) -> StreamingResponse:
    headers = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
    return StreamingResponse(_pieces(file), media_type=media_type, headers=headers)


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await in_thread(lambda _: file.read(_CHUNK_BYTES)):
            yield piece
