"""Build logs: one file a saga, every attempt appended, masked and bounded, readable by byte offset at any time.

A log outlives its build, its saga and the process; `sweep` removes those that nobody wrote to for a long time. Lines
are complete when they are written, so that a reader never sees half a secret.
"""

import re
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput
from seedwork.messages import rfc3339

_LINE_BYTES = 8192
"""A longer line is broken here: a tool that prints without end must not fill memory."""
_TAIL_LINES = 50
_TAIL_LINE_CHARACTERS = 500
_URL_PASSWORD = re.compile(rb"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\r(?!\n)")
_MASK = b"****"
_SECRET_BYTES = 4
"""Shorter values are masked nowhere: they would blacken ordinary words."""


class BuildLogs:
    """The logs of one service.

    Args:
        folder: Holds `<saga_id>.log`.
        max_bytes: Kept of one log.
        secrets: Values that are never written.
    """

    def __init__(self, folder: Path, *, max_bytes: int, secrets: Iterable[str] = ()) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._secrets = sorted({each.encode() for each in secrets if len(each) >= _SECRET_BYTES}, key=len, reverse=True)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, saga_id: str, *, attempt: int) -> "BuildLog":
        """Continue the log with a header for this attempt."""
        log = BuildLog(self.path(saga_id), max_bytes=self._max_bytes, secrets=self._secrets)
        log.begin(f"=== attempt {attempt} · {rfc3339(datetime.now(UTC))}")
        return log

    def path(self, saga_id: str) -> Path:
        """Where that log is, or would be.

        Raises:
            InvalidInput: That is no saga's id.
        """
        try:
            return self._folder / f"{UUID(saga_id)}.log"
        except ValueError:
            raise InvalidInput(f"{saga_id[:60]!r} is no saga id", todo="Give a UUID.") from None

    def size(self, saga_id: str) -> int:
        """Bytes of that log; 0 where there is none."""
        try:
            return self.path(saga_id).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, saga_id: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset`; empty at the end."""
        try:
            with self.path(saga_id).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def sweep(self, *, keep_s: float) -> int:
        """Remove logs that nobody wrote to for so long; how many."""
        oldest = time.time() - keep_s
        old = [path for path in self._folder.glob("*.log") if path.stat().st_mtime < oldest]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


class BuildLog:
    """One attempt's writer. Not for several threads at once."""

    def __init__(self, path: Path, *, max_bytes: int, secrets: Iterable[bytes]) -> None:
        self._file = path.open("ab", buffering=0)
        self._max_bytes = max_bytes
        self._size = self._file.tell()
        self._secrets = tuple(secrets)
        self._longest_secret = max(map(len, self._secrets), default=0)
        self._partial = b""
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._cut_bytes = 0

    def begin(self, header: str) -> None:
        """The attempt's header: written even where the log is full, since attempts are few."""
        with disk_errors():
            self._size += self._file.write(header.encode() + b"\n")

    def write(self, text: bytes) -> None:
        """Output of a tool, in pieces of any size."""
        *lines, self._partial = (self._partial + text).split(b"\n")
        self._append(lines)
        # masked before it is broken, and broken only where no secret can go on in what has not come yet
        while len(self._partial) > _LINE_BYTES + self._longest_secret:
            clean = self._masked(self._partial)
            self._append([clean[:_LINE_BYTES]])
            self._partial = clean[_LINE_BYTES:]

    def say(self, line: str) -> None:
        """A line of our own."""
        self.flush()
        self._append([line.encode()])

    def flush(self) -> None:
        """Write what came without a line's end."""
        if self._partial:
            lines, self._partial = [self._partial], b""
            self._append(lines)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, oldest first; also of what was cut from the file."""
        self.flush()
        texts = [line.decode(errors="replace")[:_TAIL_LINE_CHARACTERS] for line in self._tail if line.strip()]
        return tuple(texts[-lines:])

    def close(self) -> None:
        """Write what is left, and say how much was cut."""
        self.flush()
        if self._cut_bytes:
            with disk_errors():
                self._file.write(b"=== %d more bytes were printed\n" % self._cut_bytes)
        self._file.close()

    def _append(self, lines: list[bytes]) -> None:
        clean = [self._masked(_ESCAPES.sub(b"", line.rstrip(b"\r"))) for line in lines]
        self._tail.extend(clean)
        text = b"".join(line + b"\n" for line in clean)
        room = self._max_bytes - self._size
        if len(text) <= room:
            self._size += len(text)
        else:
            if not self._cut_bytes:
                note = b"=== the log is cut here: it has %d bytes, the limit (KNARR_BUILD_LOG_MAX_BYTES)\n"
                kept = text[: text.rfind(b"\n", 0, max(room, 0)) + 1]
                self._cut_bytes = len(text) - len(kept)
                text = kept + note % (self._size + len(kept))
            else:
                self._cut_bytes += len(text)
                text = b""
            self._size = self._max_bytes
        with disk_errors():
            if text:
                self._file.write(text)

    def _masked(self, line: bytes) -> bytes:
        for secret in self._secrets:
            line = line.replace(secret, _MASK)
        return _URL_PASSWORD.sub(rb"\1" + _MASK + b"@", line)
