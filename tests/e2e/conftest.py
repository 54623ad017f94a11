"""Platforms for the scenarios: one that several share, and one that a test has for itself."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedwork.testing.ports import block_of_ports
from tests.e2e.harness import Knarr, remove
from tests.e2e.warm import Launcher


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is an end-to-end test."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="module")
def knarr(launcher: Launcher) -> Iterator[Knarr]:
    """A running platform for all tests of a file; each test has an app of its own."""
    yield from _platform(launcher, start=True)


@pytest.fixture
def own_knarr(launcher: Launcher) -> Iterator[Knarr]:
    """A platform for this test alone, not started yet."""
    yield from _platform(launcher, start=False)


def _platform(launcher: Launcher, *, start: bool) -> Iterator[Knarr]:
    with block_of_ports() as ports:
        folder = Path(tempfile.mkdtemp(prefix="knarr-e2e-"))
        platform = Knarr(folder, ports, launcher)
        try:
            yield platform.start() if start else platform
        finally:
            _end(platform)
            remove(folder)


def _end(platform: Knarr) -> None:
    """Stop it, and see that its apps stopped with it."""
    platform.stop()
    left = platform.processes()
    for process in left:
        process.kill()
    assert not left, f"apps outlived the platform: {left}"
