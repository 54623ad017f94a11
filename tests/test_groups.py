"""Tests that share a platform run one after the other, also where there are two workers."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """\
import os
import pathlib

import pytest


@pytest.mark.xdist_group("platform")
@pytest.mark.parametrize("number", range(20))
def test_of_a_group(number, worker_id):
    with pathlib.Path(os.environ["WORKERS"]).open("a") as file:
        file.write(f"{worker_id}\\n")
"""


def test_tests_of_a_group_run_in_one_worker(tmp_path: Path) -> None:
    """They share a namespace, a compose project and ports: two at a time would be each other's end."""
    (tmp_path / "test_some.py").write_text(TESTS)
    workers = tmp_path / "workers"
    argv = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), "-p", "tests.groups"]
    environment = {**os.environ, "WORKERS": str(workers), "PYTHONPATH": str(ROOT)}
    grouped = ["-n", "2", "--dist", "loadgroup"]
    subprocess.run([*argv, *grouped], cwd=tmp_path, env=environment, check=True, capture_output=True)

    told = workers.read_text().split()
    assert len(told) == 20
    assert len(set(told)) == 1
