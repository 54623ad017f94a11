"""Answers that go on for as long as somebody listens."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from seedwork.chassis.streams import until


class Tap:
    """Pieces that come when the test says so; knows whether it was closed."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self.waiting.get()) is not None:
                yield piece
        finally:
            self.closed = True


async def test_all_that_comes_is_passed_on() -> None:
    """And the end is the end."""
    tap = Tap()
    for piece in (b"one", b"two", None):
        tap.waiting.put_nowait(piece)
    assert [piece async for piece in until(asyncio.Event(), tap.pieces())] == [b"one", b"two"]
    assert tap.closed


async def test_a_stop_ends_it_while_nothing_comes() -> None:
    """What was said before the stop is there; the source has let go of what it held."""
    tap, stopping = Tap(), asyncio.Event()
    stream = until(stopping, tap.pieces())
    tap.waiting.put_nowait(b"one")
    assert await anext(stream) == b"one"
    nothing_comes = asyncio.ensure_future(anext(stream))
    stopping.set()
    with pytest.raises(StopAsyncIteration):
        await nothing_comes
    assert tap.closed


async def test_a_reader_that_leaves_closes_the_source() -> None:
    """Whatever it waits for."""
    tap = Tap()
    stream = until(asyncio.Event(), tap.pieces())
    tap.waiting.put_nowait(b"one")
    await anext(stream)
    await stream.aclose()
    assert tap.closed


async def test_a_fault_of_the_source_is_the_streams() -> None:
    """Nobody may take a part for the whole."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        [piece async for piece in until(asyncio.Event(), broken())]
