"""Blocking work beside the event loop: run in a thread, told to stop when its task is cancelled, and waited for.

`asyncio.to_thread` returns to a cancelled caller at once while the thread goes on, so that clean-up would race with it.
Here the caller gets its `CancelledError` only when the thread has let go of its files.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_POOL = ThreadPoolExecutor(max_workers=64, thread_name_prefix="work")
"""Asyncio's own has 6 threads on 2 cores: a few large archives would keep every small file waiting. Made as needed."""


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work(stop)` in a thread; a cancellation sets `stop` and is raised once the thread has ended.

    Args:
        work: Looks at `stop` every fraction of a second and ends early, by an exception, when it is set.
    """
    stop = threading.Event()
    context = contextvars.copy_context()  # log lines from the thread name their saga, too
    running = asyncio.get_running_loop().run_in_executor(_POOL, context.run, work, stop)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # a second one must not leave the thread behind either
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # looked at: it only says that the work was stopped
        raise
