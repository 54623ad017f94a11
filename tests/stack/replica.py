"""One replica of a bakery in a process of its own, on MySQL and Pulsar: run by `test_replicas.py`.

    python replica.py '{"database": URL, "pulsar": {…}, "name": "a", "work_s": 0.05, "lease_s": 3}'

Prints `ready` when it takes messages, and one line `began SAGA` or `undoing SAGA` for each piece of work; ends with 0
on SIGTERM. With each outcome it writes a row into `loaves`, which an undo removes: two rows of a saga are a doubled
step, a row of an undone saga is an effect that stayed.
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import structlog
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.pulsar import PulsarBus
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.clock import SystemClock
from seedwork.messages import WorkReported
from seedwork.outbox import Outbox, Relay
from seedwork.participant import Participant, Timing, Work
from seedwork.tables import Id, kernel_tables
from seedwork.testing.bakery import ANSWERS, COMMANDS, Bake, Baked, BakeFailed, Unbake, Unbaked
from seedwork.unit_of_work import Database

TYPES = (*COMMANDS, *ANSWERS, WorkReported)
metadata = MetaData()
tables = kernel_tables(metadata)
loaves = Table(
    "loaves",
    metadata,
    Column("n", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("saga_id", Id, nullable=False),
    Column("baker", String(20), nullable=False),
)


async def main(options: dict[str, Any]) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    db, clock = Database(options["database"]), SystemClock()
    await db.open()
    outbox = Outbox(tables, clock)
    bus = PulsarBus(PulsarAddress(**options["pulsar"]), types=lambda: TYPES)
    participant = Participant(
        "bakery", db=db, tables=tables, bus=bus, clock=clock, outbox=outbox, timing=Timing.of_lease(options["lease_s"])
    )

    async def bake(command: Bake, *, work: Work) -> Baked:
        tell("began", work.saga_id)
        await asyncio.sleep(options["work_s"])

        async def shelve(conn: AsyncConnection) -> None:
            await conn.execute(insert(loaves).values(saga_id=work.saga_id, baker=options["name"]))

        work.with_outcome(shelve)
        return Baked(bread=command.bread)

    async def unbake(_command: Unbake, *, work: Work) -> Unbaked:
        tell("undoing", work.saga_id)
        removed = await db.write(lambda conn: conn.execute(delete(loaves).where(loaves.c.saga_id == work.saga_id)))
        return Unbaked(found=("a loaf",) if removed.rowcount else ())

    participant.step(
        Bake,
        bake,
        ok=Baked,
        failed=BakeFailed,
        undo=Unbake,
        undo_handler=unbake,
        undone=Unbaked,
        slots=options["slots"],
    )
    relay = Relay(db, tables, bus, clock, outbox, orphan_s=options["lease_s"])
    await participant.subscribe()
    await bus.open()
    running = [asyncio.create_task(participant.run()), asyncio.create_task(relay.run())]
    tell("ready", str(os.getpid()))
    await asyncio.wait([asyncio.create_task(stop.wait()), *running], return_when=asyncio.FIRST_COMPLETED)
    await participant.stop()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await bus.close()
    await db.close()


def tell(what: str, which: str) -> None:
    """To whoever started this process."""
    sys.stdout.write(f"{what} {which}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)  # as chassis.run leaves a process with Pulsar's threads
