"""What `.ci/stack` knows of a run of tests: how each ended, what has not, and what is to be run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.ledger import FOLDER, failed, not_ended

ROOT = Path(__file__).parents[2]
TESTS = """\
import pytest


def test_that_passes():
    pass


@pytest.mark.xdist_group("some")
@pytest.mark.parametrize("address", ["a@b", "with a blank"])
def test_that_fails(address):
    assert not address


@pytest.fixture
def broken():
    raise OSError


def test_whose_fixture_fails(broken):
    pass
"""


def ran(folder: Path, *arguments: str) -> Path:
    """These tests in a process of their own; where the ledger is."""
    (folder / "test_some.py").write_text(TESTS)
    argv = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-p", "tests.stack.ledger"]
    environment = {**os.environ, FOLDER: str(folder / "ledger"), "PYTHONPATH": str(ROOT)}
    subprocess.run([*argv, *arguments], cwd=folder, env=environment, check=False, capture_output=True)
    return folder / "ledger"


@pytest.mark.parametrize("workers", [[], ["-n", "1", "--dist", "loadgroup"]])
def test_what_failed_can_be_named_to_another_run(tmp_path: Path, workers: list[str]) -> None:
    """A test whose fixture fails has failed, too; ids are without what a worker adds to them."""
    ledger = ran(tmp_path, *workers)

    wanted = ["test_that_fails[a@b]", "test_that_fails[with a blank]", "test_whose_fixture_fails"]
    assert sorted(failed(ledger)) == [f"test_some.py::{name}" for name in wanted]
    assert not_ended(ledger) == []

    (tmp_path / "again").write_text("".join(f"{each}\n" for each in failed(ledger)))
    ledger = ran(tmp_path, *workers, f"@{tmp_path / 'again'}")
    assert len(failed(ledger)) == len((ledger / "chosen").read_text().splitlines()) == 3


def test_a_run_that_is_cut_short_leaves_what_it_did_not_come_to(tmp_path: Path) -> None:
    """By file, with how many it has."""
    ledger = ran(tmp_path, "--exitfirst")

    assert failed(ledger) == ["test_some.py::test_that_fails[a@b]"]
    assert not_ended(ledger) == ["test_some.py: 2 of 4"]
