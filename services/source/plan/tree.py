"""The app's files as detection reads them: a bounded list of names, and the content of the files that it asks for.

A name that is a link is followed inside the tree, as git and docker build do; a link that leads out is no file.
Guaranteed: at most `MAX_TOTAL_BYTES` are read, and each file at most up to the limit of its reader.
"""

import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from services.source.errors import AppInvalid

MAX_FILE_BYTES = 256 * 1024
"""Size limit of a manifest in bytes; lock files have `MAX_LOCK_BYTES`."""

MAX_LOCK_BYTES = 8 * 1024 * 1024
"""Bytes of a lock file that are read; the largest `package-lock.json` in use have about 5 MiB."""

MAX_TOTAL_BYTES = 64 * 1024 * 1024
"""Bytes that one detection reads."""

_MAX_NAMES = 20_000
"""Names that are kept; the ones nearest to the root first."""
_MAX_DEPTH = 8
_MAX_LINKS = 40
"""Links that are followed for one name; Linux follows as many."""
_PASSED_OVER = frozenset({"node_modules", ".git", ".hg", ".venv", "venv", "__pycache__", "site-packages"})
"""Folders whose files say nothing of the app."""
_LFS = b"version https://git-lfs.github.com/spec/"

ReadStart = Callable[[str, int], bytes]
"""The first bytes of a file: its name, and how many."""


class Tree:
    """Files by name, relative to the app's root, with `/`."""

    def __init__(self, files: Mapping[str, str | None], read: ReadStart) -> None:
        """Keep the names.

        Args:
            files: Every file; the value is a link's target, null for a regular file.
            read: Returns the beginning of a regular file.
        """
        kept = [name for name in files if _is_kept(name)]
        if len(kept) > _MAX_NAMES:
            kept = sorted(kept, key=lambda name: (name.count("/"), name))[:_MAX_NAMES]
        self._links = {name: target for name in kept if (target := files[name]) is not None}
        self._regular = frozenset(kept) - self._links.keys()
        self._folders = frozenset(folder for name in kept for folder in _folders(name))
        self._read = read
        self._content: dict[tuple[str, int], bytes] = {}
        self._bytes_read = 0
        self.names: tuple[str, ...] = tuple(sorted((*self._regular, *filter(self.has, self._links))))
        self._listing = "\n".join(self.names)
        self._matched: dict[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> Self:
        """Return a tree of these contents, and links by name."""
        names: dict[str, str | None] = dict.fromkeys(files)
        return cls(names | dict(links or {}), lambda name, limit: files[name][:limit])

    def has(self, name: str) -> bool:
        """Whether that is a file, or a link to one inside the root."""
        return self._real(name) in self._regular

    def has_folder(self, name: str) -> bool:
        """Whether that is a folder with files in it."""
        return self._real(name) in self._folders

    def first(self, *names: str) -> str | None:
        """The first of these names that is a file, or None."""
        return next((name for name in names if self.has(name)), None)

    def matching(self, *patterns: str) -> tuple[str, ...]:
        """Names that match one of the patterns, each level by itself: `*/settings.py` has one folder."""
        found = [self._matching(pattern) for pattern in patterns]
        return found[0] if len(found) == 1 else tuple(sorted({name for names in found for name in names}))

    def _matching(self, pattern: str) -> tuple[str, ...]:
        if pattern not in self._matched:
            expression = "^" + re.escape(pattern).replace(r"\*", "[^/\n]*") + "$"
            self._matched[pattern] = tuple(re.findall(expression, self._listing, re.MULTILINE))
        return self._matched[pattern]

    def dangling(self, *names: str) -> tuple[str, ...]:
        """Those of these names that are links which lead to no file inside the root."""
        return tuple(name for name in names if name in self._links and not self.has(name) and not self.has_folder(name))

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Return the file's content, at most `limit` bytes and one more.

        Raises:
            AppInvalid: It is a pointer of Git LFS, or the detection has read its total of bytes.
            KeyError: There is no such file.
        """
        real = self._real(name)
        if real is None or real not in self._regular:
            raise KeyError(name)
        if (real, limit) not in self._content:
            content = self._read(real, limit + 1)
            self._bytes_read += len(content)
            if self._bytes_read > MAX_TOTAL_BYTES:
                raise AppInvalid(f"The files that describe the app have more than {MAX_TOTAL_BYTES} bytes together")
            self._content[real, limit] = content
        content = self._content[real, limit]
        if content.startswith(_LFS):
            raise AppInvalid(
                f"{name} is a pointer of Git LFS, not the file itself",
                todo=f"Keep {name} in git: git lfs untrack {name} && git add --renormalize {name}",
            )
        return content

    def source(self, name: str, limit: int = 64 * 1024) -> str:
        """Return the beginning of a program's text; bytes that are no UTF-8 are replaced. Empty: no such file."""
        if not self.has(name):
            return ""
        try:
            return self.read(name, limit).decode("utf-8-sig", errors="replace")
        except AppInvalid:
            return ""

    def _real(self, name: str) -> str | None:
        """The name without links; None where it leads out, or in a circle."""
        pending = deque(name.split("/"))
        at: list[str] = []
        links = 0
        while pending:
            part = pending.popleft()
            if part in {"", "."}:
                continue
            if part == "..":
                if not at:
                    return None
                at.pop()
                continue
            at.append(part)
            target = self._links.get("/".join(at))
            if target is not None:
                links += 1
                if links > _MAX_LINKS or target.startswith("/"):
                    return None
                at.pop()
                pending.extendleft(reversed(target.split("/")))
        return "/".join(at)


@contextmanager
def tree_of_archive(archive: Path) -> Iterator[Tree]:
    """Open an archive in the normal form (see `seedwork.archives`); the tree can be read until the context ends."""
    files: dict[str, str | None] = {}
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(archive, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.isreg():
                files[member.name] = None
                places[member.name] = (member.offset_data, member.size)
            elif member.issym():
                files[member.name] = member.linkname
            tar.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
    with archive.open("rb") as content:

        def read(name: str, limit: int) -> bytes:
            offset, size = places[name]
            content.seek(offset)
            return content.read(min(size, limit))

        yield Tree(files, read)


def tree_of_folder(folder: Path, names: Iterator[str]) -> Tree:
    """Return the tree of these files of a folder; each is read when it is asked for."""
    files: dict[str, str | None] = {}
    for name in names:
        path = folder / name
        if path.is_symlink():
            files[name] = str(path.readlink())
        elif path.is_file():
            files[name] = None

    def read(name: str, limit: int) -> bytes:
        with (folder / name).open("rb") as content:
            return content.read(limit)

    return Tree(files, read)


def _is_kept(name: str) -> bool:
    parts = name.split("/")
    if len(parts) > _MAX_DEPTH or not _PASSED_OVER.isdisjoint(parts):
        return False
    return not any(character == "\n" or "\ud800" <= character <= "\udfff" for character in name)


def _folders(name: str) -> Iterator[str]:
    while (slash := name.rfind("/")) > 0:
        name = name[:slash]
        yield name
