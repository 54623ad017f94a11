"""The image store in a directory: OCI image layouts that several services and processes use at once.

`OciLayout` is the asynchronous face of `ocistore.directory`, which holds the format, the guarantees and the work. Here
each call goes to a thread, faults of the file system become errors of knarr, and a cancelled call returns only when its
thread has stopped: after it, nothing happens any more behind the caller's back.
"""

import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from ocistore import manifest as oci
from ocistore.directory import Directory
from ocistore.store import Image, LayerFile
from seedwork.errors import StorageFull, Unavailable
from seedwork.threads import in_thread

T = TypeVar("T")


class OciLayout:
    """An `ImageStore` in the directory `root`; other tools read `root/repositories/<name>` as an OCI image layout.

    Raises, from every method:
        StorageFull: No room; nothing of the change stays.
        Unavailable: The directory cannot be read or written, or its lock was held too long.
        InvalidInput: A repository name, digest or tag is none.
    """

    def __init__(self, root: Path, *, lock_timeout_s: float = 60.0) -> None:
        """Nothing is touched before the first use.

        Args:
            root: A folder of the store's own; made when needed.
            lock_timeout_s: Seconds to wait for other processes, whose changes take milliseconds each.
        """
        self._root = root
        self._directory = Directory(root, lock_timeout_s=lock_timeout_s)

    async def open(self) -> None:
        """Remove what dead processes left behind; happens by itself before the first change."""
        await self._run(self._directory.open)

    async def close(self) -> None:
        """Leave nothing in the directory but images. A store can be used again after it."""
        await self._run(self._directory.close)

    async def probe(self) -> None:
        """See `OpenedStore.probe`: its folders are there, and files can be made in them."""

        def look(stop: threading.Event) -> None:
            self._directory.open(stop)
            for folder in ("blobs/sha256", "repositories", "ingest"):
                with TemporaryFile(dir=self._root / folder):
                    pass

        await self._run(look)

    async def put(
        self, repository: str, *, config: bytes, layers: Sequence[LayerFile], tags: Sequence[str] = ()
    ) -> Image:
        """See `ImageStore.put`. A layer file without a write bit in its mode is hard-linked, any other copied."""
        oci.check_repository(repository)
        checked = oci.check_tags(tags)
        draft = oci.draft(config, layers)
        return await self._run(lambda stop: self._directory.put(repository, draft, checked, stop))

    async def copy(self, repository: str, digest: str, *, to: str, tags: Sequence[str] = ()) -> Image:
        """See `ImageStore.copy`."""
        _check(repository, digest, to)
        checked = oci.check_tags(tags)
        return await self._run(lambda stop: self._directory.copy(repository, digest, to, checked, stop))

    async def tag(self, repository: str, digest: str, *, tags: Sequence[str]) -> Image:
        """See `ImageStore.tag`."""
        _check(repository, digest)
        checked = oci.check_tags(tags)
        return await self._run(lambda stop: self._directory.tag(repository, digest, checked, stop))

    async def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """See `ImageStore.get`."""
        _check(repository, digest)
        return await self._run(lambda _stop: self._directory.get(repository, digest, verify=verify, tagged=tagged))

    async def remove(self, repository: str, digest: str) -> bool:
        """See `ImageStore.remove`."""
        _check(repository, digest)
        return await self._run(lambda stop: self._directory.remove(repository, digest, stop))

    async def images(self, prefix: str = "") -> Sequence[tuple[str, str]]:
        """See `ImageStore.images`."""
        return await self._run(lambda _stop: self._directory.images(prefix))

    async def read_blob(self, repository: str, digest: str) -> AsyncIterator[bytes]:
        """See `ImageStore.read_blob`."""
        _check(repository, digest)
        pieces = self._directory.read(repository, digest)
        try:
            while (piece := await self._run(lambda _stop: next(pieces, None))) is not None:
                yield piece
        finally:
            pieces.close()

    async def _run(self, work: Callable[[threading.Event], T]) -> T:
        """Run in a thread; when cancelled, tell it to stop and wait until it has."""

        def guarded(stop: threading.Event) -> T:
            with translated(self._root):
                return work(stop)

        return await in_thread(guarded)


@contextmanager
def translated(root: Path) -> Iterator[None]:
    """Faults of the file system as errors of knarr.

    Raises:
        StorageFull: The disk or the quota is full.
        Unavailable: Anything else that the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"The image store in {root} has no room left",
                why=str(error),
                todo="Free space on that disk, then retry; nothing half-written stays.",
            ) from error
        raise Unavailable(
            f"The image store in {root} cannot be used",
            why=str(error),
            todo="Check that the directory exists and that knarr may write there, then retry.",
        ) from error


def _check(repository: str, digest: str, to: str | None = None) -> None:
    oci.check_repository(repository)
    oci.check_digest(digest)
    if to is not None:
        oci.check_repository(to)
