"""What a step's rows and messages cost without a coordinator: bare loops with the same library, tables and commits.

`rows`: for each step the rows of `bench.floor`, by as few statements as the coordinator needs, in one commit, and those
of sent messages gone again in another; 64 steps a commit, as many as the coordinator has together with 500 in flight,
and eight commits side by side. Nothing is read, decided, parsed or delivered.

`messages`: for each step a command and its answer are published, received and acknowledged, 64 at a time, over four
topics each, as between the coordinator and its participants. Nothing is stored but by Pulsar.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psutil
from sqlalchemy import delete, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.figures import Figure, percentile
from bench.floor import saga_of, step_of
from bench.orchestra import COMMANDS, STEPS, Instant, Trips, quiet
from bench.stack.place import Place, Processors, place
from bench.stack.steps import subscriptions, told
from seedwork.adapters.pulsar import PulsarBus
from seedwork.leaving import leave
from seedwork.messages import Envelope, envelope, new_id
from seedwork.set_wise import update_each
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import kernel, metadata, saga_log, sagas

TOGETHER = 64
WRITERS = 8
_TIMERS = text("REPLACE INTO timers VALUES (:id, :id, 2000000000000, 'answer', 'build', 1, 1, NULL)")


async def write(conn: AsyncConnection, steps: Sequence[dict[str, list[dict[str, Any]]]]) -> None:
    """All of them, statement by statement."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [row for step in steps for row in step[name]]

    changed = [
        {"key_id": row["key_id"], "version": row["new_version"], "body": row["new_body"], "step": row["new_step"]}
        for row in rows("saga")
    ]
    await conn.execute(insert(kernel.inbox), rows("inbox"))
    await update_each(conn, sagas, changed)
    await conn.execute(insert(saga_log), rows("log"))
    await conn.execute(_TIMERS, rows("timer"))
    await conn.execute(insert(kernel.outbox), rows("outbox"))


class Writer:
    """Writes steps of sagas of its own."""

    def __init__(self, db: Database, together: int) -> None:
        self._db = db
        self._sagas = [new_id() for _ in range(together)]
        self._seq = 0

    async def begin(self) -> None:
        """Make the sagas."""
        rows = [saga_of(each) for each in self._sagas]
        await self._db.write(lambda conn: conn.execute(insert(sagas), rows))

    async def once(self) -> None:
        """A commit with a step of each saga, and one that forgets what was sent."""
        steps = [step_of(each) for each in self._sagas]
        for step in steps:
            for entry in step["log"]:
                self._seq += 1
                entry["seq"] = self._seq
        await self._db.write(lambda conn: write(conn, steps))
        sent = [step["outbox"][0]["message_id"] for step in steps]
        gone = delete(kernel.outbox).where(kernel.outbox.c.message_id.in_(sent))
        await self._db.write(lambda conn: conn.execute(gone))


async def rows(where: Place, runs: int, commits: int) -> None:
    """One after the other, then many side by side."""
    db = Database(where.database_url.replace("{service}", "floor"))
    await db.open()
    await db.write(lambda conn: conn.run_sync(metadata.create_all))
    alone, crowd = Writer(db, 1), [Writer(db, TOGETHER) for _ in range(WRITERS)]
    for each in (alone, *crowd):
        await each.begin()
    taken_ms: list[list[float]] = []
    rates: list[float] = []
    costs: dict[str, list[float]] = {}
    processors = Processors({"this process": [psutil.Process()]})
    for _ in range(runs):
        taken_ms.append([])
        for _ in range(commits):
            began = time.perf_counter()
            await alone.once()
            taken_ms[-1].append((time.perf_counter() - began) * 1000)
        processors.begin()
        began = time.perf_counter()
        await asyncio.gather(*(_often(each, commits // WRITERS) for each in crowd))
        steps = commits // WRITERS * WRITERS * TOGETHER
        rates.append(steps / (time.perf_counter() - began))
        for who, spent_s in processors.spent_s().items():
            if who != "Pulsar":
                costs.setdefault(who, []).append(spent_s * 1000 / steps)
    await db.close()
    group = "Floor: a bare loop with the same rows and commits on MySQL"
    halves = [percentile(each, 0.5) for each in taken_ms]
    Figure(group=group, name="one step after the other: p50", values=halves, unit="ms").tell()
    Figure(group=group, name=f"{TOGETHER} a commit", values=rates, unit="steps/s").tell()
    for who, values in costs.items():
        Figure(group=group, name=f"{TOGETHER} a commit: CPU of {who}", values=values, unit="ms/step").tell()


async def _often(writer: Writer, times: int) -> None:
    for _ in range(times):
        await writer.once()


class Answers:
    """Publishes commands, and waits until every one of them is answered."""

    def __init__(self, bus: PulsarBus) -> None:
        self._bus = bus
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def heard(self, answers: Sequence[Envelope]) -> None:
        """They came."""
        for each in answers:
            waiting = self._waiting.pop(each.causationid or "", None)
            if waiting is not None:
                waiting.set_result(None)

    async def of(self, count: int, step: str) -> None:
        """So many commands of that step, published together."""
        command = COMMANDS[step][0].example()
        commands = [
            envelope(command, source="bench", saga_id=new_id(), app_id=new_id(), app="shop", step=step, attempt=1)
            for _ in range(count)
        ]
        loop = asyncio.get_running_loop()
        waiting = [self._waiting.setdefault(each.id, loop.create_future()) for each in commands]
        await self._bus.publish(commands)
        await asyncio.gather(*waiting)


async def messages(where: Place, runs: int, rounds: int) -> None:
    """One after the other, then many at a time."""
    bus = PulsarBus(where.pulsar, types=lambda: [*told(), *(each for pair in COMMANDS.values() for each in pair)])
    answers = Answers(bus)
    await Instant(bus, fail=False, trips=Trips()).join()
    await bus.subscribe("saga_coordinator", [STEPS[name].ok for name in COMMANDS], answers.heard)
    await bus.open()
    processors = Processors({"this process": [psutil.Process()]})
    halves: list[float] = []
    rates: list[float] = []
    costs: dict[str, list[float]] = {}
    for _ in range(runs):
        taken_ms = []
        for _ in range(rounds):
            began = time.perf_counter()
            await answers.of(1, "build")
            taken_ms.append((time.perf_counter() - began) * 1000)
        halves.append(percentile(taken_ms, 0.5))
        processors.begin()
        began = time.perf_counter()
        await asyncio.gather(*(_again(answers, name, rounds // WRITERS) for name in [*COMMANDS] * 2))
        steps = rounds // WRITERS * WRITERS * TOGETHER
        rates.append(steps / (time.perf_counter() - began))
        for who, spent_s in processors.spent_s().items():
            if who != "MySQL":
                costs.setdefault(who, []).append(spent_s * 1000 / steps)
    await bus.close()
    group = "Floor: command and answer over Pulsar, nothing stored beside it"
    Figure(group=group, name="one after the other: p50", values=halves, unit="ms").tell()
    Figure(group=group, name=f"{TOGETHER} at a time", values=rates, unit="steps/s").tell()
    for who, values in costs.items():
        Figure(group=group, name=f"{TOGETHER} at a time: CPU of {who}", values=values, unit="ms/step").tell()


async def _again(answers: Answers, step: str, times: int) -> None:
    for _ in range(times):
        await answers.of(TOGETHER, step)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=160, help="commits, and commands published one by one, in a run")
    given = parser.parse_args()
    quiet()
    with place(["floor"], subscriptions=subscriptions("instant")) as where:
        asyncio.run(rows(where, given.runs, given.rounds))
        asyncio.run(messages(where, given.runs, given.rounds))
    leave(0)


if __name__ == "__main__":
    main()
