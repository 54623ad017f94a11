"""Build logs: one file a saga, every attempt appended, masked and bounded, readable by byte offset at any time.

A log outlives its build, its saga and the process; `sweep` removes logs without a write for a long time. A line is
written when it is complete; an unfinished line is written by `show_unfinished`, without what may be half a secret.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput
from seedwork.messages import rfc3339
from services.builder.masking import Mask

_LINE_BYTES = 8192
"""A longer line is broken here: a tool that prints without end must not fill memory."""
_TAIL_LINES = 50
_TAIL_LINE_CHARACTERS = 500
_BEFORE_BYTES = 64
"""End of the shown part of a line that the mask looks at: the scheme of a URL may stand there."""
_HELD_BYTES = 1024
"""End of a long unfinished line that is not written yet: a URL with a password may go on in what follows."""


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
        self._secrets = frozenset(secrets)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, saga_id: str, *, attempt: int, secrets: Iterable[str] = ()) -> "BuildLog":
        """Continue the log with a header for this attempt; `secrets` are masked besides those of the service."""
        mask = Mask(self._secrets.union(secrets))
        log = BuildLog(self.path(saga_id), max_bytes=self._max_bytes, mask=mask)
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
    """One attempt's writer. Its methods may be called by several threads.

    Args:
        path: The file; it is appended to.
        max_bytes: Size in bytes up to which the file is written.
        mask: Takes secrets out.
    """

    def __init__(self, path: Path, *, max_bytes: int, mask: Mask) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        self._max_bytes = max_bytes
        self._mask = mask
        self._lock = threading.RLock()
        self._size = self._file.tell()
        self._partial = b""
        """The end of the output that is not shown yet, as the tool printed it."""
        self._line = bytearray()
        """The line that is not complete yet, as far as it is shown."""
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._cut_bytes = 0

    def begin(self, header: str) -> None:
        """Write the attempt's header, also where the log is full, since attempts are few."""
        with self._lock, disk_errors():
            self._size += self._file.write(header.encode() + b"\n")

    def write(self, text: bytes) -> None:
        """Take output of a tool, in pieces of any size."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split(b"\n")
            shown = [piece for line in lines for piece in self._shown(line.rstrip(b"\r"), ends=True)]
            held = max(self._mask.longest, _HELD_BYTES)
            if len(self._partial) > _LINE_BYTES + held:
                shown += self._unfinished(len(self._partial) - held)
            self._append(b"".join(shown))

    def say(self, line: str) -> None:
        """Write a line of the builder itself."""
        with self._lock:
            self.flush()
            self._append(b"".join(self._shown(line.encode(), ends=True)))

    def write_unfinished(self, text: bytes) -> int:
        """See `BuildOutput.write_unfinished`."""
        with self._lock:
            self.write(text)
            self.show_unfinished()
            left, self._partial = len(self._partial), b""
            return len(text) - left

    def show_unfinished(self) -> None:
        """Write what came without a line's end, but not the beginning of what may be a secret."""
        with self._lock:
            if self._partial:
                self._append(b"".join(self._unfinished(len(self._partial))))

    def flush(self) -> None:
        """Write what came without a line's end, and end the line."""
        with self._lock:
            if self._partial or self._line:
                rest, self._partial = self._partial, b""
                self._append(b"".join(self._shown(rest, ends=True)))

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines, oldest first, also those that were cut from the file."""
        with self._lock:
            self.flush()
            texts = [line.decode(errors="replace")[:_TAIL_LINE_CHARACTERS] for line in self._tail if line.strip()]
            return tuple(texts[-lines:])

    def close(self) -> None:
        """Write the rest and the number of bytes that were cut."""
        with self._lock:
            self.flush()
            if self._cut_bytes:
                with disk_errors():
                    self._file.write(b"=== %d more bytes were printed\n" % self._cut_bytes)
            self._file.close()

    @property
    def _before(self) -> bytes:
        return bytes(self._line[-_BEFORE_BYTES:])

    def _unfinished(self, most: int) -> Iterator[bytes]:
        """Show the beginning of the unfinished line: at most so many bytes, and nothing that may be half a secret."""
        safe = self._mask.safe_bytes(self._partial[:most], before=self._before)
        if not safe and most >= _LINE_BYTES:
            safe = most
        now, self._partial = self._partial[:safe], self._partial[safe:]
        return self._shown(now, ends=False)

    def _shown(self, text: bytes, *, ends: bool) -> Iterator[bytes]:
        """Mask a piece of one line, and break the line where it is too long."""
        clean = self._mask.clean(text, before=self._before)
        at = 0
        while len(self._line) + len(clean) - at > _LINE_BYTES:
            piece = clean[at : at + _LINE_BYTES - len(self._line)]
            at += len(piece)
            self._line += piece
            yield piece + self._ended_line()
        self._line += clean[at:]
        yield clean[at:] + (self._ended_line() if ends else b"")

    def _ended_line(self) -> bytes:
        self._tail.append(bytes(self._line))
        self._line.clear()
        return b"\n"

    def _append(self, text: bytes) -> None:
        room = self._max_bytes - self._size
        if len(text) <= room:
            self._size += len(text)
        else:
            if not self._cut_bytes:
                note = b"\n=== the log is cut here: it has %d bytes, the limit (KNARR_BUILD_LOG_MAX_BYTES)\n"
                kept = text[: text.rfind(b"\n", 0, max(room, 0)) + 1].removesuffix(b"\n")
                self._cut_bytes = len(text) - len(kept)
                text = kept + note % (self._size + len(kept))
            else:
                self._cut_bytes += len(text)
                text = b""
            self._size = self._max_bytes
        with disk_errors():
            if text:
                self._file.write(text)
