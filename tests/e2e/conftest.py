"""Platforms for the scenarios in three settings: `E2E_SETTING` is `laptop` (by default), `compose` or `cluster`.

On the laptop several tests share a platform, or a test has one for itself. In containers all share one, and what is
about one process on this machine is not run: the summary says how many tests, and why.
"""

import contextlib
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedwork.testing.ports import block_of_ports
from tests.e2e.harness import Knarr, Laptop, remove
from tests.e2e.servers import ROOT, InCluster, InCompose, InContainers
from tests.e2e.table import SERVERS
from tests.e2e.warm import Launcher

SETTING = os.environ.get("E2E_SETTING", "laptop")
CLUSTER_PORTS = 30_700
"""Ports of the node in deploy/k8s/overlays/dev."""
_WHY_NOT = pytest.StashKey[Counter[str]]()


def pytest_configure() -> None:
    """A shell starts what is in its background deaf to Ctrl-C, and what the scenarios start would be so, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything here is an end-to-end test; away with what is the laptop's, where it is not meant."""
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
    if SETTING == "laptop":
        return
    reasons = {item: mark.args[0] for item in ours if (mark := item.get_closest_marker("laptop"))}
    config.stash[_WHY_NOT] = Counter(reasons.values())
    config.hook.pytest_deselected(items=list(reasons))
    items[:] = [item for item in items if item not in reasons]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was not run in this setting."""
    for why, count in (config.stash[_WHY_NOT] if _WHY_NOT in config.stash else Counter()).items():
        terminalreporter.write_line(f"not run in {SETTING}: {count} tests, for {why}", yellow=True)


@pytest.fixture(scope="module")
def knarr(request: pytest.FixtureRequest) -> Iterator[Knarr]:
    """A running platform for all tests of a file; each test has an app of its own."""
    if SETTING == "laptop":
        yield from _laptop(request.getfixturevalue("launcher"), start=True)
    else:
        platform: InContainers = request.getfixturevalue("installed")
        platform.stop()
        platform.settings.clear()
        yield platform.start()
        platform.remove_apps()


@pytest.fixture
def own_knarr(launcher: Launcher) -> Iterator[Laptop]:
    """A platform for this test alone, not started yet."""
    yield from _laptop(launcher, start=False)


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config) -> Iterator[InContainers]:
    """The one platform in containers, from nothing; its logs are in `build/e2e` afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="knarr-e2e-")))
        if SETTING == "cluster":
            platform: InContainers = InCluster(folder, CLUSTER_PORTS)
        else:
            platform = InCompose(folder, _hundred(stack), app_ports=_hundred(stack))
        platform.close()
        try:
            yield platform
            pytestconfig.stash[SERVERS] = platform.versions()
            logs = ROOT / "build" / "e2e"
            logs.mkdir(parents=True, exist_ok=True)
            platform.write_logs(logs / f"{SETTING}.log")
        finally:
            platform.stop()
            platform.close()


def _hundred(stack: contextlib.ExitStack) -> int:
    """The first of a block of ports that begins a hundred, as docker-compose.yml wants it."""
    while (base := stack.enter_context(block_of_ports())) % 100:
        pass
    return base


def _laptop(launcher: Launcher, *, start: bool) -> Iterator[Laptop]:
    with block_of_ports() as ports:
        folder = Path(tempfile.mkdtemp(prefix="knarr-e2e-"))
        platform = Laptop(folder, ports, launcher=launcher)
        try:
            yield platform.start() if start else platform
        finally:
            _end(platform)
            remove(folder)


def _end(platform: Laptop) -> None:
    """Stop it, and see that its apps stopped with it."""
    platform.stop()
    left = platform.processes()
    for process in left:
        process.kill()
    assert not left, f"apps outlived the platform: {left}"
