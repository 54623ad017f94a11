"""What instances print: pipes in, lines in two files per app out; bounded in bytes and in speed.

An app is never made to wait for us: a thread per pipe reads whatever comes. What comes faster than `BYTES_PER_S` for
longer than a burst is counted and dropped, and the log says so. Old lines go when `max_bytes` are reached.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import structlog

from seedwork.messages import rfc3339
from services.deployer.adapters.lines import blotted

log = structlog.get_logger(__name__)

BYTES_PER_S = 1024 * 1024
"""Of one app, kept over time: some 10,000 lines a second, more than anybody reads."""
BURST_BYTES = 8 * 1024 * 1024
"""Of one app at once: a large stack dump passes whole."""
LINE_BYTES = 16 * 1024
"""A longer line is cut into several."""
UNFINISHED_S = 1.0
"""Text without a line end is kept as a line of its own after this: a prompt, or the last words before a hang."""
TAIL_LINES = 50
"""Kept per process for error messages."""
MAX_LINES = 10_000
"""Asked for at once, at most."""
_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_F_SETPIPE_SZ = 1031
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_FOLLOW_S = 0.2


class AppLog:
    """The two files of one app: the current one and the one before. Safe to use from several threads."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self._half = max_bytes // 2
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._size = 0
        self._allowance = float(BURST_BYTES)
        self._counted_at = time.monotonic()
        self._dropped = 0

    @property
    def older(self) -> Path:
        """The file before the current one."""
        return self.path.with_name(self.path.name + ".1")

    def has_room(self, size: int) -> bool:
        """Whether that many bytes may be written now; else they are counted as dropped."""
        with self._lock:
            now = time.monotonic()
            self._allowance = min(BURST_BYTES, self._allowance + (now - self._counted_at) * BYTES_PER_S)
            self._counted_at = now
            if size > self._allowance:
                self._dropped += size
                return False
            self._allowance -= size
            return True

    def write(self, label: str, lines: Iterable[bytes]) -> None:
        """Append lines (without their ends), each with the time and who printed it."""
        prefix = f"{rfc3339(datetime.now(UTC))} {label} | ".encode()
        with self._lock:
            note = b""
            if self._dropped:
                note = prefix + f"[knarr dropped {self._dropped} bytes: too fast to keep]\n".encode()
                self._dropped = 0
            self._append(note + b"".join(prefix + line + b"\n" for line in lines))

    def say(self, label: str, text: str) -> None:
        """A line of our own."""
        self.write(label, [f"[knarr] {text}".encode()])

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def remove(self) -> list[str]:
        """Remove both files; which there were."""
        self.close()
        found = [path for path in (self.path, self.older) if path.exists()]
        for path in found:
            path.unlink(missing_ok=True)
        return [f"log {path.name}" for path in found]

    def _append(self, data: bytes) -> None:
        try:
            if self._file is not None and self._size + len(data) > self._half:
                self._file.close()
                self._file = None
                self.path.replace(self.older)
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.fdopen(os.open(self.path, _APPEND, 0o600), "ab", buffering=0)
                self._size = os.fstat(self._file.fileno()).st_size
            self._file.write(data)
            self._size += len(data)
        except OSError as error:  # a full disk must not stop the app; the next line tries again
            self._dropped += len(data)
            log.warning("an app's output could not be kept", path=self.path.name, error=error.strerror)

    def last(self, lines: int) -> list[bytes]:
        """The last lines, with their ends, oldest first."""
        return self._last(lines)[0]

    def _last(self, lines: int) -> tuple[list[bytes], tuple[int, int]]:
        """The last lines, and where they end: inode and offset."""
        lines = max(0, min(lines, MAX_LINES))
        found: list[bytes] = []
        end = (0, 0)
        for path in (self.path, self.older):
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    if path == self.path:
                        end = (status.st_ino, status.st_size)
                    found = _last_lines(file, status.st_size, lines - len(found)) + found
            except FileNotFoundError:
                continue
            if len(found) >= lines:
                break
        return found, end

    async def read(self, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The last lines; with `follow` what is appended from then on, until the caller ends it."""
        found, (inode, offset) = await asyncio.to_thread(self._last, lines)
        for first in range(0, len(found), 500):
            yield b"".join(found[first : first + 500])
        while follow:
            pieces, inode, offset = await asyncio.to_thread(self._news, inode, offset)
            for piece in pieces:
                yield piece
            if not pieces:
                await asyncio.sleep(_FOLLOW_S)

    def _news(self, inode: int, offset: int) -> tuple[list[bytes], int, int]:
        """What was appended after `offset` of the file `inode`; also when that one was put aside meanwhile."""
        pieces: list[bytes] = []
        for path in (self.older, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                current = os.fstat(file.fileno()).st_ino
                if path == self.older and current != inode:
                    continue
                file.seek(offset if current == inode else 0)
                if data := file.read(_READ_BYTES):
                    pieces.append(data)
                inode, offset = current, file.tell()
                if path == self.older and data:
                    break  # there may be more of it
        return pieces, inode, offset


class Output:
    """What one process prints: give `write_fd` to it, then `started`; read until every holder of the pipe is gone."""

    def __init__(self, app_log: AppLog, label: str) -> None:
        self._log = app_log
        self._label = label
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._read_fd, self.write_fd = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._read_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._pump, name=f"output-{label}", daemon=True)

    def started(self) -> None:
        """The process has the pipe (or there is none after all): close our end, begin to read."""
        os.close(self.write_fd)
        self._thread.start()

    async def ended(self, timeout_s: float) -> None:
        """Wait until everything was read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()

    def tail(self, *, secrets: Iterable[str] = ()) -> tuple[str, ...]:
        """The last lines, oldest first, with `secrets` blotted out."""
        return blotted(list(self._tail), secrets)

    def _pump(self) -> None:
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN | select.POLLHUP)
        rest, since, was_cut = b"", 0.0, False
        try:
            while True:
                left_s = since + UNFINISHED_S - time.monotonic()
                if rest and (left_s <= 0 or not poller.poll(left_s * 1000)):
                    self._keep([rest])
                    rest, was_cut = b"", True
                    continue
                if not (data := os.read(self._read_fd, _READ_BYTES)):
                    break
                if not self._log.has_room(len(data)):
                    rest, was_cut = b"", False
                    continue
                if not rest:
                    since = time.monotonic()
                rest, was_cut = self._take(rest + data, was_cut=was_cut), False
            if rest:
                self._keep([rest])
        finally:
            os.close(self._read_fd)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._ended.set)

    def _take(self, data: bytes, *, was_cut: bool) -> bytes:
        """Keep the whole lines; what is left over. The line end that follows a line that was cut is no line."""
        *lines, rest = data.split(b"\n")
        if was_cut and lines and not lines[0].rstrip(b"\r"):
            del lines[0]
        while len(rest) > LINE_BYTES:
            lines.append(rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._keep(lines)
        return rest

    def _keep(self, lines: list[bytes]) -> None:
        kept = [piece for line in lines for piece in _cut(line)]
        if kept:
            self._tail.extend(piece.rstrip(b"\r") for piece in kept)
            self._log.write(self._label, kept)


def _cut(line: bytes) -> Iterator[bytes]:
    if len(line) <= LINE_BYTES:
        yield line
        return
    for start in range(0, len(line), LINE_BYTES):
        yield line[start : start + LINE_BYTES]


def _last_lines(file: BinaryIO, size: int, lines: int) -> list[bytes]:
    """Read backwards, a block at a time, until there are enough line ends."""
    data = b""
    position = size
    while position > 0 and data.count(b"\n") <= lines:
        step = min(_READ_BYTES, position)
        position -= step
        file.seek(position)
        data = file.read(step) + data
    *whole, rest = data.split(b"\n")  # `splitlines` ends lines at carriage returns too
    found = [line + b"\n" for line in whole] + ([rest] if rest else [])
    return found[-lines:] if lines else []
