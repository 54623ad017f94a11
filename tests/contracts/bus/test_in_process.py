"""The bus of one process keeps the contract of the port."""

import pytest

from seedwork.adapters.in_process import InProcessBus
from seedwork.bus import Bus
from seedwork.testing.bus_contract import BusContract, Place


class OneProcess:
    """A new process has a new bus; what the old one had is gone, and its outbox sends it again."""

    async def bus(self) -> Bus:
        return InProcessBus()

    async def kill(self, bus: Bus) -> None:
        await bus.close()


class TestInProcessBus(BusContract):
    @pytest.fixture
    async def place(self) -> Place:
        return OneProcess()
