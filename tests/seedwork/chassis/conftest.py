"""A service that knows nothing, to see what the chassis brings."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from tests.seedwork.chassis.dummy import models

MIGRATIONS = Path(__file__).parent / "dummy" / "migrations"
TOKEN = "the-operator-s-token"
SERVICE_TOKEN = "what-services-share"


class VirtualClock:
    """Time that passes when the test says so; who sleeps is woken when its time has come."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000
        self.slept: list[float] = []
        self._sleepers: list[tuple[int, asyncio.Event]] = []

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return self.ms

    async def sleep(self, seconds: float) -> None:
        """Until `advance` has come that far."""
        self.slept.append(seconds)
        wake = asyncio.Event()
        self._sleepers.append((self.ms + int(seconds * 1000), wake))
        await wake.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.ms += int(seconds * 1000)
        for at_ms, wake in self._sleepers:
            if at_ms <= self.ms:
                wake.set()


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that stands still."""
    return VirtualClock()


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """One line a message while a test runs; afterwards as it was."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.configure(**before)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """Settings that see no files of this machine."""
    monkeypatch.chdir(tmp_path)
    return ServiceSettings(
        home=tmp_path / "home",
        token=SecretStr(TOKEN),
        service_token=SecretStr(SERVICE_TOKEN),
        test_endpoints=True,
        stop_grace_s=5,
    )


@pytest.fixture
def service(settings: ServiceSettings) -> Service:
    """The dummy service, wired, not started."""
    return Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)
