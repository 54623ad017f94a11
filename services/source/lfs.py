"""Git LFS pointers: small text files that stand for content which is kept elsewhere.

Form: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md. A file is a pointer by its content; whether git-lfs
would replace it (`filter=lfs` in `.gitattributes`) is asked elsewhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from seedwork.archives import Entry

POINTER_BYTES = 1024
"""Pointers are smaller than this, by their specification."""

_START = b"version https://git-lfs.github.com/spec/v1\n"
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size ([0-9]{1,15})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A file whose content is kept elsewhere."""

    name: str
    """Path inside the archive."""
    oid: str
    """SHA-256 of the content, 64 hex digits."""
    size_bytes: int


def read_pointer(name: str, data: bytes) -> Pointer | None:
    """Return what the file stands for; None: it is no pointer."""
    if len(data) >= POINTER_BYTES or not data.startswith(_START):
        return None
    oid, size = _OID.search(data), _SIZE.search(data)
    return None if oid is None or size is None else Pointer(name, oid[1].decode(), int(size[1]))


def watch_pointers(
    entries: Iterator[tuple[Entry, Iterator[bytes]]], found: list[Pointer]
) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """Give the entries on as they are, and add each pointer among them to `found`."""
    for entry, content in entries:
        if entry.kind != "file" or entry.size >= POINTER_BYTES:
            yield entry, content
            continue
        data = b"".join(content)
        if pointer := read_pointer(entry.name, data):
            found.append(pointer)
        yield entry, iter((data,))
