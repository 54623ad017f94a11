from collections.abc import AsyncIterator

from fastapi import Request
from pydantic import BaseModel

from seedwork.chassis.body import DEFAULT_LIMIT_BYTES, read_limited, stream_limited
from seedwork.chassis.service import Service
from seedwork.testing.http import running


class Chunks:
    """A body without an announced length that knows how much of it was read."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._count = count
        self._size_bytes = size_bytes
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._count):
            self.read += 1
            yield b"x" * self._size_bytes


class Text(BaseModel):
    text: str


def _routes(service: Service) -> None:
    @service.app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await read_limited(request, 5_000_000))

    @service.app.post("/small")
    async def small(request: Request) -> int:
        return len(await read_limited(request, 10))

    @service.app.post("/stream")
    async def stream(request: Request) -> int:
        return sum([len(chunk) async for chunk in stream_limited(request, 5_000_000)])

    @service.app.post("/json")
    async def json(text: Text) -> int:
        return len(text.text)


async def test_a_route_can_take_more_or_less_than_the_default(service: Service) -> None:
    """The route says how much, not a global number."""
    _routes(service)
    size = DEFAULT_LIMIT_BYTES * 2
    async with running(service.app) as client:
        assert (await client.post("/raw", content=b"x" * size)).json() == size
        assert (await client.post("/stream", content=Chunks(20, 200_000))).json() == 4_000_000
        assert (await client.post("/small", content=b"x" * 10)).json() == 10
        assert (await client.post("/small", content=b"x" * 11)).status_code == 413
        assert (await client.post("/raw", content=b"")).json() == 0


async def test_a_body_that_announces_too_much_is_not_read(service: Service) -> None:
    """Not one byte of it, and the connection is closed."""
    _routes(service)
    body = Chunks(10, 1_000_000)
    async with running(service.app) as client:
        response = await client.post("/raw", content=body, headers={"Content-Length": "10000000"})
    assert response.status_code == 413
    assert "5000000 bytes" in response.json()["detail"]
    assert response.headers["Connection"] == "close"
    assert body.read == 0


async def test_a_body_that_announces_nothing_is_read_up_to_the_limit(service: Service) -> None:
    """The chunk over the limit is the last one that anybody asks for."""
    _routes(service)
    body = Chunks(1000, 1_000_000)
    async with running(service.app) as client:
        assert (await client.post("/stream", content=body)).status_code == 413
    assert body.read <= 7


async def test_every_other_route_has_the_default_limit(service: Service) -> None:
    """JSON is read by the framework; it must not be able to fill the memory."""
    _routes(service)
    async with running(service.app) as client:
        assert (await client.post("/json", json={"text": "x" * 1000})).json() == 1000
        response = await client.post("/json", json={"text": "x" * DEFAULT_LIMIT_BYTES})
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
