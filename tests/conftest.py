"""Tests of the real stack need real servers: `@pytest.mark.stack("MYSQL_URL")` names the variable that has its address.

Where it is missing the test is deselected, and the summary says which tests were not run and for want of what: a test
that has not talked to its server does not count as passed.

Which servers a test wants is in its report as the property `servers`, for whoever counts (`tests/stack/what_ran.py`).
What a test records as its property `summary` (a seed, a count) is printed there, too.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from seedwork.testing.ports import block_of_ports
from tests.e2e.warm import Launcher

_NOT_RUN = pytest.StashKey[Counter[str]]()
_ENDED = pytest.StashKey[int]()


@pytest.fixture
def ports() -> Iterator[int]:
    """The first of a block of ports that this test has for itself."""
    with block_of_ports() as first:
        yield first


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts platforms quickly, for all scenarios that one worker runs."""
    launcher = Launcher()
    yield launcher
    launcher.close()


def _wanted(item: pytest.Item) -> list[str]:
    return [name for mark in item.iter_markers("stack") for name in mark.args]


def _missing(item: pytest.Item) -> list[str]:
    return [name for name in _wanted(item) if not os.environ.get(name)]


def _not_run(config: pytest.Config) -> Counter[str]:
    return config.stash[_NOT_RUN] if _NOT_RUN in config.stash else Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append(("servers", _wanted(item)))
    missing = {item.nodeid: _missing(item) for item in items}
    absent = [item for item in items if missing[item.nodeid]]
    if absent:
        config.stash[_NOT_RUN] = Counter(", ".join(missing[item.nodeid]) for item in absent)
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if not missing[item.nodeid]]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A worker of xdist tells the process that prints the summary."""
    session.config.stash[_ENDED] = int(exitstatus)
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["not_run"] = dict(_not_run(session.config))


def _told(terminalreporter: Any) -> list[str]:
    """What tests that were run have to say: `record_property("summary", …)`."""
    reports = [each for name in ("passed", "failed") for each in terminalreporter.getreports(name)]
    told = (each for report in reports if report.when == "call" for each in report.user_properties)
    return [str(value) for name, value in told if name == "summary"]


class _FromWorkers:
    """Every worker of xdist collects the same tests, so any of them knows."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._config.stash[_NOT_RUN] = Counter(getattr(node, "workeroutput", {}).get("not_run", {}))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """As `chassis.run` does: threads of Pulsar's client may abort an interpreter that goes down (ADR 12)."""
    if "_pulsar" in sys.modules and not hasattr(config, "workeroutput") and _ENDED in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_ENDED])


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_FromWorkers(config))


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    yield
    for line in _told(terminalreporter):
        terminalreporter.write_line(line)
    for names, count in sorted(_not_run(config).items()):
        terminalreporter.write_line(f"not run: {count} tests of the real stack, for want of {names}", yellow=True)
