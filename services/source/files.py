"""Files named by what is in them: put in place whole and durable, removed, counted by age. All of this blocks."""

import os
import re
import time
from pathlib import Path

from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


def hex_of(digest: str) -> str:
    """The 64 hex digits, which are the file's name.

    Raises:
        InvalidInput: It is no digest.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidInput(f"{digest[:100]!r} is no digest", todo="A digest is `sha256:` and 64 lower-case hex digits.")
    return match[1]


def settle(draft: Path, place: Path, size_bytes: int) -> bool:
    """Move a finished file to its place, durable on return; true if it was not there in full.

    Raises:
        StorageFull: No room.
    """
    if place.exists() and place.stat().st_size == size_bytes:
        return False
    with disk_errors():
        _sync(draft)
        draft.replace(place)
        _sync(place.parent)
    return True


def remove(path: Path) -> bool:
    """Whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def remove_older(folder: Path, age_s: float) -> int:
    """Remove files that were not written for so long; how many there were."""
    now = time.time()
    removed = 0
    for path in list(folder.iterdir()):
        try:
            old = now - path.stat().st_mtime >= age_s
        except FileNotFoundError:
            continue
        if old:
            removed += remove(path)
    return removed


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
