"""Webhook bodies under a common limit: anybody may send them, and nobody is to fill the memory with them.

Each body has the first megabyte for itself, which is more than most pushes need. What all bodies together hold beyond
that is bounded; who comes over the bound is told to come again.
"""

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from seedwork.chassis.body import stream_limited
from seedwork.errors import Unavailable

OWN_BYTES = 1_000_000
COMMON_BYTES = 100_000_000
"""Four of the largest bodies at once."""


class Bodies:
    """Reads bodies; knows how much of them is in memory."""

    def __init__(self, *, limit_bytes: int, common_bytes: int = COMMON_BYTES) -> None:
        """Take the limit of one body, and that of all large ones together."""
        self._limit_bytes = limit_bytes
        self._free_bytes = common_bytes

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """A whole raw body; it counts until the context ends.

        Raises:
            TooLarge: It is over the limit; nothing past that is read.
            Unavailable: Too many large ones are being read.
            InvalidInput: The client went away in the middle.
        """
        taken_bytes = 0
        body = bytearray()
        try:
            async for chunk in stream_limited(request, self._limit_bytes):
                body += chunk
                beyond_bytes = max(len(body) - OWN_BYTES, 0)
                self._free_bytes -= beyond_bytes - taken_bytes
                taken_bytes = beyond_bytes
                if self._free_bytes < 0:
                    raise Unavailable(
                        "The body cannot be read now",
                        why="too many large webhooks are being read",
                        todo="Send it again; GitHub's page of the hook has a button for that.",
                    )
            yield bytes(body)
        finally:
            self._free_bytes += taken_bytes
