"""The two kinds of servers that strangers reach: a service, and the router before the apps."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.security import serving

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
