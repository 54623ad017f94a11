"""A plugin of pytest: keeps, while tests run, which were chosen and how each has ended, in case a run is cut short.

    KNARR_LEDGER=build/stack python -m pytest -p tests.stack.ledger …      writes `chosen` and `ended` there
    python -m tests.stack.ledger left build/stack                          says what had not ended
    python -m tests.stack.ledger failed build/stack                        lists what failed, for `pytest @FILE`

`chosen` has one node id a line, `ended` lines of outcome and node id; both are complete up to the moment of a kill.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = "KNARR_LEDGER"


class Ledger:
    """Writes both files.

    Args:
        folder: Where; the files of an earlier run go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._chosen, self._ended = folder / "chosen", folder / "ended"
        self._chosen.write_text("")
        self._ended.write_text("")
        self._failed: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Of a run without workers; the process that only has workers has no tests of its own."""
        if session.items:
            self._choose(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Each worker has found the same tests."""
        self._choose(ids)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test has ended with its last part, a failure of any part is the test's."""
        if report.failed:
            self._failed.add(report.nodeid)
        if report.when == "teardown":
            outcome = "failed" if report.nodeid in self._failed else "passed"
            with self._ended.open("a") as file:
                file.write(f"{outcome} {_plain(report.nodeid)}\n")

    def _choose(self, ids: Iterable[str]) -> None:
        self._chosen.write_text("".join(f"{_plain(each)}\n" for each in ids))


def pytest_configure(config: pytest.Config) -> None:
    """Where somebody wants it; in the process that hears of all tests."""
    if os.environ.get(FOLDER) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(Path(os.environ[FOLDER])))


def _plain(name: str) -> str:
    """Without the group that xdist adds: `…::test_it[a@b]@group`."""
    plain, at, group = name.rpartition("@")
    return plain if at and "]" not in group else name


def failed(folder: Path) -> Sequence[str]:
    """Node ids, in the order in which they ended.

    Args:
        folder: Where a run has kept its files.
    """
    lines = (folder / "ended").read_text().splitlines()
    return [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]


def not_ended(folder: Path) -> Sequence[str]:
    """By file, how many of its tests had not ended.

    Args:
        folder: Where a run has kept its files.
    """
    chosen = (folder / "chosen").read_text().splitlines()
    ended = {line.partition(" ")[2] for line in (folder / "ended").read_text().splitlines()}
    all_of = Counter(each.partition("::")[0] for each in chosen)
    left_of = Counter(each.partition("::")[0] for each in chosen if each not in ended)
    return [f"{path}: {count} of {all_of[path]}" for path, count in sorted(left_of.items())]


if __name__ == "__main__":
    _, what, its_folder = sys.argv
    found = {"left": not_ended, "failed": failed}[what](Path(its_folder))
    sys.stdout.write("".join(f"{line}\n" for line in found))
