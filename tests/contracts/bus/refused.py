"""A process that the broker does not let start: run by `test_pulsar.py`, ends with 1 and the reason."""

import asyncio
import sys

from pydantic import create_model

from seedwork.adapters.pulsar import PulsarBus
from seedwork.adapters.pulsar_admin import Plan, set_up
from seedwork.errors import KnarrError
from seedwork.testing.bus_contract import TYPES, Brew
from seedwork.testing.servers import pulsar_namespace


async def main() -> None:
    changed = create_model("Brew", __base__=Brew, yeast=(str, ...))
    async with pulsar_namespace() as address:
        await set_up(address, Plan(types=TYPES, subscriptions={}))
        bus = PulsarBus(address, types=lambda: (changed,))
        try:
            await bus.open()
        finally:
            await bus.close()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KnarrError as error:
        sys.exit(error.message)
