"""Two and more replicas of one service on MySQL and Pulsar, killed, stopped and restarted while they work.

Whatever happens to one of them, every command is answered, every effect is there once, and nothing undone stays.
"""

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.pulsar import PulsarBus
from seedwork.adapters.pulsar_admin import Plan, set_up
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.messages import Command, Envelope, envelope, new_id
from seedwork.testing.bakery import ANSWERS, COMMANDS, Bake, Unbake
from seedwork.testing.servers import mysql_schema, pulsar_namespace
from seedwork.unit_of_work import Database
from tests.stack.replica import TYPES, loaves, metadata, tables

pytestmark = pytest.mark.stack("MYSQL_URL", "PULSAR_URL", "PULSAR_ADMIN_URL")

LEASE_S = 3.0
BOUND_S = 180.0
"""Only what hangs gets there."""


class Replica:
    """A process that bakes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.began: set[str] = set()
        self.undoing: set[str] = set()
        self.ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            what, which = line.decode().split()
            match what:
                case "ready":
                    self.ready.set()
                case "began":
                    self.began.add(which)
                case "undoing":
                    self.undoing.add(which)

    def has_begun(self) -> bool:
        """Whether it has had any work."""
        return bool(self.began)

    async def end(self, number: signal.Signals) -> int:
        """Send it this signal; how it ended."""
        self.process.send_signal(number)
        async with asyncio.timeout(BOUND_S):
            code = await self.process.wait()
            await self._reading
        return code


class Bakery:
    """The coordinator's side: commands out, answers in; and what stands in the database."""

    def __init__(self, url: str, address: PulsarAddress) -> None:
        self.url = url
        self.address = address
        self.db = Database(url)
        self.bus = PulsarBus(address, types=lambda: COMMANDS)
        self.answers: dict[str, list[str]] = {}
        self.replicas: list[Replica] = []

    async def open(self) -> None:
        await self.db.open()
        async with self.db.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        await self.bus.subscribe("coordinator", ANSWERS, self._heard)
        await self.bus.open()

    async def close(self) -> None:
        for each in self.replicas:
            if each.process.returncode is None:
                await each.end(signal.SIGKILL)
        await self.bus.close()
        await self.db.close()

    async def _heard(self, envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            self.answers.setdefault(each.correlationid, []).append(each.type)

    async def replica(self, name: str, *, work_s: float = 0.05, slots: int = 8) -> Replica:
        """Start one; it is ready."""
        options = {
            "database": self.url, "pulsar": asdict(self.address), "name": name, "work_s": work_s, "slots": slots,
            "lease_s": LEASE_S,
        }  # fmt: skip
        script = Path(__file__).parent / "replica.py"
        process = await asyncio.create_subprocess_exec(sys.executable, script, json.dumps(options), stdout=PIPE)
        self.replicas.append(Replica(process))
        async with asyncio.timeout(BOUND_S):
            await self.replicas[-1].ready.wait()
        return self.replicas[-1]

    async def send(self, command: Command, sagas: Sequence[str], *, attempt: int = 1) -> None:
        await self.bus.publish(
            [
                envelope(command, source="test", saga_id=each, app_id="app", step="bake", attempt=attempt)
                for each in sagas
            ]
        )

    def answered(self, sagas: Sequence[str], kind: str) -> bool:
        return all(kind in self.answers.get(each, ()) for each in sagas)

    async def shelf(self) -> dict[str, int]:
        """Loaves by saga."""

        async def count(conn: AsyncConnection) -> dict[str, int]:
            rows = await conn.execute(select(loaves.c.saga_id, func.count().label("n")).group_by(loaves.c.saga_id))
            return {row.saga_id: row.n for row in rows}

        return await self.db.read(count)

    async def held(self) -> int:
        """Jobs that somebody has a lease of."""
        query = select(func.count()).select_from(tables.jobs).where(tables.jobs.c.lease_owner.is_not(None))

        async def count(conn: AsyncConnection) -> int:
            return int((await conn.execute(query)).scalar_one())

        return await self.db.read(count)


@pytest.fixture
async def bakery() -> AsyncIterator[Bakery]:
    async with mysql_schema() as url, pulsar_namespace() as address:
        await set_up(address, Plan(types=TYPES, subscriptions={"bakery": COMMANDS, "coordinator": ANSWERS}))
        bakery = Bakery(url, address)
        await bakery.open()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(bakery.close)
            yield bakery


async def test_one_of_three_is_killed_in_the_middle_and_nothing_is_lost_or_doubled(bakery: Bakery) -> None:
    """SIGKILL while it has work, messages and unsent answers; the others take all of it up."""
    replicas = [await bakery.replica(name) for name in "abc"]
    sagas = [new_id() for _ in range(240)]
    for start in range(0, 240, 40):
        await bakery.send(Bake(), sagas[start : start + 40])
    await until(lambda: all(each.began for each in replicas) and len(bakery.answers) > 20)
    assert await replicas[0].end(signal.SIGKILL) == -signal.SIGKILL
    await until(lambda: bakery.answered(sagas, "Baked"))
    assert await bakery.shelf() == dict.fromkeys(sagas, 1)
    await until_async(bakery.held, 0)


async def test_a_replica_that_slept_beyond_its_lease_leaves_no_second_effect(bakery: Bakery) -> None:
    """SIGSTOP in the middle of ten pieces of work; another one does them and one is undone; then SIGCONT."""
    sleeper = await bakery.replica("sleeper", work_s=2.0, slots=10)
    sagas = [new_id() for _ in range(10)]
    await bakery.send(Bake(), sagas)
    await until(lambda: sleeper.began == set(sagas))
    sleeper.process.send_signal(signal.SIGSTOP)
    waker = await bakery.replica("waker", work_s=0.01, slots=10)
    await until(lambda: bakery.answered(sagas, "Baked"))
    assert waker.began == set(sagas)
    await bakery.send(Unbake(), sagas[:1])  # it may be the sleeper's to take: then it does, when it wakes
    sleeper.process.send_signal(signal.SIGCONT)
    await until(lambda: bakery.answered(sagas[:1], "Unbaked"))
    more = [new_id() for _ in range(40)]
    await bakery.send(Bake(), more)
    await until(lambda: bakery.answered(more, "Baked"))
    await until_async(bakery.held, 0)
    assert await bakery.shelf() == dict.fromkeys([*sagas[1:], *more], 1)
    assert all(bakery.answers[each].count("Baked") == 1 for each in sagas)


async def test_replicas_are_restarted_one_after_the_other_without_loss(bakery: Bakery) -> None:
    """SIGTERM under a stream of commands; each leaves with 0, and what it had not finished is done by the next."""
    old = [await bakery.replica(name, work_s=0.2) for name in "ab"]
    sagas: list[str] = []
    done = asyncio.Event()
    sending = asyncio.create_task(_stream(bakery, sagas, done))
    for number, replica in enumerate(old):
        await until(replica.has_begun)
        new = await bakery.replica(f"new-{number}")
        assert await replica.end(signal.SIGTERM) == 0
        await until(new.has_begun)
    done.set()
    await sending
    await until(lambda: bakery.answered(sagas, "Baked"))
    assert await bakery.shelf() == dict.fromkeys(sagas, 1)


async def _stream(bakery: Bakery, sagas: list[str], done: asyncio.Event) -> None:
    """Some commands now and then, until `done`."""
    while not done.is_set():
        some = [new_id() for _ in range(5)]
        sagas += some
        await bakery.send(Bake(), some)
        await asyncio.sleep(0.2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110  what other processes have done
            await asyncio.sleep(0.02)


async def until_async(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    async with asyncio.timeout(BOUND_S):
        while await look() != wanted:  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.1)
