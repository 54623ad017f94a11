"""Upkeep of a store waits for a quiet moment, and writers wait for upkeep."""

import asyncio

import pytest

from ocistore.upkeep import Upkeep, upkeep_of
from seedwork.errors import Unavailable


async def test_services_of_one_process_share_it() -> None:
    """By the store's place."""
    first = upkeep_of("http://127.0.0.1:1")
    assert upkeep_of("http://127.0.0.1:1") is first
    assert upkeep_of("http://127.0.0.1:2") is not first


async def test_it_waits_until_nothing_is_written() -> None:
    """Writers beside each other are no matter; the last one that leaves lets it begin."""
    upkeep, order = Upkeep(), []

    async def tidy() -> None:
        async with upkeep.alone(wait_s=30):
            order.append("upkeep")

    async with upkeep.writing():
        tidying = asyncio.create_task(tidy())
        async with upkeep.writing():
            await asyncio.sleep(0)
            order.append("written")
    await tidying
    assert order == ["written", "upkeep"]


async def test_a_writer_that_comes_meanwhile_waits() -> None:
    """Also when the upkeep fails."""
    upkeep, order = Upkeep(), []

    async def write() -> None:
        async with upkeep.writing():
            order.append("written")

    writing: list[asyncio.Task[None]] = []

    async def tidy() -> None:
        async with upkeep.alone(wait_s=30):
            writing.append(asyncio.create_task(write()))
            for _ in range(5):
                await asyncio.sleep(0)
            order.append("upkeep")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await tidy()
    await writing[0]
    assert order == ["upkeep", "written"]


async def test_it_gives_up_while_builds_go_on() -> None:
    """With a reason; and the writers are not held up by that."""
    upkeep = Upkeep()
    async with upkeep.writing():
        with pytest.raises(Unavailable, match=r"builds are under way \(1\)"):
            async with upkeep.alone(wait_s=0):
                raise AssertionError
        async with upkeep.writing():
            pass
