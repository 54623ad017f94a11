"""The whole platform on virtual time, with everything that goes wrong: whatever happens, the invariants hold.

`history.py` lists them. Each part runs a quarter of the sagas, so that two workers share them. The seeds are the same
each time, so that what passes here passes there; KNARR_SIMULATION_SEED chooses others, and `make simulate SEEDS=…` runs
as many as wanted.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation.history import run
from tests.simulation.many import explained, until
from tests.simulation.plans import Jump, Plan, Press, Storm, plan_of
from tests.simulation.world import Fate

SAGAS = 2_000
PARTS = 4
ROOT = Path(__file__).parents[2]
FIRST_SEED = int(os.environ.get("KNARR_SIMULATION_SEED") or 0)


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_every_saga_ends_as_it_should(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    """Crashes at any await, pauses, loss, duplicates, reordering, clock jumps, storms, and every button pressed."""
    first_seed = FIRST_SEED + 1_000 * part
    report = until(SAGAS // PARTS, first_seed=first_seed)
    record_property("summary", f"simulation, seeds from {first_seed}: {report}")
    assert not report.failed, explained(report.failed[0])


@pytest.mark.parametrize("only", [None, 8], ids=["everybody", "one-coordinator"])
@pytest.mark.parametrize("lasting_s", [0.0, 60.0], ids=["for-ever", "for-a-minute"])
@pytest.mark.parametrize("hours", [1.0, -1.0])
def test_a_clock_that_jumps_by_an_hour_breaks_nothing(hours: float, lasting_s: float, only: int | None) -> None:
    """In the middle of leases, waits and undos, with steps that are tried again and slow ones."""
    fates = (Fate("deploy", "flaky", 9), Fate("publish", "slow", 40))
    jump = Jump(hours, lasting_s, only, gap_s=8.0)
    plan = Plan((Storm(12, fates=fates), jump, Storm(6, gap_s=4.0), Press("cancel", 1, gap_s=1.0)), hold_s=60)
    outcome = run(plan)
    assert outcome.violations == []
    assert outcome.faults["clocks jump"] == 1
    assert sum(outcome.ends.values()) == outcome.sagas >= 18


def test_a_log_replays_though_a_report_moved_a_wait_while_the_clock_went_back() -> None:
    """Reports are not in the log, and the wait of this history was over before the log alone would have it so."""
    assert run(plan_of(202)).violations == []


def test_a_seed_gives_the_same_history_in_every_process() -> None:
    """Also where Python hashes text differently, or others ran before: what a seed has shown can be shown again."""
    run(replace(plan_of(8), happenings=()))
    here = _digest_of(7)
    script = "import sys; from tests.simulation.test_simulation import _digest_of; sys.stdout.write(_digest_of(7))"
    there = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'libs'}"},
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert there.stdout == here


def _digest_of(seed: int) -> str:
    outcome = run(plan_of(seed))
    return f"{outcome.turns} turns, {outcome.virtual_s:.6f} s, {outcome.sagas} sagas, {outcome.faults}"
