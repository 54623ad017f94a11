"""Bytes on their way into a directory: a caller's file in, a hashed, read-only file that is on disk out. Blocking.

A file that nobody may write to (no write bit in its mode) is hard-linked: that is how a caller says that it will not
change. Any other is copied, by the kernel where it can (which shares the blocks on btrfs and XFS).
"""

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from ocistore.store import Descriptor
from seedwork.errors import InvalidInput

PIECE_BYTES = 1 << 20
_WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class Stopped(Exception):
    """Whoever asked for this does not want it any more; nothing was changed."""


def write_new(path: Path, content: bytes) -> None:
    """Write a small new file, on disk on return."""
    with path.open("xb") as file:
        file.write(content)
        _seal(file)


def bring_in(source: Path, descriptor: Descriptor, target: Path, stop: threading.Event) -> None:
    """Link or copy a file to `target`, prove that it is what its descriptor says, and have it on disk.

    Raises:
        InvalidInput: No such file, or another size or digest than the descriptor's.
        Stopped: `stop` was set.
    """
    try:
        file = source.open("rb", buffering=0)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidInput(f"Layer {descriptor.digest} cannot be stored", why=f"there is no file {source}") from error
    with file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes != descriptor.size_bytes:
            raise _not_as_described(source, f"{size_bytes} bytes", f"{descriptor.size_bytes} bytes")
        if not _linked(source, target):
            _copy(file, target, stop)
    with target.open("rb", buffering=0) as stored:
        found = _digest(stored, stop)
        if found != descriptor.digest:
            raise _not_as_described(source, found, descriptor.digest)
        _seal(stored)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_as_described(source: Path, found: str, expected: str) -> InvalidInput:
    return InvalidInput(
        f"The layer file {source} is not what its descriptor says",
        why=f"it has {found}, and {expected} was expected",
        todo="It changed while it was in use, or the descriptor was made from another file; build the layer again.",
    )


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` is now a hard link to an immutable regular file."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, too many links, not ours: a copy does
        return False
    mode = target.lstat().st_mode
    if stat.S_ISREG(mode) and not mode & _WRITE_BITS:
        return True
    target.unlink()
    return False


def _copy(source: BinaryIO, target: Path, stop: threading.Event) -> None:
    with target.open("xb", buffering=0) as copy:
        while piece := source.read(PIECE_BYTES):
            _check(stop)
            copy.write(piece)


def _digest(file: BinaryIO, stop: threading.Event) -> str:
    found = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        _check(stop)
        found.update(piece)
    return f"sha256:{found.hexdigest()}"


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped


def _seal(file: BinaryIO) -> None:
    """Nobody writes to it again, and it is on disk."""
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())
