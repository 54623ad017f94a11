"""Request bodies under a limit: nobody can make a service read more than it wants to.

Every request has the default limit. A route that takes more, or less, says so by reading the body itself with
`read_limited` or `stream_limited`. A body that announces too much is refused before a byte of it is read; one that
lies, at the first chunk over the limit. After a refusal the connection is closed, the rest is never read.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedwork.errors import InvalidInput, TooLarge

DEFAULT_LIMIT_BYTES = 1024 * 1024
"""Enough for any JSON that our API takes."""

_KEY = "knarr.body_limit"


@dataclass(slots=True)
class _Limit:
    max_bytes: int


class BodyLimit:
    """ASGI middleware: the default limit on every request."""

    def __init__(self, app: ASGIApp, *, max_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = _Limit(self._max_bytes)
        announced = _announced_bytes(scope)
        seen_bytes = 0

        async def counted() -> Message:
            nonlocal seen_bytes
            if announced > limit.max_bytes:
                raise _too_large(limit)
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > limit.max_bytes:
                raise _too_large(limit)
            return message

        scope[_KEY] = limit
        await self._app(scope, counted, send)


async def stream_limited(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body in chunks, at most `limit_bytes` in all.

    Raises:
        TooLarge: The body is larger; nothing past the limit is read.
        InvalidInput: The client went away in the middle.
    """
    request.scope[_KEY].max_bytes = limit_bytes
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise InvalidInput("The body ended early", why="the client closed the connection") from error


async def read_limited(request: Request, limit_bytes: int) -> bytes:
    """The whole raw body, at most `limit_bytes`.

    Raises:
        TooLarge: The body is larger; nothing past the limit is read.
        InvalidInput: The client went away in the middle.
    """
    return b"".join([chunk async for chunk in stream_limited(request, limit_bytes)])


def _announced_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _too_large(limit: _Limit) -> TooLarge:
    return TooLarge("The request's body is too large", why=f"the limit is {limit.max_bytes} bytes")
