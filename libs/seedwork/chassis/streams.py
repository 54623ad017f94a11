"""Answers that go on for as long as somebody listens, such as a log that is followed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator


async def until(stopping: asyncio.Event, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces, ended early when the service stops: `Service.stopping`. Whoever needs more connects again."""
    stop = asyncio.create_task(stopping.wait())
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(pieces))
            await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            try:
                piece = coming.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        waiting = [each for each in (stop, coming) if each is not None]
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
