"""A plugin of pytest: writes into the README how the scenarios ended in this setting, and on which servers.

    E2E_SETTING=compose python -m pytest -p tests.e2e.table tests/e2e

The rows of the other settings stay as their last runs wrote them. A run that is cut short, or that was asked for a part
of the scenarios only, writes nothing.
"""

import datetime as dt
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from platform import python_version
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- written by `make scenarios`: begin -->", "<!-- written by `make scenarios`: end -->"
HEAD = ("| Setting | Servers | Scenarios | When |", "|---|---|---|---|")
SETTINGS = {
    "laptop": "`knarr up`: one process, apps as processes",
    "compose": "six containers, apps by the Docker runtime",
    "cluster": "services in the cluster, apps by the Kubernetes runtime",
}
SERVERS = pytest.StashKey[str]()
"""Where the platform's fixture leaves what it ran on."""


def row(setting: str, servers: str, counts: Mapping[str, int], when: dt.date) -> str:
    """One line; an outcome that nobody had is left out."""
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    return f"| {SETTINGS[setting]} | {servers} | {told} | {when.isoformat()} |"


def written(text: str, setting: str, line: str) -> str:
    """The page with this row in place of the setting's earlier one."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    assert begin, f"the page has no {BEGIN}"
    assert end, f"the page has no {END}"
    rows = {name: each for name, what in SETTINGS.items() for each in inside.splitlines() if what in each}
    rows[setting] = line
    lines = [*HEAD, *(rows[name] for name in SETTINGS if name in rows)]
    return "\n".join([before + begin, *lines, end + after])


def outcomes(terminalreporter: Any) -> dict[str, int]:
    """How many passed and did not; what was left out as the laptop's own is not run."""
    count = {name: len(terminalreporter.getreports(name)) for name in ("passed", "failed", "error", "deselected")}
    return {"passed": count["passed"], "failed": count["failed"] + count["error"], "not run": count["deselected"]}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Write the row, if all of it was run."""
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} or config.option.keyword:
        return
    setting = os.environ.get("E2E_SETTING", "laptop")
    servers = config.stash.get(SERVERS, f"none: Python {python_version()}, SQLite {sqlite3.sqlite_version}")
    today = dt.datetime.now(dt.UTC).date()
    line = row(setting, servers, outcomes(terminalreporter), today)
    README.write_text(written(README.read_text(), setting, line))
    terminalreporter.write_line(f"README.md: {line}")
