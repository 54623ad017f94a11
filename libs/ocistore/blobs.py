"""The blobs of a registry's repositories: there already, mounted from a neighbour, or sent; read in pieces.

A blob that is there is not sent, one that another repository has is mounted. An upload that was cut begins again, at
the last whole piece where the registry can say how far it came. The registry hashes what it gets; a refusal is the
file's fault only if the file is wrong. Specification: OCI distribution-spec 1.1, "Pushing blobs", "Pulling blobs".
"""

import asyncio
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import httpx2
import structlog

from ocistore.directory import damaged, no_blob
from ocistore.ingest import PIECE_BYTES
from ocistore.registry import Busy, Content, Registry
from ocistore.store import Descriptor, LayerFile
from seedwork.errors import InvalidInput, KnarrError, NotFound, Unavailable
from seedwork.threads import in_thread

CHUNK_BYTES = 64 * 1024 * 1024
"""A larger layer is sent in pieces of this size, so that a cut costs one piece and not all."""
_SMALL_BYTES = 4 * 1024 * 1024
"""The distribution-spec's limit for manifests; configs are of that order too."""
_OCTETS = {"Content-Type": "application/octet-stream"}
_ELSEWHERE = 307

log = structlog.get_logger(__name__)


class Blobs:
    """What a `DistributionStore` does with bytes.

    Args:
        registry: Where they are.
        chunk_bytes: Layers above this size are sent in pieces.
    """

    def __init__(self, registry: Registry, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._registry = registry
        self._chunk_bytes = chunk_bytes

    # --- looking ------------------------------------------------------------------------------------------------------

    async def size(self, repository: str, digest: str) -> int | None:
        """Its size in bytes as the registry tells it; None: the repository does not have it."""
        path = self._path(repository, digest)
        answer = await self._registry.call(
            "HEAD", path, repository=repository, doing=f"looking for {digest}", okay=(200, _ELSEWHERE, 404)
        )
        if answer.status_code == _ELSEWHERE:  # the bytes lie in another place, which knows their size
            return await self._registry.patiently(lambda: self._size_elsewhere(repository, digest))
        return None if answer.status_code == 404 else _length(answer)

    async def fault(self, repository: str, blob: Descriptor) -> str:
        """What is wrong with it there: missing, or of another size; empty: nothing."""
        found = await self.size(repository, blob.digest)
        if found is None:
            return "it is missing"
        return "" if found == blob.size_bytes else f"it has {found} bytes instead of {blob.size_bytes}"

    async def small(self, repository: str, path: str, doing: str, *, accept: str = "*/*") -> bytes | None:
        """A manifest or config as a whole; None: it is not there.

        Raises:
            NotFound: It is larger than any of them may be.
        """

        async def read() -> bytes | None:
            content = bytearray()
            async with self._registry.stream(
                self._registry.path(repository, path),
                repository=repository,
                doing=doing,
                headers={"Accept": accept},
                okay=(200, 404),
            ) as answer:
                if answer.status_code == 404:
                    return None
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > _SMALL_BYTES:
                        raise damaged(f"{repository}, {path}", f"it has more than {_SMALL_BYTES} bytes")
            return bytes(content)

        return await self._registry.patiently(read)

    async def read(self, repository: str, digest: str) -> AsyncIterator[bytes]:
        """The blob in pieces of at most 1 MiB; a connection that breaks is taken up where it broke.

        Raises:
            NotFound: It is not there, or (after the last piece) its bytes are not the digest's.
        """
        hashed, size_bytes, failures = hashlib.sha256(), 0, 0
        while True:
            try:
                async for piece in self._from(repository, digest, size_bytes):
                    await asyncio.to_thread(hashed.update, piece)
                    size_bytes, failures = size_bytes + len(piece), 0
                    yield piece
                break
            except Busy as error:
                failures += 1
                if failures >= self._registry.patience.attempts:
                    raise
                await asyncio.sleep(self._registry.patience.pause_s(error.after_s, failures))
        if (found := f"sha256:{hashed.hexdigest()}") != digest:
            raise damaged(f"Blob {digest} of {repository}", f"its bytes hash to {found}")

    # --- bringing -----------------------------------------------------------------------------------------------------

    async def bring(self, repository: str, digest: str, content: bytes) -> None:
        """Have a small blob there."""

        async def once() -> None:
            found = await self.size(repository, digest)
            if found == len(content):
                return
            await self._finish(repository, await self._begin(repository), digest, content, len(content))
            await self._replaced(repository, digest, found, len(content))

        await self._registry.patiently(once)

    async def bring_layer(self, repository: str, layer: LayerFile) -> None:
        """Have a layer there.

        Raises:
            NotFound: It has no file, and is nowhere.
            InvalidInput: Its file is not what its descriptor says.
        """
        wanted, neighbour = layer.descriptor, layer.from_repository

        async def once() -> None:
            upload = None
            if neighbour and neighbour != repository:  # without a look whether it is there: half of the requests
                upload = await self._mount(repository, wanted.digest, neighbour)
                if upload is None:
                    return
            found = await self.size(repository, wanted.digest)
            if found == wanted.size_bytes or layer.path is None:
                if upload is not None:
                    await self._forget(repository, upload)
                if found == wanted.size_bytes:
                    return
                raise NotFound(
                    f"The image for {repository} cannot be stored",
                    why=f"the registry does not have {wanted.digest}, and no file was given for it",
                    todo="Build the layer again.",
                )
            await self._send_file(repository, upload or await self._begin(repository), wanted, layer.path)
            await self._replaced(repository, wanted.digest, found, wanted.size_bytes)

        await self._registry.patiently(once)

    async def copy(self, repository: str, blob: Descriptor, to: str, *, expected: bool) -> None:
        """Have a blob in a second repository: mounted, or sent through us where the registry does not mount.

        Args:
            repository: The first one.
            blob: What is wanted.
            to: The second one.
            expected: Whether it may well be there. Else nobody looks for it first, which saves a third of the requests.

        Raises:
            NotFound: The first one does not have it, or it has not the size that it should have.
        """

        async def once() -> None:
            if expected and await self.size(to, blob.digest) == blob.size_bytes:
                return
            upload = await self._mount(to, blob.digest, repository)
            if upload is not None:
                if why := await self.fault(repository, blob):
                    await self._forget(to, upload)
                    raise damaged(f"Blob {blob.digest} of {repository}", why)
                await self._finish(
                    to, upload, blob.digest, lambda: self._from(repository, blob.digest, 0), blob.size_bytes
                )
            if why := await self.fault(to, blob):
                raise damaged(f"Blob {blob.digest} of {to}", why)

        await self._registry.patiently(once)

    # --- the steps of an upload ---------------------------------------------------------------------------------------

    async def _begin(self, repository: str) -> str:
        """Where a blob can be sent to."""
        answer = await self._registry.call(
            "POST",
            self._registry.path(repository, "blobs/uploads/"),
            repository=repository,
            doing="beginning an upload",
            okay=(202,),
            again=False,
        )
        return _location(answer, "")

    async def _mount(self, repository: str, digest: str, source: str) -> str | None:
        """None: the blob is now there, from the other repository; else where it can be sent to."""
        if source == repository:
            return await self._begin(repository)
        query = f"mount={digest}&from={self._registry.name(source)}"
        answer = await self._registry.call(
            "POST",
            self._registry.path(repository, f"blobs/uploads/?{query}"),
            repository=repository,
            doing=f"mounting a blob of {source}",
            okay=(201, 202),
            again=False,
        )
        return None if answer.status_code == 201 else _location(answer, "")

    async def _send_file(self, repository: str, upload: str, layer: Descriptor, path: Path) -> None:
        """The file in one piece, or in several."""
        file = await asyncio.to_thread(_open_layer, path, layer)
        try:
            sent = 0
            while layer.size_bytes - sent > self._chunk_bytes:
                upload, sent = await self._send_chunk(repository, upload, file, sent)
            rest = layer.size_bytes - sent
            await self._finish(repository, upload, layer.digest, lambda: _pieces(file, sent, rest), rest)
        except (InvalidInput, NotFound) as error:
            await self._forget(repository, upload)
            found = await _digest_of(file)
            if found == layer.digest:
                raise Busy(f"The layer {layer.digest} did not arrive well in {repository}", why=error.why) from error
            raise InvalidInput(
                f"The layer file {path} is not what its descriptor says",
                why=f"it has {found}, and {layer.digest} was expected",
                todo="It changed while it was in use, or the descriptor was made from another file; build it again.",
            ) from error
        finally:
            await asyncio.to_thread(file.close)

    async def _replaced(self, repository: str, digest: str, before: int | None, size_bytes: int) -> None:
        """A registry takes a blob for what its name says: what it had under that name, it may have kept.

        Raises:
            Unavailable: It kept a damaged blob.
        """
        if before is not None and await self.size(repository, digest) != size_bytes:
            raise Unavailable(
                f"The registry {self._registry.host} keeps a damaged blob {digest} for {repository}",
                why=f"it has {before} bytes instead of {size_bytes}, and does not replace what it has",
                todo="Remove the images that need it, run the registry's garbage collection, then deploy again.",
            )

    async def _send_chunk(self, repository: str, upload: str, file: BinaryIO, sent: int) -> tuple[str, int]:
        """One piece; where the next one goes, and how many bytes are there then.

        Raises:
            Busy: It was cut, and the registry cannot say how far it came: the upload begins anew.
        """
        size = self._chunk_bytes
        try:
            answer = await self._registry.call(
                "PATCH",
                upload,
                repository=repository,
                doing="taking a piece of a layer",
                content=lambda: _pieces(file, sent, size),
                headers={**_OCTETS, "Content-Length": str(size), "Content-Range": f"{sent}-{sent + size - 1}"},
                okay=(202,),
                again=False,
            )
        except Busy:
            answer = await self._registry.call(
                "GET", upload, repository=repository, doing="resuming an upload", okay=(204, 400, 404, 416)
            )
            if answer.status_code != 204:
                raise
        there = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
        taken = int(there[1]) + 1 if there and int(there[1]) else 0
        if answer.status_code == 202 and taken != sent + size:
            raise Busy(f"The registry took {taken} bytes of a layer of {repository}", why=f"{sent + size} were sent")
        return _location(answer, upload), taken

    async def _finish(self, repository: str, upload: str, digest: str, content: Content, size_bytes: int) -> None:
        """Send the (rest of the) bytes and say what they are; the registry hashes them."""
        await self._registry.call(
            "PUT",
            f"{upload}{'&' if '?' in upload else '?'}digest={digest}",
            repository=repository,
            doing=f"storing {digest}",
            content=content,
            headers={**_OCTETS, "Content-Length": str(size_bytes)},
            okay=(201,),
            again=False,
        )

    async def _forget(self, repository: str, upload: str) -> None:
        """An upload that will not be finished; what we cannot take back, the registry purges by its age."""
        try:
            await self._registry.call(
                "DELETE",
                upload,
                repository=repository,
                doing="giving up an upload",
                okay=(202, 204, 400, 404),
                again=False,
            )
        except KnarrError as error:
            log.info("an upload was left to the registry", repository=repository, error=error.message)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _from(self, repository: str, digest: str, start: int) -> AsyncIterator[bytes]:
        """The blob's bytes from `start` on, once; also where the registry does not do ranges."""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        async with self._registry.stream(
            self._path(repository, digest),
            repository=repository,
            doing=f"reading {digest}",
            headers=headers,
            okay=(200, 206, 404, 416),
        ) as answer:
            if answer.status_code == 404:
                raise no_blob(repository, digest)
            if answer.status_code == 416:  # nothing is left
                return
            skip = start if answer.status_code == 200 else 0
            async for piece in answer.aiter_raw(PIECE_BYTES):
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))

    async def _size_elsewhere(self, repository: str, digest: str) -> int | None:
        async with self._registry.stream(
            self._path(repository, digest),
            repository=repository,
            doing=f"looking for {digest}",
            headers={"Accept-Encoding": "identity"},
            okay=(200, 404),
        ) as answer:
            return None if answer.status_code == 404 else _length(answer)

    def _path(self, repository: str, digest: str) -> str:
        return self._registry.path(repository, f"blobs/{digest}")


def _length(answer: httpx2.Response) -> int:
    return int(answer.headers.get("Content-Length", "-1"))


def _location(answer: httpx2.Response, default: str) -> str:
    """Where the upload goes on: distribution-spec, relative or absolute."""
    location = answer.headers.get("Location", default)
    return str(answer.request.url.join(location)) if location else ""


def _open_layer(path: Path, layer: Descriptor) -> BinaryIO:
    try:
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidInput(f"Layer {layer.digest} cannot be stored", why=f"there is no file {path}") from error
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes != layer.size_bytes:
        file.close()
        raise InvalidInput(
            f"The layer file {path} is not what its descriptor says",
            why=f"it has {size_bytes} bytes, and {layer.size_bytes} were expected",
            todo="It changed while it was in use, or the descriptor was made from another file; build it again.",
        )
    return file


async def _pieces(file: BinaryIO, start: int, size_bytes: int) -> AsyncIterator[bytes]:
    """That part of the file."""
    at, end = start, start + size_bytes
    while at < end:
        piece = await asyncio.to_thread(os.pread, file.fileno(), min(PIECE_BYTES, end - at), at)
        if not piece:
            raise InvalidInput("A layer file became shorter while it was sent")  # `_send_file` looks at it again
        at += len(piece)
        yield piece


async def _digest_of(file: BinaryIO) -> str:
    def work(stop: threading.Event) -> str:
        found, at = hashlib.sha256(), 0
        while not stop.is_set() and (piece := os.pread(file.fileno(), PIECE_BYTES, at)):
            found.update(piece)
            at += len(piece)
        return f"sha256:{found.hexdigest()}"

    return await in_thread(work)
