"""A folder in, a deterministic `.tar.gz` out: the same files give the same bytes, wherever and whenever it is made.

What git ignores stays out where the folder is in a git repository; elsewhere a short list of what nobody deploys.
Only regular files and symbolic links go in; owners and times do not.
"""

import gzip
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from seedwork.errors import InvalidInput, NotFound

IGNORED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        "node_modules",
        "__pycache__",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".tox",
        ".knarr",
        ".DS_Store",
        ".env",
    }
)
"""Names that are left out where no git says better; `.env` since it holds secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What went into an archive."""

    files: int
    size_bytes: int
    """Before compression."""


def pack(folder: Path, into: BinaryIO) -> Packed:
    """Write the folder as a gzip-compressed tar whose root is the folder.

    Raises:
        NotFound: There is no such folder.
        InvalidInput: It holds nothing to deploy, or a file cannot be read.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}", todo="Name the folder that holds your app.")
    names = sorted(names_in(folder))
    if not names:
        raise InvalidInput(f"{folder} holds nothing to deploy", why="it is empty, or git ignores all of it")
    files = size_bytes = 0
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=into, mtime=0, compresslevel=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            added = _add(archive, folder, name)
            files += added is not None
            size_bytes += added or 0
    return Packed(files=files, size_bytes=size_bytes)


def _add(archive: tarfile.TarFile, folder: Path, name: str) -> int | None:
    """Add one name; its size in bytes, none where it is nothing that can be deployed."""
    path = folder / name
    entry = tarfile.TarInfo(name)
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            archive.addfile(entry)
            return 0
        if not stat.S_ISREG(status.st_mode):
            return None
        with path.open("rb") as file:
            entry.size = os.fstat(file.fileno()).st_size
            entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            archive.addfile(entry, file)
            return entry.size
    except FileNotFoundError:
        return None  # git knows it, and it was deleted in the folder
    except OSError as error:
        raise InvalidInput(
            f"Cannot read {path}", why=str(error.strerror or error), todo="Make it readable, or let git ignore it."
        ) from error


def names_in(folder: Path) -> Iterator[str]:
    """Every file to deploy, relative to the folder, with `/` between its parts."""
    known = _known_to_git(folder)
    if known is not None:
        yield from known
        return
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in IGNORED and name not in linked]
        for name in (*files, *linked):
            if name not in IGNORED:
                yield (inside / name).as_posix()


def _known_to_git(folder: Path) -> list[str] | None:
    """Tracked files, and untracked ones that git does not ignore; none where there is no git or no repository."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return None
    if listed.returncode != 0:
        return None
    names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
    return None if not names and any(folder.iterdir()) and _is_ignored(folder) else list(names)


def _is_ignored(folder: Path) -> bool:
    """Whether the folder as a whole is ignored by a repository around it: then that repository is not the app's."""
    answer = subprocess.run(["git", "-C", str(folder), "check-ignore", "-q", "."], capture_output=True, check=False)
    return answer.returncode == 0
