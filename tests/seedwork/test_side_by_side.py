"""Several works at once, and nobody left at work."""

import asyncio
from functools import partial

import pytest

from seedwork.side_by_side import side_by_side


class Works:
    """What was begun and what ended."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.two_run = asyncio.Event()
        self.most = 0
        self.ended: list[str] = []

    async def do(self, name: str, until: asyncio.Event, fault: Exception | None = None) -> str:
        """Run until then; fail, if told so."""
        self.running.add(name)
        self.most = max(self.most, len(self.running))
        if len(self.running) == 2:
            self.two_run.set()
        try:
            await until.wait()
        finally:
            self.running.discard(name)
        if fault:
            raise fault
        self.ended.append(name)
        return name


async def test_all_run_at_once_and_answer_in_their_order() -> None:
    """The second one ends first."""
    works, first, second = Works(), asyncio.Event(), asyncio.Event()
    both = asyncio.create_task(side_by_side(partial(works.do, "a", first), partial(works.do, "b", second)))
    await works.two_run.wait()
    second.set()
    asyncio.get_running_loop().call_soon(first.set)

    assert await both == ["a", "b"]
    assert works.ended == ["b", "a"]


async def test_no_more_than_so_many_at_a_time() -> None:
    """Of five, two."""
    works, open_ = Works(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, open_.set)

    await side_by_side(*(partial(works.do, name, open_) for name in "abcde"), at_a_time=2)

    assert works.most == 2
    assert sorted(works.ended) == list("abcde")


async def test_a_fault_is_told_when_the_others_have_ended() -> None:
    """Nobody is at work when the caller hears of it."""
    works, now, later = Works(), asyncio.Event(), asyncio.Event()
    now.set()
    asyncio.get_running_loop().call_later(0.01, later.set)

    with pytest.raises(ValueError, match="bad"):
        await side_by_side(partial(works.do, "a", now, ValueError("bad")), partial(works.do, "b", later))

    assert works.ended == ["b"]


async def test_all_are_cancelled_with_the_caller_and_waited_for() -> None:
    """None goes on behind our back."""
    works, never = Works(), asyncio.Event()
    caller = asyncio.create_task(side_by_side(*(partial(works.do, name, never) for name in "ab")))
    await works.two_run.wait()
    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller

    assert not works.running
