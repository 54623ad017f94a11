"""Large bodies together stay below a common limit."""

from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from seedwork.chassis.body import BodyLimit
from seedwork.errors import Unavailable
from services.webhook.bodies import OWN_BYTES, Bodies


async def request(size_bytes: int) -> Request:
    """A request with a body of that size, in two chunks, behind the limit that every request has."""
    chunks = [b"x" * (size_bytes // 2), b"x" * (size_bytes - size_bytes // 2)]
    made: list[Request] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(_message: Any) -> None:
        raise AssertionError("nothing is answered here")

    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        made.append(Request(scope, receive))

    await BodyLimit(app)({"type": "http", "method": "POST", "headers": []}, receive, send)
    return made[0]


async def test_large_bodies_share_what_is_free() -> None:
    """The second one does not fit beside the first; when that has left, it does."""
    bodies = Bodies(limit_bytes=10 * OWN_BYTES, common_bytes=3 * OWN_BYTES)
    async with bodies.read(await request(3 * OWN_BYTES)) as first:
        assert len(first) == 3 * OWN_BYTES
        with pytest.raises(Unavailable, match="too many large webhooks"):
            async with bodies.read(await request(3 * OWN_BYTES)):
                pass
    async with bodies.read(await request(3 * OWN_BYTES)):
        pass


async def test_ordinary_bodies_always_fit() -> None:
    """Whatever large ones there are: the first megabyte is each one's own."""
    bodies = Bodies(limit_bytes=10 * OWN_BYTES, common_bytes=OWN_BYTES)
    async with (
        bodies.read(await request(2 * OWN_BYTES)),
        bodies.read(await request(OWN_BYTES)),
        bodies.read(await request(1)) as last,
    ):
        assert last == b"x"
