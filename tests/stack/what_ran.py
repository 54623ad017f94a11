"""A plugin of pytest: at the end, how many tests ran against which server, and which version that server says it has.

A test may talk to several servers and counts for each. What was not run for want of a server is told by
`tests/conftest.py`, beside this.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.stack.servers import SERVERS, Server

WANTED = "servers"
"""The property in which a test keeps the variables of its servers."""


def ran_against(reports: Iterable[Any]) -> Counter[tuple[str, str]]:
    """How often a variable's tests had that outcome.

    Args:
        reports: Those of tests that have ended well, and those of each part of a test that has not.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for report in reports:
        if report.when == "call" or report.failed or report.skipped:
            wanted = next((value for name, value in report.user_properties if name == WANTED), ())
            counts.update((variable, report.outcome) for variable in wanted)
    return counts


def lines_of(servers: Iterable[Server], counts: Counter[tuple[str, str]]) -> Iterator[str]:
    """One line a server."""
    for server in servers:
        outcomes = {
            outcome: max(counts[variable, outcome] for variable in server.variables)
            for outcome in ("passed", "failed", "skipped")
        }
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
        if not told:
            yield f"{server.name:14} not run"
        else:
            yield f"{server.name:14} {server.says()}: {told}"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print it."""
    reports = [each for name in ("passed", "failed", "error", "skipped") for each in terminalreporter.getreports(name)]
    terminalreporter.section("what ran against what")
    for line in lines_of(SERVERS, ran_against(reports)):
        terminalreporter.write_line(line)
