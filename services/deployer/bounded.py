"""A stream of which only so much is read: what unpacks from a small file may be without end."""

import gzip
import threading
from typing import BinaryIO

from seedwork.errors import TimedOut, TooLarge


class BoundedStream:
    """A stream for `tarfile`.

    Args:
        stream: What is read.
        limit_bytes: More is an error.
        stop: Set from another thread: the reading ends with `TimedOut`.
        what: What is not done then, for the error: `The bill of materials is not read`.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, *, limit_bytes: int, stop: threading.Event, what: str) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._left = limit_bytes
        self._stop = stop
        self._what = what

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes.

        Raises:
            TooLarge: The stream is longer than it may be.
            TimedOut: Nobody waits any more.
        """
        if self._stop.is_set():
            raise TimedOut(self._what, why="the reading was stopped")
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(self._what, why=f"it has more than {self._limit_bytes} bytes when it is unpacked")
        return data
