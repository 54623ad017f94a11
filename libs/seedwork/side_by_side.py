"""Several short works at once, all of them ended when the caller goes on: none is at work behind anybody's back.

`asyncio.gather` leaves the others running when one fails, so that what undoes them could come before they are done;
`asyncio.TaskGroup` cancels them in the middle, and wraps the fault in a group that no caller expects.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def side_by_side(*works: Callable[[], Awaitable[Any]], at_a_time: int = 8) -> list[Any]:
    """What they give, in their order. Where one fails, the others are waited for, and the first fault is raised.

    Args:
        works: Make what is awaited; all are cancelled with the caller.
        at_a_time: So many of them run at once.
    """
    limit = asyncio.Semaphore(at_a_time)

    async def one(work: Callable[[], Awaitable[Any]]) -> Any:
        async with limit:
            return await work()

    tasks = [asyncio.ensure_future(one(each)) for each in works]
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
