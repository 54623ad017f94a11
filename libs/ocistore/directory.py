"""OCI image layouts on a disk that several processes share: complete images in, complete images out, nothing between.

    <root>/repositories/<name>/    a valid OCI image layout each: oci-layout, index.json, blobs -> ../../blobs
                                   (`/` of the name is written `+`, which no name contains)
    <root>/blobs/sha256/<hex>      every blob once, shared by all repositories
    <root>/ingest/<random>/        what one open store is about to put in place
    <root>/lock                    one byte: 0 at rest, 1 while somebody changes blobs and indexes

Guaranteed, also under `kill -9`, a power cut and a full disk: an image is visible (its repository's `index.json`
names it) only when its manifest, config and layers are complete and on disk; blobs are without an image only while the
lock is held. Bytes are hashed on their way in, outside the lock; under it there are only renames. Whoever takes the
lock and finds the 1 knows that the holder before died in the middle, and collects. `ingest` folders of dead processes
go when somebody opens the store: a live owner holds a lock on its own.

Everything here blocks: call it from a thread. `flock` belongs to the open file, so two stores in one process exclude
each other as two processes do. Not guaranteed: two machines on a network file system without working locks.
"""

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ocistore import manifest as oci
from ocistore.ingest import PIECE_BYTES, Stopped, bring_in, sync_folder, write_new
from ocistore.store import Image
from seedwork.errors import NotFound, Unavailable
from seedwork.messages import new_id

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_AT_REST, _CHANGING = b"0", b"1"
_LOCK_POLL_S = (0.001, 0.016)


class Directory:
    """The blocking half of `OciLayout`. Methods may run in several threads at once."""

    def __init__(self, root: Path, *, lock_timeout_s: float) -> None:
        """Name the places; `open` makes them.

        Args:
            root: The store's own folder.
            lock_timeout_s: Seconds to wait for another holder of the lock, whose own work takes milliseconds.
        """
        self._root = root
        self._lock_timeout_s = lock_timeout_s
        self._blobs = root / "blobs" / "sha256"
        self._repositories = root / "repositories"
        self._ingest = root / "ingest"
        self._mine: Path | None = None
        self._mine_fd = -1
        self._opening = threading.Lock()
        self._manifests: dict[str, frozenset[str]] = {}

    # --- open and close ----------------------------------------------------------------------------------------------

    def open(self, stop: threading.Event) -> None:
        """Make the folders, take away what dead processes left behind. Doing it again changes nothing."""
        with self._opening:
            if self._mine is not None:
                return
            for folder in (self._blobs, self._repositories, self._ingest):
                folder.mkdir(parents=True, exist_ok=True)
            with self._locked(stop, collect=True):
                for left in self._ingest.iterdir():
                    _remove_if_dead(left)
                self._mine, self._mine_fd = _own_folder(self._ingest)

    def close(self, stop: threading.Event) -> None:
        """Give back the `ingest` folder; the next use opens again."""
        with self._opening:
            if self._mine is None:
                return
            with self._locked(stop):
                shutil.rmtree(self._mine)
                os.close(self._mine_fd)
                self._mine = None

    # --- reading: no lock, for an index is replaced as a whole -------------------------------------------------------

    def images(self, prefix: str) -> list[tuple[str, str]]:
        """`(repository, digest)` of every image whose repository begins with `prefix`, sorted."""
        names = (name for name in self._names() if name.startswith(prefix))
        return sorted((name, digest) for name in names for digest in self._index(name))

    def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """The image; manifest and config are hashed on each reading, `verify` looks at the layers too.

        Raises:
            NotFound: No such image, or a blob of it is missing or damaged; the text names it.
        """
        entry = self._index(repository).get(digest)
        if entry is None:
            raise no_image(repository, digest)
        try:
            manifest = self._whole(digest)
            config = self._whole(oci.read_manifest(manifest).config.digest)
            image = oci.image(repository, manifest, config, entry.tags if tagged else ())
            if verify:
                for layer in image.layers:
                    self._check_size(layer.digest, layer.size_bytes)
        except (ValueError, FileNotFoundError) as error:
            raise damaged(f"{repository}@{digest}", error) from error
        return image

    def read(self, repository: str, digest: str) -> Generator[bytes, None, None]:
        """A blob in pieces.

        Raises:
            NotFound: No image of the repository has it, or (at the end) its bytes are not the digest's.
        """
        if not any(digest in self._blobs_of(manifest) for manifest in self._index(repository)):
            raise no_blob(repository, digest)
        found = hashlib.sha256()
        try:
            with self._path(digest).open("rb", buffering=0) as file:
                while piece := file.read(PIECE_BYTES):
                    found.update(piece)
                    yield piece
        except FileNotFoundError as error:
            raise no_blob(repository, digest) from error
        if f"sha256:{found.hexdigest()}" != digest:
            raise damaged(f"Blob {digest} of {repository}", f"its bytes hash to sha256:{found.hexdigest()}")

    # --- changing ----------------------------------------------------------------------------------------------------

    def put(self, repository: str, draft: oci.Draft, tags: Sequence[str], stop: threading.Event) -> Image:
        """Store a complete image; layers that the store has already are not read.

        Raises:
            NotFound: A layer without a file is not in the store.
        """
        self.open(stop)
        staged: dict[str, Path] = {}
        try:
            for everything in (False, True):  # what is there now may be collected before the lock is held
                self._stage(draft, staged, stop, everything=everything)
                with self._locked(stop) as lock:
                    missing = [digest for digest in draft.blobs.keys() - staged.keys() if not self._has(draft, digest)]
                    if not missing:
                        with self._changing(lock):
                            return self._take_in(repository, draft, staged, tags)
            raise NotFound(
                f"The image for {repository} cannot be stored",
                why=f"the store does not have {', '.join(sorted(missing))}, and no file was given for it",
                todo="Build the layer again.",
            )
        finally:
            for path in staged.values():
                path.unlink(missing_ok=True)

    def copy(self, repository: str, digest: str, to: str, tags: Sequence[str], stop: threading.Event) -> Image:
        """Give the image a second place: an entry in another index.

        Raises:
            NotFound: No such image, or it is not complete.
        """
        self.open(stop)
        with self._locked(stop) as lock:
            self.get(repository, digest, verify=True)
            size_bytes = self._path(digest).stat().st_size
            with self._changing(lock):
                return self._set_image(to, digest, size_bytes, tags, keep_tags=True)

    def tag(self, repository: str, digest: str, tags: Sequence[str], stop: threading.Event) -> Image:
        """Let these be the image's tags.

        Raises:
            NotFound: No such image.
        """
        self.open(stop)
        with self._locked(stop) as lock:
            entry = self._index(repository).get(digest)
            if entry is None:
                raise no_image(repository, digest)
            with self._changing(lock):
                return self._set_image(repository, digest, entry.size_bytes, tags, keep_tags=False)

    def remove(self, repository: str, digest: str, stop: threading.Event) -> bool:
        """Take the image out, and the blobs that no other image needs; true if it was there."""
        self.open(stop)
        with self._locked(stop) as lock:
            index = self._index(repository)
            if digest not in index:
                return False
            blobs = self._blobs_of(digest)
            with self._changing(lock):
                self._write_index(repository, oci.without_image(index, digest))
                if blobs:
                    self._delete(blobs - self._needed())
                else:  # nobody can tell any more what it needed
                    self._collect()
            return True

    # --- the steps of a change ---------------------------------------------------------------------------------------

    def _stage(self, draft: oci.Draft, staged: dict[str, Path], stop: threading.Event, *, everything: bool) -> None:
        """Bring in what the store does not have (or `everything` that can be had), hashed and on disk."""
        for digest, content in ((draft.manifest_digest, draft.manifest), (draft.config_digest, draft.config)):
            if digest not in staged and (everything or not self._has(draft, digest)):
                staged[digest] = self._folder() / new_id()
                write_new(staged[digest], content)
        for layer in draft.layers:
            digest = layer.descriptor.digest
            if layer.path is not None and digest not in staged and (everything or not self._has(draft, digest)):
                staged[digest] = self._folder() / new_id()
                bring_in(layer.path, layer.descriptor, staged[digest], stop)

    def _take_in(self, repository: str, draft: oci.Draft, staged: Mapping[str, Path], tags: Sequence[str]) -> Image:
        """Blobs first and on disk, then the index that names them. An old blob that is damaged is replaced."""
        for digest, path in staged.items():
            if not self._has(draft, digest):
                path.rename(self._path(digest))
        sync_folder(self._blobs)
        return self._set_image(repository, draft.manifest_digest, len(draft.manifest), tags, keep_tags=True)

    def _set_image(
        self, repository: str, digest: str, size_bytes: int, tags: Sequence[str], *, keep_tags: bool
    ) -> Image:
        before = self._index(repository)
        there = before.get(digest, oci.Entry(size_bytes=size_bytes))
        after = oci.with_image(
            before, digest, size_bytes=size_bytes, tags=oci.joined(there.tags, tags) if keep_tags else tags
        )
        if before != after:
            self._write_index(repository, after)
        return self.get(repository, digest)

    def _write_index(self, repository: str, index: oci.Index) -> None:
        """Replace a repository's index as a whole; the repository comes with its first image and goes with its last."""
        home, fresh = self._home(repository), self._folder() / new_id()
        try:
            if not index:
                home.rename(fresh)
                sync_folder(self._repositories)
            elif home.exists():
                write_new(fresh, oci.write_index(index))
                fresh.rename(home / "index.json")
                sync_folder(home)
            else:
                _write_repository(fresh, index)
                fresh.rename(home)
                sync_folder(self._repositories)
        finally:
            if fresh.is_dir():
                shutil.rmtree(fresh)
            else:
                fresh.unlink(missing_ok=True)

    def _delete(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)
            self._manifests.pop(digest, None)

    def _collect(self) -> None:
        """Delete every blob that no image needs."""
        with os.scandir(self._blobs) as files:
            self._delete({f"sha256:{file.name}" for file in files} - self._needed())

    def _needed(self) -> set[str]:
        """The blobs of all images of all repositories."""
        manifests = {digest for name in self._names() for digest in self._index(name)}
        return {blob for digest in manifests for blob in self._blobs_of(digest)}

    # --- the lock ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, stop: threading.Event, *, collect: bool = False) -> Iterator[int]:
        """Hold the store; a change that died in the middle is cleaned up first.

        Raises:
            Unavailable: Somebody else held it all the time.
        """
        lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait_for(lock, stop)
            if collect or os.pread(lock, 1, 0) == _CHANGING:
                self._collect()
                os.pwrite(lock, _AT_REST, 0)
            yield lock
        finally:
            os.close(lock)

    def _wait_for(self, lock: int, stop: threading.Event) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        pause_s, longest_s = _LOCK_POLL_S
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        "The image store is busy",
                        why=f"another process has held {self._root / 'lock'} for {self._lock_timeout_s:g} s",
                        todo="See which process has that file open; a stopped one must be continued or killed.",
                    ) from error
            if stop.wait(pause_s):
                raise Stopped
            pause_s = min(2 * pause_s, longest_s)

    @contextmanager
    def _changing(self, lock: int) -> Iterator[None]:
        """Write down that blobs and indexes are being changed; a change that fails leaves no blob of its own."""
        os.pwrite(lock, _CHANGING, 0)
        try:
            yield
        except BaseException:
            self._collect()
            os.pwrite(lock, _AT_REST, 0)
            raise
        os.pwrite(lock, _AT_REST, 0)

    # --- looking -----------------------------------------------------------------------------------------------------

    def _home(self, repository: str) -> Path:
        return self._repositories / oci.check_repository(repository).replace("/", "+")

    def _folder(self) -> Path:
        if self._mine is None:
            raise Unavailable("The image store was closed while it was in use", todo="Try again.")
        return self._mine

    def _names(self) -> list[str]:
        """Of every repository that there is; a file in the way of one is none, and harms no other."""
        try:
            with os.scandir(self._repositories) as entries:
                folders = [entry.name.replace("+", "/") for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []
        return [name for name in folders if oci.is_repository(name)]

    def _index(self, repository: str) -> oci.Index:
        path = self._home(repository) / "index.json"
        try:
            return oci.read_index(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Unavailable(
                f"The image repository {repository} cannot be read",
                why=f"{path}: {error}",
                todo="Restore the file, or move its folder away and deploy the app again.",
            ) from error

    def _path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def _has(self, draft: oci.Draft, digest: str) -> bool:
        """Whether the store has the blob: manifest and config byte by byte, a layer by its size."""
        small = {draft.manifest_digest: draft.manifest, draft.config_digest: draft.config}.get(digest)
        try:
            if small is not None:
                return self._path(digest).read_bytes() == small
            return self._path(digest).stat().st_size == draft.blobs[digest]
        except FileNotFoundError:
            return False

    def _whole(self, digest: str) -> bytes:
        """A small blob (manifest, config), hashed."""
        content = self._path(digest).read_bytes()
        if oci.digest_of(content) != digest:
            raise ValueError(f"blob {digest} is damaged")
        return content

    def _check_size(self, digest: str, size_bytes: int) -> None:
        found = self._path(digest).stat().st_size
        if found != size_bytes:
            raise ValueError(f"blob {digest} has {found} bytes instead of {size_bytes}")

    def _blobs_of(self, digest: str) -> frozenset[str]:
        """What the manifest needs and itself; nothing if it is damaged. Read once, for its name is its content."""
        if digest not in self._manifests:
            try:
                self._manifests[digest] = oci.read_manifest(self._whole(digest)).blobs
            except (ValueError, FileNotFoundError):
                return frozenset()
        return self._manifests[digest]


def no_image(repository: str, digest: str) -> NotFound:
    """The image is not there."""
    return NotFound(f"There is no image {repository}@{digest}")


def no_blob(repository: str, digest: str) -> NotFound:
    """The blob is not there."""
    return NotFound(f"No image of {repository} has a blob {digest}")


def damaged(what: str, why: object) -> NotFound:
    """Something is there, but it is not what its name says."""
    return NotFound(
        f"{what} is damaged", why=str(why), todo="Deploy the commit again: its layers are then stored anew."
    )


def _write_repository(folder: Path, index: oci.Index) -> None:
    folder.mkdir()
    (folder / "blobs").symlink_to("../../blobs")
    write_new(folder / "oci-layout", _LAYOUT)
    write_new(folder / "index.json", oci.write_index(index))
    sync_folder(folder)


def _own_folder(ingest: Path) -> tuple[Path, int]:
    """A folder whose `owner` file is locked for as long as this process lives and keeps the store open."""
    folder = ingest / new_id()
    folder.mkdir()
    owner = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, owner


def _remove_if_dead(folder: Path) -> None:
    owner = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(owner)
