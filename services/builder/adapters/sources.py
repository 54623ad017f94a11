"""Archives from the `source` service over HTTP: streamed to disk, hashed on their way, nothing trusted."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx2

from seedwork.archives import disk_errors
from seedwork.chassis.http import raise_for_problem
from seedwork.errors import Unavailable


class HttpSourceArchive:
    """A `SourceArchive` behind `GET /sources/{digest}`.

    Args:
        client: Makes a client whose base URL is the source service, with the service token.
    """

    def __init__(self, client: Callable[[], httpx2.AsyncClient]) -> None:
        self._client = client

    async def download(self, digest: str, to: Path) -> int:
        """See `SourceArchive.download`."""
        async with self._client() as client, client.stream("GET", f"/sources/{digest}") as response:
            if not response.is_success:
                await response.aread()
                raise_for_problem(response)
            with to.open("xb") as file:
                found, size_bytes = await _copy(response, file)
        if found != digest:
            raise Unavailable(
                "The source archive arrived damaged",
                why=f"{size_bytes} bytes with the digest {found} came for {digest}",
            )
        return size_bytes


async def _copy(response: httpx2.Response, file: BinaryIO) -> tuple[str, int]:
    hashing = hashlib.sha256()
    size_bytes = 0
    async for piece in response.aiter_bytes(256 * 1024):
        await asyncio.to_thread(_write, file, hashing, piece)
        size_bytes += len(piece)
    return f"sha256:{hashing.hexdigest()}", size_bytes


def _write(file: BinaryIO, hashing: "hashlib._Hash", piece: bytes) -> None:
    hashing.update(piece)
    with disk_errors():
        file.write(piece)
