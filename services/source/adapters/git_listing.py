"""What a tree of a mirror holds, by `git ls-tree`: how much, which submodules, and the digest of watched files.

Trees are read as they are listed, never held: a few bytes of a repository can name 10^9 files. All of this blocks.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seedwork.archives import ArchiveLimits
from seedwork.errors import TooLarge
from services.source.adapters.git_output import output_of
from services.source.watching import Watch


def counted_links(mirror: Path, tree: str, limits: ArchiveLimits, stop: threading.Event) -> Sequence[tuple[str, str]]:
    """Refuse a tree that is too large before `git archive` takes it into memory; path and commit of its submodules."""
    size = 0
    links: list[tuple[str, str]] = []
    records = _records(mirror, ["-r", "-t", "-l", "-z", tree], limits, stop)
    for entries, record in enumerate(records, start=1):
        meta, _, path = record.partition(b"\t")
        _, kind, named, length = meta.split()
        size += int(length) if length.isdigit() else 0  # folders and submodules have `-`
        if kind == b"commit":
            links.append((os.fsdecode(path), named.decode()))
        if entries > limits.max_entries or size > limits.max_bytes:
            raise _too_large(limits)
    return links


def watched_digest(
    mirror: Path, tree: str, patterns: Sequence[str], limits: ArchiveLimits, stop: threading.Event
) -> str:
    """The digest over path, mode and content id of the files and submodules that match, in git's order."""
    watch = Watch(patterns)
    found = hashlib.sha256()
    for number, record in enumerate(_records(mirror, ["-r", "-z", tree], limits, stop), start=1):
        if number > _MOST_FILES:
            raise TooLarge(
                f"The repository has more than {_MOST_FILES} files",
                why="the app's `watch` patterns are compared with each of them",
                todo="Remove the patterns: `knarr apps update APP --watch ''`",
            )
        meta, _, path = record.partition(b"\t")
        if watch.matches(os.fsdecode(path)):
            found.update(b"%d %s %s\0" % (len(path), path, meta))
    return f"sha256:{found.hexdigest()}"


_MOST_FILES = 1_000_000
"""Of a whole repository; the largest in use have some 500,000."""


def paths_and_urls(answer: str) -> Mapping[str, str]:
    """Addresses by path, from what `git config -z` prints of `.gitmodules`."""
    fields: dict[str, dict[str, str]] = {}
    for record in answer.split("\0"):
        key, newline, value = record.partition("\n")
        name, dot, field = key.rpartition(".")
        if newline and dot:
            fields.setdefault(name, {})[field] = value
    return {each["path"].strip("/"): each["url"] for each in fields.values() if each.keys() >= {"path", "url"}}


def _records(mirror: Path, args: Sequence[str], limits: ArchiveLimits, stop: threading.Event) -> Iterator[bytes]:
    rest = b""
    with output_of(mirror, ["ls-tree", *args], limits, stop) as listing:
        while chunk := listing.read(64 * 1024):
            *records, rest = (rest + chunk).split(b"\0")
            yield from records


def _too_large(limits: ArchiveLimits) -> TooLarge:
    return TooLarge(
        f"The app's folder holds more than {limits.max_entries} files or {limits.max_bytes} bytes",
        todo="Take generated and large files out of the repository, or raise KNARR_SOURCE_MAX_ENTRIES"
        " or KNARR_SOURCE_MAX_BYTES.",
        code="archive_too_large",
    )
