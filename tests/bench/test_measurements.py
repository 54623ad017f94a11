"""The measurements themselves, small: what takes minutes in `make bench` must not be found broken there."""

import asyncio
from pathlib import Path

import orjson
import pytest

from bench import figures, orchestra, pages, recovery, steps


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "WORK", tmp_path)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """The figures by name."""
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return {each["name"]: each["values"][0] for each in lines}


def test_sagas_killed_in_flight_all_end_after_the_restart(capsys: pytest.CaptureFixture[str]) -> None:
    """`kill -9` in the middle of sixty of them; time, memory and size are told."""
    recovery.measure(60)
    found = told(capsys)
    assert found["restart, until all have ended"] > found["restart, until it serves"] > 0
    assert found["most memory"] > 0
    assert found["databases at the kill"] > 0


def test_pages_are_read_and_old_sagas_cleaned_while_others_are_deployed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two thousand in place of a million."""
    asyncio.run(pages.measure(2000, 1))
    found = told(capsys)
    assert found["all forms: p99"] >= found["all forms: p50"] > 0
    assert found["cleaned"] > 0
    assert found["round trip meanwhile: p50"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_a_step_without_a_participant_is_named_before_a_measurement_waits_for_it() -> None:
    """And one whose participant takes the command of an older version."""
    orchestra.check_participants()
    without = {name: pair for name, pair in orchestra.COMMANDS.items() if name != "observe"}
    with pytest.raises(RuntimeError, match=r"the step 'observe' of a deployment has no participant"):
        orchestra.check_participants(without)
    with pytest.raises(RuntimeError, match=r"the step 'observe' sends .*ObserveRelease"):
        orchestra.check_participants({**without, "observe": orchestra.COMMANDS["deploy"]})


def test_undos_are_counted_as_steps() -> None:
    """Four commands forward, the last of which fails, and four back."""
    assert orchestra.steps_of(10, fail=False) == 50
    assert orchestra.steps_of(10, fail=True) == 80


@pytest.mark.parametrize("fail", [False, True])
async def test_throughput_is_measured_with_both_kinds_of_participants(*, fail: bool) -> None:
    """Steps a second and processor time a step."""
    for kind in steps.KINDS:
        rate, cost = await steps.throughput(kind, 8, 1, 8, fail=fail)
        assert rate.values[0] > 0
        assert cost.values[0] > 0
