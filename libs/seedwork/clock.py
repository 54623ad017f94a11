"""Time as a port: waits and leases are counted in milliseconds of the database's clock, tests bring their own."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for records and leases, and sleeping."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


def is_due(now_ms: int, at_ms: int, wait_ms: int) -> bool:
    """Whether a wait of at most `wait_ms` that ends at `at_ms` is over: also where the clock was put back meanwhile."""
    return not at_ms - wait_ms <= now_ms < at_ms


class SystemClock:
    """The machine's clock: on a laptop the same one that SQLite reads."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
