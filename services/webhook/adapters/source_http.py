"""`SourceArchive` over HTTP: `PUT /sources/{digest}` of the source service, streamed from disk."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2

from seedwork.chassis.http import raise_for_problem

_CHUNK_BYTES = 256 * 1024
_TIMEOUT = httpx2.Timeout(300.0, connect=5.0)
"""Seconds: the source service answers when the archive is on its disk and looked through."""


class HttpSourceArchive:
    """Puts archives into the source service."""

    def __init__(self, client: Callable[[str], httpx2.AsyncClient], base_url: str) -> None:
        """Take what makes a client for a base URL, and the source service's."""
        self._client = client
        self._base_url = base_url

    async def put(self, digest: str, archive: Path) -> None:
        """Store the file under its digest. See `SourceArchive`."""
        size_bytes = (await asyncio.to_thread(archive.stat)).st_size
        headers = {"Content-Type": "application/gzip", "Content-Length": str(size_bytes)}
        async with self._client(self._base_url) as client:
            response = await client.put(
                f"/sources/{digest}", content=_chunks(archive), headers=headers, timeout=_TIMEOUT
            )
        raise_for_problem(response)


async def _chunks(archive: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(archive.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
    finally:
        await asyncio.to_thread(file.close)
