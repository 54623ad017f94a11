"""Pieces of a stream in, its lines out, whatever their length: a very long one is cut.

A line ends at a line feed only: a carriage return before it is part of the line, as the app printed it.
"""

from collections.abc import Iterable, Iterator

from seedwork.masking import Hidden

LINE_BYTES = 1024 * 1024
"""Beyond this a line without an end is given in parts: memory is bounded."""


class Lines:
    """Puts lines together."""

    def __init__(self, *, line_bytes: int = LINE_BYTES) -> None:
        self._rest = bytearray()
        self._line_bytes = line_bytes

    def add(self, data: bytes) -> Iterator[bytes]:
        """The lines that end in this piece, without their ends."""
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            yield from lines
        if len(self._rest) > self._line_bytes:
            yield from self.end()

    def end(self) -> Iterator[bytes]:
        """What came after the last end of a line."""
        if self._rest:
            yield bytes(self._rest)
            self._rest.clear()


def blotted(lines: Iterable[bytes], secrets: Iterable[str]) -> tuple[str, ...]:
    """The lines as an error may carry them: text of a bounded length, with the secrets blotted out."""
    texts = [raw.rstrip(b"\r").decode(errors="replace") for raw in lines]
    return tuple(line[:1000] for line in Hidden(secrets).lines(texts))
