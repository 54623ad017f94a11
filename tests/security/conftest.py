"""What strangers and other teams reach: the two kinds of servers, and one whole platform for all tests."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.security import serving
from tests.security.house import House, house
from tests.security.victim import Victim, settle

Serve = Callable[..., AbstractAsyncContextManager[serving.Target]]


@pytest.fixture(params=["service", "router"])
def serve(request: pytest.FixtureRequest, tmp_path: Path, ports: int, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Each of both, started by the test with limits of its own."""
    monkeypatch.chdir(tmp_path)

    def start(**limits: Any) -> AbstractAsyncContextManager[serving.Target]:
        if request.param == "service":
            return serving.service(tmp_path / "home", ports + 3, **limits)
        return serving.router(ports + 3, **limits)

    return start


@pytest.fixture
async def target(serve: Serve) -> AsyncIterator[serving.Target]:
    """One of both, with the limits as they are shipped."""
    async with serve() as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """All services, with nothing in them: starting them costs more than all requests of the tests."""
    home = tmp_path_factory.mktemp("house")
    before = os.umask(0)  # what a service does not close itself stays open: `test_teams_home.py` looks
    try:
        async with house(home) as started:
            yield started
    finally:
        os.umask(before)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def victim(platform: House) -> Victim:
    """A team that has a row of every kind."""
    return await settle(platform)
