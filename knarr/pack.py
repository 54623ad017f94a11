"""A folder in, a deterministic `.tar.gz` out: the same files give the same bytes, wherever and whenever it is made.

What git ignores stays out where the folder is in a git repository; elsewhere a short list of folders of tools. The
files of a repository inside the folder (a submodule, a clone) go along, by the rules of that repository. Only regular
files and symbolic links go in; owners and times do not. What stays out is listed, and packing ends at the first limit.
"""

import gzip
import os
import stat
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from knarr.terminal import size
from seedwork.archives import shown_name
from seedwork.errors import InvalidInput, NotFound, TooLarge
from seedwork.git import folder_command, folder_env

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
_DEEPEST = 16
"""Repositories in repositories: a clone of a clone is rare."""
_MOST_NAMED = 8
"""Names in one line about what stays out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the platform takes: `GET /limits` of the service `webhook`."""

    upload_max_bytes: int = 200 * 1000 * 1000
    source_max_bytes: int = 1024 * 1024 * 1024
    source_max_entries: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What went into an archive."""

    files: int
    size_bytes: int
    """Before compression."""
    left_out: tuple[str, ...] = ()
    """What is in the folder and not in the archive, one line each."""


def pack(folder: Path, into: BinaryIO, limits: Limits | None = None) -> Packed:
    """Write the folder as a gzip-compressed tar whose root is the folder.

    Raises:
        NotFound: There is no such folder.
        InvalidInput: It holds nothing to deploy, or a file cannot be read.
        TooLarge: A limit is over; the text names its setting and the largest folders. Nothing more is packed then.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}", todo="Name the folder that holds your app.")
    limits = limits or Limits()
    left_out: list[str] = []
    names = sorted(_measured(folder, names_in(folder, left_out), limits))
    if not names:
        raise InvalidInput(
            f"{folder} holds nothing to deploy",
            why="; ".join(["it is empty, or git ignores all of it", *left_out]),
            todo="Name the folder that holds your app: `knarr deploy DIR`.",
        )
    files = size_bytes = 0
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=into, mtime=0, compresslevel=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            added = _add(archive, folder, name)
            files += added is not None
            size_bytes += added or 0
            if added is None and (folder / name).exists():
                left_out.append(f"{shown_name(name)}: it is neither a file nor a link")
            if into.tell() > limits.upload_max_bytes:
                raise TooLarge(
                    f"{folder} is too large to be uploaded",
                    why=f"more than {size(limits.upload_max_bytes)} packed (KNARR_UPLOAD_MAX_BYTES) with"
                    f" {size(size_bytes)} of it read",
                    todo="Leave generated and large files out with a .gitignore, or raise the setting.",
                )
    return Packed(files=files, size_bytes=size_bytes, left_out=tuple(left_out))


def _measured(folder: Path, names: Iterator[str], limits: Limits) -> Iterator[str]:
    """The names, as long as there are not too many and their files not too large."""
    sizes: Counter[str] = Counter()
    for number, name in enumerate(names, start=1):
        try:
            sizes[name.partition("/")[0]] += (folder / name).lstat().st_size
        except OSError:
            sizes[name] += 0  # git knows it, and it was deleted in the folder; or `_add` says what is wrong
        total = sizes.total()
        if number > limits.source_max_entries or total > limits.source_max_bytes:
            count = number > limits.source_max_entries
            limit = f"{limits.source_max_entries} files" if count else size(limits.source_max_bytes)
            setting = "KNARR_SOURCE_MAX_ENTRIES" if count else "KNARR_SOURCE_MAX_BYTES"
            largest = ", ".join(f"{shown_name(top)} {size(of)}" for top, of in sizes.most_common(3))
            raise TooLarge(
                f"{folder} is too large to be deployed",
                why=f"more than {limit} ({setting}); so far the largest are {largest}",
                todo="Leave generated and large files out with a .gitignore, or raise the setting.",
            )
        yield name


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


def names_in(folder: Path, left_out: list[str] | None = None) -> Iterator[str]:
    """Every file to deploy, relative to the folder, with `/` between its parts.

    Args:
        folder: The app's folder.
        left_out: Gets a line for what is in the folder and stays out.
    """
    yield from _names(folder, "", [] if left_out is None else left_out, _DEEPEST)


def _names(folder: Path, prefix: str, left_out: list[str], deeper: int) -> Iterator[str]:
    known = _known_to_git(folder)
    if known is None:
        yield from _by_list(folder, prefix, left_out)
        return
    for name in known:
        path = folder / name
        if path.is_symlink() or not path.is_dir():
            yield prefix + name
        elif not any(path.iterdir()):
            left_out.append(
                f"{shown_name(prefix + name)}: a submodule that is not checked out: git submodule update --init"
            )
        elif not (path / ".git").exists():
            yield from _by_list(path, f"{prefix}{name.rstrip('/')}/", left_out)
        elif deeper:
            yield from _names(path, f"{prefix}{name.rstrip('/')}/", left_out, deeper - 1)
        else:
            left_out.append(f"{shown_name(prefix + name)}: more than {_DEEPEST} repositories one in the other")
    if ignored := _ignored_by_git(folder):
        left_out.append(f"ignored by git: {_few([prefix + each for each in ignored])}")


def _by_list(folder: Path, prefix: str, left_out: list[str]) -> Iterator[str]:
    out: list[str] = []
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        out += [prefix + (inside / name).as_posix() for name in (*folders, *files) if name in IGNORED - {".git"}]
        folders[:] = [name for name in folders if name not in IGNORED and name not in linked]
        for name in (*files, *linked):
            if name not in IGNORED:
                yield prefix + (inside / name).as_posix()
    if out:
        left_out.append(f"never deployed: {_few(sorted(out))}")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(shown_name(name) for name in names[:_MOST_NAMED]) + more


def _known_to_git(folder: Path) -> list[str] | None:
    """Tracked files, and untracked ones that git does not ignore; none where there is no git or no repository."""
    names = _listed(folder, "--cached", "--others", "--exclude-standard")
    if names is None:
        return None
    return None if not names and any(folder.iterdir()) and _is_ignored(folder) else sorted(set(names))


def _ignored_by_git(folder: Path) -> list[str]:
    """What git ignores; a folder is one name, and what was left of earlier runs is none."""
    found = _listed(folder, "--others", "--ignored", "--exclude-standard", "--directory") or []
    return sorted(name for name in found if name.rstrip("/").rpartition("/")[2] not in {"__pycache__", ".DS_Store"})


def _listed(folder: Path, *options: str) -> list[str] | None:
    try:
        listed = subprocess.run(
            folder_command(folder, ["ls-files", "-z", *options]),
            capture_output=True,
            check=False,
            env=folder_env(),
        )
    except FileNotFoundError:
        return None
    if listed.returncode != 0:
        return None
    return [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def _is_ignored(folder: Path) -> bool:
    """Whether the folder as a whole is ignored by a repository around it: then that repository is not the app's."""
    command = folder_command(folder, ["check-ignore", "-q", "."])
    answer = subprocess.run(command, capture_output=True, check=False, env=folder_env())
    return answer.returncode == 0
