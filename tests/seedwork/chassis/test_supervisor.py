import asyncio

import pytest
import structlog

from seedwork.chassis.metrics import Metrics
from seedwork.chassis.supervisor import Supervisor
from seedwork.errors import Unavailable
from tests.seedwork.chassis.conftest import VirtualClock


async def _settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_wait_doubles_up_to_a_limit_and_begins_anew_after_a_steady_minute(clock: VirtualClock) -> None:
    """A crash loop costs little; an old crash is forgiven."""
    supervisor = Supervisor(clock, Metrics())
    steady = False

    async def crash() -> None:
        if steady:
            await clock.sleep(60)
        raise ZeroDivisionError

    supervisor.start("crash", crash)
    for _ in range(7):
        await _settle()
        clock.advance(60)
    assert clock.slept == [1, 2, 4, 8, 16, 30, 30]
    steady = True
    for _ in range(3):
        await _settle()
        clock.advance(60)
    assert clock.slept[7:10] == [60, 1, 60]
    await supervisor.stop("crash")


async def test_a_task_that_has_done_its_work_is_not_started_again(clock: VirtualClock) -> None:
    """And is no reason to be not ready."""
    supervisor = Supervisor(clock, Metrics())
    runs = 0

    async def once() -> None:
        nonlocal runs
        runs += 1

    supervisor.start("once", once)
    await _settle()
    clock.advance(1000)
    await _settle()
    assert (runs, dict(supervisor.down())) == (1, {})
    await supervisor.stop("once")


async def test_our_own_errors_tell_why_a_task_is_down(clock: VirtualClock) -> None:
    """The sentence, not the type."""
    supervisor = Supervisor(clock, Metrics())

    async def fail() -> None:
        raise Unavailable("The store is away", todo="Look at it.")

    supervisor.start("fail", fail)
    await _settle()
    assert dict(supervisor.down()) == {"fail": "The store is away. Look at it."}
    await supervisor.stop("fail")


async def test_what_is_away_is_no_crash_and_is_looked_for_every_five_seconds(clock: VirtualClock) -> None:
    """An outage of a minute is no reason for tracebacks, nor for half a minute more of standing still."""
    supervisor = Supervisor(clock, Metrics())

    async def fail() -> None:
        raise Unavailable("The database is away")

    with structlog.testing.capture_logs() as lines:
        supervisor.start("fail", fail)
        for _ in range(6):
            await _settle()
            clock.advance(60)
    assert clock.slept == [1, 2, 4, 5, 5, 5]
    assert not any(supervisor.crashes().values())
    assert {(line["log_level"], line["error"], "exc_info" in line) for line in lines} == {
        ("warning", "The database is away.", False)
    }
    await supervisor.stop("fail")


async def test_stopping_waits_until_the_task_has_let_go(clock: VirtualClock) -> None:
    """What it holds is free afterwards."""
    supervisor = Supervisor(clock, Metrics())
    held = True
    started = asyncio.Event()

    async def hold() -> None:
        nonlocal held
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await _settle()
            held = False

    supervisor.start("hold", hold)
    await started.wait()
    await supervisor.stop("hold")
    assert not held
    await supervisor.stop("never started")


async def test_a_name_is_used_once(clock: VirtualClock) -> None:
    """Two tasks of one name could not be told apart."""
    supervisor = Supervisor(clock, Metrics())
    supervisor.start("a", asyncio.Event().wait)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'a'"):
        supervisor.start("a", asyncio.Event().wait)  # type: ignore[arg-type]
    await supervisor.stop("a")
