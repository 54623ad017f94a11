"""Work beside the event loop: it is told to stop, and waited for."""

import asyncio
import contextvars
import threading

import pytest

from seedwork.threads import in_thread

BOUND_S = 20


async def test_a_result_or_an_error_comes_back() -> None:
    """As if it had been called."""
    assert await in_thread(lambda stop: stop.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda _: 1 // 0)


async def test_a_cancelled_caller_gets_its_cancellation_when_the_thread_has_ended() -> None:
    """Also if it is cancelled twice: what the thread works on can be removed then."""
    began, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(BOUND_S)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(began.wait, BOUND_S)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_long_work_does_not_keep_short_work_waiting() -> None:
    """Forty pieces of work that wait for each other are all under way at once."""
    together = threading.Barrier(40, timeout=BOUND_S)
    await asyncio.gather(*(in_thread(lambda _: together.wait()) for _ in range(40)))


async def test_the_thread_sees_the_context_of_its_caller() -> None:
    """So that its log lines name the saga."""
    saga: contextvars.ContextVar[str] = contextvars.ContextVar("saga")
    saga.set("0192")
    assert await in_thread(lambda _: saga.get()) == "0192"
