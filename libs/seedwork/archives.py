"""Tar archives from strangers: read, unpacked and brought into one normal form without trusting a byte of them.

What goes in is a tar stream (plain or gzip) that anybody may have written. What comes out is files below one folder, or
another tar in the normal form (sorted, fixed owner, time and modes: the same tree gives the same bytes, hence the same
digest). Guaranteed: nothing outside the target is read, made or changed, and no more is written than the limits say.
Not guaranteed: that a failed extraction leaves nothing; who gave the target folder removes it.

Names are bytes: those that are not UTF-8 are kept as Python keeps them in file names (`surrogateescape`), and are
written as they came. A text that shows a name shows it with `!r`, since such a name cannot be encoded as UTF-8.

Why not `tarfile`: its data filter can be escaped (a hard link to a deep symlink), and it reads extension headers of any
size into memory. This reader knows files, folders and symbolic links, and refuses everything else. Formats: ustar and
pax (POSIX.1-2017, "pax", section "EXTENDED DESCRIPTION"), GNU long names.

All functions block: call them in a thread (`seedwork.threads.in_thread`).
"""

import errno
import gzip
import hashlib
import os
import stat
import tarfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Self

from seedwork.errors import InvalidInput, StorageFull, TimedOut, TooLarge

Compression = Literal["none", "gzip"]
Kind = Literal["file", "dir", "link"]
Source = Path | BinaryIO

CHUNK_BYTES = 256 * 1024
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_EXTENSION_BYTES = 1024 * 1024
"""Of one pax or GNU extension header: names and attributes; real ones have a few hundred bytes."""
_TRAILER_BYTES = 1024 * 1024
"""What may follow the end mark: tar pads to its record size, 10 KiB by default and seldom more than 1 MiB."""
_NAME_BYTES = 255
"""Of one component: NAME_MAX of every file system in use."""

NORMAL_MTIME = 315_532_800
"""1980-01-01: the earliest time that a zip (hence a Python wheel) can hold."""


class BadArchive(InvalidInput):
    """The archive is damaged, or holds what no app's source needs; the text names the entry."""

    code = "bad_archive"
    title = "Archive refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How much of a stranger's archive is taken. Counted is what comes out, not what the archive claims."""

    max_bytes: int = 1024 * 1024 * 1024
    """Content of all files together, uncompressed."""
    max_entries: int = 100_000
    """Files, folders and links; a large `node_modules` has about 60,000."""
    max_depth: int = 64
    """Folders above an entry, itself included; keeps the number of open descriptors small."""
    max_path_bytes: int = 1024
    """Of one name and of one link's target, in UTF-8; PATH_MAX is 4096, and a prefix comes in front of it."""
    max_names_bytes: int = 64 * 1024 * 1024
    """All names, targets and extension headers together: what is held in memory."""
    max_seconds: float = 600.0
    """For the whole archive: a stream that trickles for ever ends here."""
    settings: str = ""
    """What the settings behind these fields begin with (`KNARR_SOURCE_`), for errors; empty: there are none."""

    def or_raise(self, field: str) -> str:
        """The end of an advice: ` or raise KNARR_SOURCE_MAX_BYTES`."""
        return f", or raise {self.settings}{field.upper()}" if self.settings else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One checked entry."""

    name: str
    """Relative, `/` between components, no `.` or `..`, no slash at its ends."""
    kind: Kind
    size: int = 0
    executable: bool = False
    target: str = ""
    """Of a link: relative, `..` only at its beginning, never above the archive's root."""
    mtime: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The name's components."""
        return tuple(self.name.split("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What was made."""

    files: int
    folders: int
    links: int
    bytes_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalTar:
    """An archive in the normal form."""

    digest: str
    """`sha256:` and 64 hex digits, of the uncompressed bytes."""
    size_bytes: int
    entries: int


# --- reading ---------------------------------------------------------------------------------------------------------


def read_tar(
    source: Source, *, limits: ArchiveLimits, compression: Compression = "none", stop: threading.Event | None = None
) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Each entry, checked, with its content in pieces; content that is not asked for is skipped.

    The archive's own root (`./`) is no entry. Folders that are only implied by a longer name are not made up, and two
    entries of one name are not noticed here: `extract_tar` and `normalise_tar` do both.

    Args:
        source: A file's path or an open stream, which is read to its end and stays open.
        limits: How much to take.
        compression: What is around the tar.
        stop: Set from another thread: the reading ends with `TimedOut`.

    Raises:
        BadArchive: It is damaged or holds something that is not allowed.
        TooLarge: A limit is over; the text names it.
        TimedOut: Its time is over, or `stop` was set.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        watched = _Watched(raw, limits.max_seconds, stop)
        if compression == "gzip":
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=watched, mode="rb"))  # type: ignore[call-overload]
            yield from _Reader(_Watched(unzipped, limits.max_seconds, stop), limits).entries()
        else:
            yield from _Reader(watched, limits).entries()


class _Watched:
    """A stream whose every read looks at the clock and at `stop` first."""

    def __init__(self, stream: BinaryIO, max_seconds: float, stop: threading.Event | None) -> None:
        self._stream = stream
        self._max_seconds = max_seconds
        self._ends_at = time.monotonic() + max_seconds
        self._stop = stop

    def read(self, size: int) -> bytes:
        if self._stop is not None and self._stop.is_set():
            raise TimedOut("Reading the archive was stopped")
        if time.monotonic() >= self._ends_at:
            raise TimedOut(f"Reading the archive took longer than {self._max_seconds:g} s")
        try:
            return self._stream.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadArchive("The archive is damaged", why=f"its gzip stream cannot be read ({error})") from error


class _Reader:
    """Headers to entries, with everything checked that can be checked without the others."""

    def __init__(self, stream: _Watched, limits: ArchiveLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._headers = 0
        self._bytes = 0
        self._names_bytes = 0
        self._left = 0
        """Bytes of the current entry's content, padding included, that were not read yet."""

    def entries(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        extended: dict[str, str] = {}
        while (header := self._header()) is not None:
            kind = header[156:157]
            if kind in b"xgLK":
                found = self._extension(header)
                if kind != b"g":
                    extended |= found
                elif found.keys() & {"path", "linkpath", "size"}:
                    raise BadArchive("The archive has a global header that renames or resizes its entries")
                continue
            entry = self._entry(header, extended)
            extended = {}
            self._left = _padded(entry.size)
            if entry.name:
                yield entry, self._content(entry.size)
            while self._left:
                self._left -= len(self._exactly(min(self._left, CHUNK_BYTES)))
        self._drain()

    def _header(self) -> bytes | None:
        block = self._exactly(_BLOCK)
        if block == _ZEROS:
            return None
        self._headers += 1
        if self._headers > 4 * self._limits.max_entries:  # an entry may have up to three extension headers
            raise _too_many(self._limits)
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise BadArchive("The archive is damaged", why="a header's checksum is wrong, or this is no tar archive")
        return block

    def _exactly(self, size: int) -> bytes:
        pieces: list[bytes] = []
        missing = size
        while missing:
            piece = self._stream.read(missing)
            if not piece:
                raise BadArchive("The archive is damaged", why="it ends in the middle")
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _extension(self, header: bytes) -> dict[str, str]:
        size = _number(header[124:136])
        if size > _EXTENSION_BYTES:
            raise TooLarge(f"The archive has an extension header of {size} bytes", why=f"at most {_EXTENSION_BYTES}")
        self._count_names(size)
        data = self._exactly(_padded(size))[:size]
        kind = header[156:157]
        if kind == b"L":
            return {"path": _text(data.partition(b"\0")[0])}
        if kind == b"K":
            return {"linkpath": _text(data.partition(b"\0")[0])}
        return _pax_records(data)

    def _entry(self, header: bytes, extended: dict[str, str]) -> Entry:
        name = extended["path"] if "path" in extended else _ustar_name(header)
        kind = _kind(header[156:157], name)
        size = _decimal(extended["size"]) if "size" in extended else _number(header[124:136])
        if kind != "file" and size:
            raise BadArchive(f"The archive's entry {name!r} is no file, yet has content")
        self._bytes += size
        if self._bytes > self._limits.max_bytes:
            raise _too_large(name, self._limits)
        target = ""
        if kind == "link":
            target = extended["linkpath"] if "linkpath" in extended else _text(_cut(header[157:257]))
        checked = checked_name(name, self._limits)
        self._count_names(len(name) + len(target))
        if kind == "link":
            target = checked_link(checked, target, self._limits)
        elif not checked and kind == "file":
            raise BadArchive("The archive has a file without a name")
        return Entry(
            name=checked,
            kind=kind,
            size=size,
            executable=kind == "file" and bool(_number(header[100:108]) & 0o100),
            target=target,
            mtime=_number(header[136:148]),
        )

    def _count_names(self, size: int) -> None:
        self._names_bytes += size
        if self._names_bytes > self._limits.max_names_bytes:
            raise TooLarge(
                f"The archive's names take more than {self._limits.max_names_bytes} bytes", code="archive_too_large"
            )

    def _content(self, size: int) -> Iterator[bytes]:
        missing = size
        while missing:
            piece = self._exactly(min(missing, CHUNK_BYTES))
            missing -= len(piece)
            self._left -= len(piece)
            yield piece

    def _drain(self) -> None:
        """Read to the end: a gzip stream's checksum stands there, and a writer on a pipe wants to end in peace."""
        after = 0
        while piece := self._stream.read(CHUNK_BYTES):
            after += len(piece)
            if after > _TRAILER_BYTES:
                raise BadArchive("The archive goes on after its end", why=f"more than {_TRAILER_BYTES} bytes follow")


def _too_large(name: str, limits: ArchiveLimits) -> TooLarge:
    return TooLarge(
        f"The archive holds more than {limits.max_bytes} bytes",
        why=f"{name!r} crosses the limit",
        todo=f"Take large files out of it{limits.or_raise('max_bytes')}.",
        code="archive_too_large",
    )


def _too_many(limits: ArchiveLimits) -> TooLarge:
    return TooLarge(
        f"The archive has more than {limits.max_entries} files, folders and links",
        todo=f"Leave generated folders (node_modules, .venv) out of it{limits.or_raise('max_entries')}.",
        code="archive_too_large",
    )


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _cut(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def name_bytes(name: str) -> bytes:
    """Return a name of an entry as the bytes that stand in the file system and in the archive."""
    return name.encode("utf-8", "surrogateescape")


def shown_name(name: str) -> str:
    """Return a name for a text: as it is, or with escapes where it cannot be printed."""
    return name if name.isprintable() else repr(name)


def _number(field: bytes) -> int:
    """An octal number, or (first bit set) a binary one, GNU's way for large values."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise BadArchive("The archive is damaged", why="a number in a header is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.replace(b"\0", b" ").strip()
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise BadArchive("The archive is damaged", why="a number in a header cannot be read")
    return int(digits or b"0", 8)


def _decimal(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise BadArchive("The archive is damaged", why="a size in an extension header cannot be read")
    return int(value)


def _ustar_name(header: bytes) -> str:
    name = _cut(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _cut(header[345:500])):
        name = prefix + b"/" + name
    return _text(name)


_REFUSED = {
    b"1": "a hard link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


def _kind(flag: bytes, name: str) -> Kind:
    if flag in {b"0", b"\0", b"7"}:
        return "dir" if name.endswith("/") else "file"  # the slash is how tar said "folder" before 1988
    if flag == b"5":
        return "dir"
    if flag == b"2":
        return "link"
    what = _REFUSED.get(flag, f"of the unknown kind {flag!r}")
    raise BadArchive(f"The archive's entry {name!r} is {what}", why="only files, folders and symbolic links are taken")


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of a length, a space, `key=value` and a line feed; of interest are path, linkpath and size."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise BadArchive("The archive is damaged", why="an extension header cannot be read")
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if end > len(data) or not equals or not value.endswith(b"\n"):
            raise BadArchive("The archive is damaged", why="an extension header cannot be read")
        if key.startswith(b"GNU.sparse"):
            raise BadArchive("The archive has a sparse file", todo="Pack it without --sparse.")
        if key in {b"path", b"linkpath", b"size"}:
            found[key.decode()] = _text(value[:-1])
        at = end
    return found


def checked_name(name: str, limits: ArchiveLimits) -> str:
    """The name in its plain form, `""` for the root itself.

    Raises:
        BadArchive: It is absolute, climbs, or has a character that no file name can have.
        TooLarge: It is too long or too deep.
    """
    if name.startswith("/"):
        raise BadArchive(f"The archive's entry {name[:200]!r} has an absolute name")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise BadArchive(f"The archive's entry {name[:200]!r} climbs out of its folder")
    if "\0" in name:
        raise BadArchive(f"The archive's entry {name[:200]!r} has a zero byte in its name")
    if (
        len(name_bytes(name)) > limits.max_path_bytes
        or len(parts) > limits.max_depth
        or any(len(name_bytes(part)) > _NAME_BYTES for part in parts)
    ):
        raise TooLarge(
            f"The archive's entry {name[:200]!r}… has a name that is too long or too deep",
            why=f"allowed are {limits.max_path_bytes} bytes, {limits.max_depth} levels, {_NAME_BYTES} bytes a level",
            code="archive_too_large",
        )
    return "/".join(parts)


def checked_link(name: str, target: str, limits: ArchiveLimits) -> str:
    """The target in its plain form, if it cannot lead out of the root, whatever else is in the tree.

    `..` is taken at the beginning only: there it starts in the real folder that holds the link. Behind a name it would
    start wherever that name leads, and a chain of harmless-looking links could climb.

    Raises:
        BadArchive: It leads, or could lead, out of the root.
    """
    parts = [part for part in target.split("/") if part not in {"", "."}]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    depth = name.count("/")
    if not name or not target or "\0" in target or len(name_bytes(target)) > limits.max_path_bytes:
        raise BadArchive(f"The archive's link {name[:200]!r} has no usable target")
    if target.startswith("/") or climbs > depth or ".." in parts[climbs:]:
        raise BadArchive(
            f"The link {name!r} leads to {target[:200]!r}",
            why="that is, or could be, outside of the app's folder",
            todo="Make it a relative link inside the folder (`..` only at its beginning), or a file.",
        )
    return "/".join(parts) or "."


# --- unpacking -------------------------------------------------------------------------------------------------------


def extract_tar(
    source: Source,
    target_dir: Path,
    *,
    limits: ArchiveLimits,
    compression: Compression = "none",
    keep_mtime: bool = False,
    stop: threading.Event | None = None,
) -> ExtractReport:
    """Unpack below `target_dir`, which is made if it is not there; folders that are there are joined, files are not.

    Every folder is opened relative to its parent and never through a link, files are made and never opened, links are
    made last. So several layers can be unpacked over each other, and none can write through another's link. Files get
    mode 0644 or 0755, folders 0755; owner and special bits are not taken over.

    Args:
        source: A file's path or an open stream.
        target_dir: Where to. On an error it holds what was made so far: remove it.
        limits: How much to take.
        compression: What is around the tar.
        keep_mtime: Give files the archive's time. Off by default: with the normal form's one fixed time, every web
            server would answer 304 to a browser that holds the version before.
        stop: Set from another thread: the work ends with `TimedOut`.

    Raises:
        BadArchive: It is damaged, or holds something that is not allowed, or a name is there already.
        TooLarge: A limit is over.
        TimedOut: Its time is over, or `stop` was set.
        StorageFull: The disk has no room left.
    """
    links: list[Entry] = []
    files = folders = written = 0
    with disk_errors(), _Folders(target_dir) as tree:
        for entry, content in _counted(read_tar(source, limits=limits, compression=compression, stop=stop), limits):
            if entry.kind == "link":
                links.append(entry)
            elif entry.kind == "dir":
                tree.enter(entry.parts)
                folders += 1
            else:
                _write_file(tree.enter(entry.parts[:-1]), entry, content, keep_mtime=keep_mtime)
                files += 1
                written += entry.size
        for link in links:
            parent = tree.enter(link.parts[:-1])
            try:
                os.symlink(link.target, link.parts[-1], dir_fd=parent)
            except FileExistsError as error:
                raise _twice(link.name) from error
    return ExtractReport(files=files, folders=folders, links=len(links), bytes_written=written)


def _counted(
    entries: Iterator[tuple[Entry, Iterator[bytes]]], limits: ArchiveLimits
) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    for number, found in enumerate(entries, start=1):
        if number > limits.max_entries:
            raise _too_many(limits)
        yield found


def _twice(name: str) -> BadArchive:
    return BadArchive(f"The archive's entry {name!r} is there already", why="two entries have this name")


class _Folders:
    """Folders below a root, reached by descriptors only: the chain from the root to the last one entered stays open."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._fds = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)]
        self._parts: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def enter(self, parts: tuple[str, ...]) -> int:
        """The folder's descriptor (valid until the next call); what is missing on the way is made."""
        common = 0
        while common < min(len(parts), len(self._parts)) and parts[common] == self._parts[common]:
            common += 1
        while len(self._parts) > common:
            self._parts.pop()
            os.close(self._fds.pop())
        for part in parts[common:]:
            self._fds.append(self._open(self._fds[-1], part, parts))
            self._parts.append(part)
        return self._fds[-1]

    @staticmethod
    def _open(parent: int, name: str, parts: tuple[str, ...]) -> int:
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            made = True
        except FileExistsError:
            made = False
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                where = "/".join(parts)
                raise BadArchive(f"The archive needs the folder {where!r}", why=f"{name!r} is no folder") from error
            raise
        if made:
            os.fchmod(fd, 0o755)  # whatever the umask is
        return fd


def _write_file(parent: int, entry: Entry, content: Iterator[bytes], *, keep_mtime: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mode = 0o755 if entry.executable else 0o644
    try:
        fd = os.open(entry.parts[-1], flags, mode, dir_fd=parent)
    except FileExistsError as error:
        raise _twice(entry.name) from error
    with os.fdopen(fd, "wb", buffering=0) as file:
        for piece in content:
            _write_all(file.fileno(), piece)
        os.fchmod(file.fileno(), mode)
        if keep_mtime:
            os.utime(file.fileno(), (entry.mtime, entry.mtime))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk, or a quota that is used up, becomes `StorageFull`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull(
                "The disk has no room left",
                why=os.strerror(error.errno),
                todo="Make room under the platform's home folder.",
            ) from error
        raise


# --- the normal form -------------------------------------------------------------------------------------------------


def normalise_tar(
    source: Source,
    out_path: Path,
    *,
    limits: ArchiveLimits,
    root: str = ".",
    compression: Compression = "none",
    stop: threading.Event | None = None,
) -> NormalTar:
    """Write the same tree as a tar in the normal form, without unpacking it.

    Normal form: every folder has an entry, entries are sorted by the bytes of their names (a folder's ends in `/`, as
    in git), owner 0, time `NORMAL_MTIME`, modes 0644, 0755 and 0777 for links, pax headers only where a name needs one,
    two zero blocks at the end.

    Args:
        source: A file's path or an open stream.
        out_path: A new file; beside it, content waits in `<out_path>.spool` while the archive is read.
        limits: How much to take.
        root: The folder inside the archive that becomes the root; what is outside of it is left out.
        compression: What is around the source.
        stop: Set from another thread: the work ends with `TimedOut`.

    Raises:
        BadArchive: It is damaged or holds something that is not allowed.
        NotAFolder: The archive has no folder `root`.
        TooLarge: A limit is over.
        TimedOut: Its time is over, or `stop` was set.
        StorageFull: The disk has no room left.
    """
    found = read_tar(source, limits=limits, compression=compression, stop=stop)
    return normalise_entries(found, out_path, limits=limits, root=root, stop=stop)


def normalise_entries(
    found: Iterator[tuple[Entry, Iterator[bytes]]],
    out_path: Path,
    *,
    limits: ArchiveLimits,
    root: str = ".",
    stop: threading.Event | None = None,
) -> NormalTar:
    """Write entries as a tar in the normal form, see `normalise_tar`: those of several archives can be one tree.

    Args:
        found: Checked entries with their content, as `read_tar` gives them; they are counted together.
        out_path: See `normalise_tar`.
        limits: How much to take of all of them.
        root: See `normalise_tar`.
        stop: See `normalise_tar`.
    """
    spool_path = out_path.with_name(out_path.name + ".spool")
    try:
        with disk_errors(), spool_path.open("xb+", buffering=0) as spool:
            index = _spool(_counted(found, limits), spool, checked_name(root, limits), limits)
            with out_path.open("xb") as out:
                writer = _Writer(out, NORMAL_MTIME)
                for name in sorted(index, key=lambda name: _order(index[name][0])):
                    entry, offset = index[name]
                    _raise_if(stop)
                    writer.add(entry, _pieces_at(spool.fileno(), offset, entry.size))
                return writer.finish()
    finally:
        spool_path.unlink(missing_ok=True)


class NotAFolder(InvalidInput):
    """The folder that was asked for is not in the archive."""

    code = "root_not_found"
    title = "No such folder"


def _spool(
    found: Iterable[tuple[Entry, Iterator[bytes]]], spool: BinaryIO, root: str, limits: ArchiveLimits
) -> dict[str, tuple[Entry, int]]:
    """Content one after the other into `spool`; entries by name with the place of their content."""
    index: dict[str, tuple[Entry, int]] = {}
    prefix = f"{root}/" if root else ""
    seen_root = not root
    offset = 0
    for entry, content in found:
        if root and entry.name == root:
            if entry.kind != "dir":
                break
            seen_root = True
            continue
        if not entry.name.startswith(prefix):
            continue
        seen_root = True
        name = entry.name.removeprefix(prefix)
        if entry.kind == "link":
            checked_link(name, entry.target, limits)
        placed = Entry(name=name, kind=entry.kind, size=entry.size, executable=entry.executable, target=entry.target)
        _place(index, placed, offset)
        if offset + entry.size > limits.max_bytes:
            raise _too_large(name, limits)
        for piece in content:
            _write_all(spool.fileno(), piece)
        offset += entry.size
    if not seen_root:
        raise NotAFolder(f"There is no folder {root!r}", todo="Correct the app's `root`, or commit the folder.")
    if len(index) > limits.max_entries:
        raise _too_many(limits)
    return index


def _place(index: dict[str, tuple[Entry, int]], entry: Entry, offset: int) -> None:
    """Put it into the index together with the folders above it; what stands there must be a folder."""
    there = index.get(entry.name)
    if there is not None:
        if there[0].kind == entry.kind == "dir":
            return
        raise _twice(entry.name)
    parent = entry.name.rpartition("/")[0]
    while parent:
        above = index.setdefault(parent, (Entry(name=parent, kind="dir"), 0))[0]
        if above.kind != "dir":
            raise BadArchive(f"The archive's entry {entry.name!r} goes through {parent!r}", why="that is no folder")
        parent = parent.rpartition("/")[0]
    index[entry.name] = (entry, offset)


def _order(entry: Entry) -> bytes:
    return name_bytes(entry.name + "/" if entry.kind == "dir" else entry.name)


def _pieces_at(fd: int, offset: int, size: int) -> Iterator[bytes]:
    end = offset + size
    while offset < end:
        piece = os.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        if not piece:
            raise BadArchive("A file became shorter while it was read")
        offset += len(piece)
        yield piece


def _raise_if(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise TimedOut("Packing the archive was stopped")


class _Writer:
    """Entries in the normal form to a file, hashed on their way."""

    def __init__(self, out: BinaryIO, mtime: int) -> None:
        self._out = out
        self._mtime = mtime
        self._hash = hashlib.sha256()
        self._size = 0
        self._entries = 0

    def add(self, entry: Entry, content: Iterable[bytes] = ()) -> None:
        info = tarfile.TarInfo(entry.name)
        info.mtime = self._mtime
        if entry.kind == "dir":
            info.type, info.mode = tarfile.DIRTYPE, 0o755
        elif entry.kind == "link":
            info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry.target
        else:
            info.mode = 0o755 if entry.executable else 0o644
            info.size = entry.size
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        for piece in content:
            self._write(piece)
        self._write(bytes(_padded(info.size) - info.size))
        self._entries += 1

    def finish(self) -> NormalTar:
        self._write(_ZEROS * 2)
        self._out.flush()
        return NormalTar(digest=f"sha256:{self._hash.hexdigest()}", size_bytes=self._size, entries=self._entries)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self._size += len(data)


# --- packing ---------------------------------------------------------------------------------------------------------


def pack_tar(
    folder: Path,
    out_path: Path,
    *,
    prefix: str = "",
    mtime: int = 0,
    skip_escaping_links: bool = False,
    stop: threading.Event | None = None,
) -> tuple[str, int]:
    """Pack a folder: the same tree gives the same bytes, whoever made it and when.

    Args:
        folder: What to pack.
        out_path: A new file.
        prefix: Where the folder's content stands in the archive (`app`, `layers/python`); its folders get entries.
        mtime: Seconds since 1970 of every entry.
        skip_escaping_links: Leave out links that lead out of the archive's root (node-gyp makes such), in place of
            refusing them. An absolute link into `folder` itself is made relative in either case.
        stop: Set from another thread: the work ends with `TimedOut`.

    Returns:
        The digest (`sha256:` and 64 hex digits) and the size in bytes.

    Raises:
        InvalidInput: A link leads out, or something is neither file, folder nor link; the text names it.
        TimedOut: `stop` was set.
        StorageFull: The disk has no room left.
    """
    limits = ArchiveLimits(max_path_bytes=4096, max_depth=256)
    prefix = checked_name(prefix, limits)
    parts = prefix.split("/") if prefix else []
    above = [Entry(name="/".join(parts[:count]), kind="dir") for count in range(1, len(parts) + 1)]
    entries = [(entry, folder) for entry in above]
    for found in _walk(folder, prefix, folder, limits, skip_escaping_links=skip_escaping_links):
        _raise_if(stop)
        entries.append(found)
    entries.sort(key=lambda found: _order(found[0]))
    with disk_errors(), out_path.open("xb") as out:
        writer = _Writer(out, mtime)
        for entry, path in entries:
            _raise_if(stop)
            writer.add(entry, _file_pieces(path, entry.size) if entry.kind == "file" else ())
        packed = writer.finish()
    return packed.digest, packed.size_bytes


def _walk(
    folder: Path, prefix: str, top: Path, limits: ArchiveLimits, *, skip_escaping_links: bool
) -> Iterator[tuple[Entry, Path]]:
    waiting = [(folder, prefix)]
    while waiting:
        here, above = waiting.pop()
        with os.scandir(here) as found:
            for item in found:
                name = f"{above}/{item.name}" if above else item.name
                path = Path(item.path)
                status = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((path, name))
                    yield Entry(name=name, kind="dir"), path
                elif stat.S_ISREG(status.st_mode):
                    executable = bool(status.st_mode & 0o100)
                    yield Entry(name=name, kind="file", size=status.st_size, executable=executable), path
                elif stat.S_ISLNK(status.st_mode):
                    try:
                        target = checked_link(name, _relative_target(path, top), limits)
                    except BadArchive:
                        if skip_escaping_links:
                            continue
                        raise
                    yield Entry(name=name, kind="link", target=target), path
                else:
                    raise InvalidInput(f"{name!r} is neither a file, a folder nor a link", todo="Remove it.")


def _relative_target(path: Path, top: Path) -> str:
    target = path.readlink()
    if target.is_absolute() and target.is_relative_to(top):
        return os.path.relpath(target, path.parent)
    return os.fspath(target)


def _file_pieces(path: Path, size: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield from _pieces_at(fd, 0, size)
    finally:
        os.close(fd)


def read_members(archive: Path, names: Iterable[str], *, max_bytes: int) -> dict[str, bytes]:
    """The beginnings (`max_bytes` and one byte more, where there is more) of those named files that are there.

    Raises:
        BadArchive: It is damaged, or one of the names is a link.
    """
    wanted = frozenset(names)
    limits = ArchiveLimits(max_bytes=1 << 62)
    found: dict[str, bytes] = {}
    for entry, content in read_tar(archive, limits=limits):
        if entry.name not in wanted or entry.kind == "dir":
            continue
        if entry.kind == "link":
            raise BadArchive(
                f"{entry.name} is a link", why="it is read before the app is unpacked", todo="Make it a file."
            )
        start = bytearray()
        for piece in content:
            start += piece
            if len(start) > max_bytes:
                break
        found[entry.name] = bytes(start[: max_bytes + 1])
    return found
