"""Crash points: the table and the calls in the code agree; an armed one really kills, and says where; off, nothing."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedwork import crash
from seedwork.crash import POINTS
from seedwork.errors import Misconfigured

ROOT = Path(__file__).parents[2]

PASSES = """
import sys
from types import SimpleNamespace
from seedwork import crash

for message in sys.argv[1:]:
    name, _, labels = message.partition("/")
    crash.point(name, [SimpleNamespace(type=each) for each in labels.split(",")])
    print("passed", message, flush=True)
"""


def calls() -> Iterator[tuple[Path, str]]:
    """Every `crash.point("…")` in the code, with its literal name."""
    for folder in ("libs", "services", "knarr"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == ROOT / "libs" / "seedwork" / "crash.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                    assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: the name is no literal"
                    yield path, str(node.args[0].value)


def test_the_table_and_the_calls_agree() -> None:
    """Each point of the table is passed somewhere, and nothing else is."""
    assert Counter(name for _, name in calls()).keys() == POINTS.keys()


def test_the_points_of_a_step_are_passed_by_the_kernel_alone() -> None:
    """So that they hold for every service alike, also for one that is added."""
    ours = {path.relative_to(ROOT).parts[0] for path, name in calls() if name.startswith(("inbox.", "job.", "outbox."))}
    assert ours == {"libs"}


def run(tmp_path: Path, armed: str, *messages: str) -> tuple[int, list[str], str | None]:
    """Pass points in a process of its own: how it ended, what it passed, its mark."""
    mark = tmp_path / "mark"
    done = subprocess.run(
        [sys.executable, "-c", PASSES, *messages],
        env={**os.environ, "PYTHONPATH": str(ROOT / "libs"), "KNARR_CRASH_AT": armed, "KNARR_CRASH_MARK": str(mark)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), mark.read_text().strip() if mark.exists() else None


def test_off_nothing_happens(tmp_path: Path) -> None:
    """Every point is passed."""
    points = [f"{name}/X" for name in POINTS]
    assert run(tmp_path, "", *points) == (0, [f"passed {each}" for each in points], None)


def test_an_armed_point_kills_with_its_label_and_leaves_its_mark(tmp_path: Path) -> None:
    """By SIGKILL, and not before; the label may be that of any message that passes."""
    ended = run(tmp_path, "job.after_effect/B", "job.after_effect/A", "job.before_effect/B", "job.after_effect/A,B")
    assert ended == (
        -signal.SIGKILL,
        ["passed job.after_effect/A", "passed job.before_effect/B"],
        "job.after_effect/B",
    )


def test_the_count_says_which_time(tmp_path: Path) -> None:
    """Only passages with the label count."""
    ended = run(tmp_path, "outbox.before_publish/A#2", *["outbox.before_publish/A"] * 3)
    assert ended == (-signal.SIGKILL, ["passed outbox.before_publish/A"], "outbox.before_publish/A")


def test_without_a_label_any_passage_counts(tmp_path: Path) -> None:
    """The mark says which one it was."""
    assert run(tmp_path, "outbox.before_publish", "outbox.before_publish/A,B")[2] == "outbox.before_publish/A B"


def test_a_file_arms_a_process_that_runs_and_goes_with_the_crash(tmp_path: Path) -> None:
    """So that the next start is not killed by it."""
    file = tmp_path / "armed"
    assert run(tmp_path, f"@{file}", "job.before_effect/A")[0] == 0
    file.write_text("job.before_effect/A#2")
    returncode, passed, mark = run(tmp_path, f"@{file}", *["job.before_effect/A"] * 2)
    assert (returncode, len(passed), mark) == (-signal.SIGKILL, 1, "job.before_effect/A")
    assert not file.exists()


@pytest.mark.parametrize("spec", ["job.never", "job.before_effect#x", "Job.before_effect", "job.before_effect/a/b"])
def test_what_names_no_point_is_refused(spec: str) -> None:
    """A test that arms nothing would prove nothing."""
    with pytest.raises(Misconfigured, match="names no crash point"):
        crash.arm(spec)
