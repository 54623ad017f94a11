"""The participants of the five steps in one process, each with a schema of its own: run by `bench.stack.steps`.

Configured like a service, by `KNARR_…`; prints `ready` when it takes commands, and ends on SIGTERM.
"""

import asyncio
import contextlib
import signal
import sys

from bench.orchestra import COMMANDS, Trips, kernel_participant, quiet
from bench.stack.steps import told
from seedwork.adapters.pulsar import PulsarBus
from seedwork.chassis.buses import pulsar_address
from seedwork.chassis.run import look_seldom_for_cycles
from seedwork.chassis.settings import ServiceSettings
from seedwork.leaving import leave

SLOTS = 1000


async def run() -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = ServiceSettings(_env_file=None)
    bus, trips = PulsarBus(pulsar_address(settings), types=told), Trips()
    async with contextlib.AsyncExitStack() as stack:
        for name in COMMANDS:
            url = settings.database_url_of(name)
            await stack.enter_async_context(
                kernel_participant(name, url, bus, fail=False, trips=trips, halts=None, slots=SLOTS)
            )
        await bus.open()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stop.wait()
        await bus.close()


def main() -> None:
    """From the command line."""
    quiet()
    look_seldom_for_cycles()  # as every service does
    asyncio.run(run())
    leave(0)


if __name__ == "__main__":
    main()
