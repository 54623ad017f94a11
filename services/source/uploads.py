"""Uploaded archives: a stream of gzip bytes in, kept on disk under its digest until its time is over.

An upload is input, not work of a saga: no undo removes it, age does.
"""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput, NotFound
from seedwork.messages import new_id
from seedwork.threads import in_thread
from services.source import files

_WRITE_BYTES = 1024 * 1024
"""Gathered before a thread writes it: a network chunk of 64 KiB is not worth the way there."""


class Uploads:
    """The uploads of this installation, below one folder."""

    def __init__(self, home: Path) -> None:
        """Keep them below the service's folder."""
        self._folder = home / "uploads" / "sha256"
        self._drafts = home / "drafts"
        for folder in (self._folder, self._drafts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def store(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Keep the bytes if they are what the digest says; durable on return.

        Args:
            digest: `sha256:` and 64 hex digits, of the bytes as they come.
            chunks: The bytes; their limit is the caller's.

        Returns:
            How many there were.

        Raises:
            InvalidInput: The digest is none, or the bytes have another one; nothing of them stays.
            StorageFull: No room; nothing of them stays.
        """
        place = self._folder / files.hex_of(digest)
        draft = self._drafts / f"{new_id()}.upload"
        try:
            found, size = await _write(draft, chunks)
            if found != digest:
                raise InvalidInput(
                    "The upload was changed on its way",
                    why=f"its digest is {found}, and {digest} was announced",
                    todo="Send it again.",
                )
            await in_thread(lambda _: _settle(draft, place, size))
        finally:
            await in_thread(lambda _: draft.unlink(missing_ok=True))
        return size

    def path(self, digest: str) -> Path:
        """Where the upload is.

        Raises:
            NotFound: It is not here.
        """
        path = self._folder / files.hex_of(digest)
        if not path.exists():
            raise NotFound(
                f"The uploaded archive {digest} is not here",
                why="uploads are kept for KNARR_UPLOAD_KEEP_DAYS days",
                todo="Deploy the folder again.",
                code="upload_not_found",
            )
        return path

    def open(self, digest: str) -> BinaryIO:
        """The upload's bytes.

        Raises:
            NotFound: It is not here.
        """
        return self.path(digest).open("rb")

    async def sweep(self, keep_s: float) -> int:
        """Remove those that are older; how many."""
        return await in_thread(lambda _: files.remove_older(self._folder, keep_s))


def _settle(draft: Path, place: Path, size_bytes: int) -> None:
    """The same bytes sent again are kept for the full time again."""
    if not files.settle(draft, place, size_bytes):
        place.touch()


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with disk_errors(), path.open("xb", buffering=0) as file:

        def write(data: bytes) -> None:
            view = memoryview(data)
            digest.update(view)
            while view:
                view = view[file.write(view) :]

        gathered = bytearray()
        async for chunk in chunks:
            gathered += chunk
            size += len(chunk)
            if len(gathered) >= _WRITE_BYTES:
                data = bytes(gathered)
                gathered.clear()
                await in_thread(lambda _, data=data: write(data))  # type: ignore[misc]
        await in_thread(lambda _: write(bytes(gathered)))
    return f"sha256:{digest.hexdigest()}", size
