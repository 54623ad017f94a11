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
from tests.simulation.plans import plan_of

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
