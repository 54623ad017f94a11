"""Drifts are told once, and repairs come at a growing interval."""

from dataclasses import replace

from services.deployer.adapters.drifts import Ledger, Pace
from services.deployer.ports import Drift

GONE = Drift(app_id="a", saga_id="s", what="the container of web.1 is gone", repaired=False, at_ms=1)


def test_a_drift_that_stays_is_told_once_and_its_repair_as_well() -> None:
    """The event log of an app that another tool fights over stays readable."""
    ledger = Ledger()
    ledger.add(GONE)
    ledger.add(GONE)
    ledger.add(replace(GONE, repaired=True))
    assert [each.repaired for each in ledger.take()] == [False, True]
    assert ledger.take() == []


def test_a_drift_that_comes_again_is_told_again() -> None:
    """Also where it went without a repair of ours."""
    ledger = Ledger()
    ledger.add(GONE)
    ledger.keep_only("a", "s", [])
    ledger.add(GONE)
    assert len(ledger.take()) == 2


def test_drifts_that_are_never_taken_are_bounded() -> None:
    """The oldest go."""
    ledger = Ledger()
    for number in range(1_500):
        ledger.add(replace(GONE, what=f"{number}"))
    taken = ledger.take()
    assert (len(taken), taken[-1].what) == (1_000, "1499")


def test_the_first_repair_is_made_at_once_and_the_next_ones_ever_later() -> None:
    """At last once a minute, and at once again after five quiet minutes."""
    pace, now = Pace(), 1_000_000
    waits = []
    for _ in range(9):
        waits.append(pace.due_ms(now) - now)
        now = max(now, pace.due_ms(now))
        pace.made(now)
    assert waits == [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    assert pace.due_ms(now + 300_001) == now + 300_001
