"""What a step's rows cost without a coordinator: a bare loop with the same tables, library, commits and rows.

For each step: the message's id, the saga's row with its document, two entries of the log, the timer, the message that
goes out; and, in a commit of its own, that message's row gone again. Nothing is read, decided, parsed or delivered.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, delete, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bench.figures import Figure, folder, percentile
from bench.orchestra import quiet
from seedwork.messages import new_id
from seedwork.unit_of_work import Database
from services.saga_coordinator.models import kernel, metadata, saga_log, sagas

TOGETHER = 256
"""Steps in a commit: as many as the coordinator decides at once."""
_SAGA = (
    update(sagas)
    .where(sagas.c.id == bindparam("key_id"))
    .values(version=bindparam("new_version"), body=bindparam("new_body"), step=bindparam("new_step"))
)
_TIMER = text("REPLACE INTO timers VALUES (:id, :id, 2000000000000, 'answer', 'build', 1, 1, NULL)")
_SENT = delete(kernel.outbox).where(kernel.outbox.c.message_id == bindparam("sent_id"))
_BODY = "x" * 1500
_PAYLOAD = "x" * 230
_ENVELOPE = "x" * 700


def step_of(saga_id: str) -> dict[str, list[dict[str, Any]]]:
    """A step's rows by statement."""
    message_id, sent_id = new_id(), new_id()
    entry = {
        "saga_id": saga_id, "at_ms": 1, "direction": "in", "type": "ImageBuilt", "message_id": message_id,
        "causation_id": sent_id, "step": "build", "attempt": 1, "state": "RUNNING",
        "payload": _PAYLOAD, "context": None,
    }  # fmt: skip
    return {
        "inbox": [{"message_id": message_id, "at_ms": 1}],
        "saga": [{"key_id": saga_id, "new_version": 2, "new_body": _BODY, "new_step": "build"}],
        "log": [entry, {**entry, "direction": "out"}],
        "timer": [{"id": saga_id}],
        "outbox": [{"message_id": sent_id, "at_ms": 1, "envelope": _ENVELOPE}],
    }


async def write(conn: AsyncConnection, steps: Sequence[dict[str, list[dict[str, Any]]]]) -> None:
    """All of them, statement by statement."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [row for step in steps for row in step[name]]

    await conn.execute(insert(kernel.inbox), rows("inbox"))
    await conn.execute(_SAGA, rows("saga"))
    await conn.execute(insert(saga_log), rows("log"))
    await conn.execute(_TIMER, rows("timer"))
    await conn.execute(insert(kernel.outbox), rows("outbox"))


async def once(db: Database, saga_ids: Sequence[str], seqs: dict[str, int]) -> None:
    """A commit with a step of each saga, and one that forgets what was sent."""
    steps = [step_of(saga_id) for saga_id in saga_ids]
    for saga_id, step in zip(saga_ids, steps, strict=True):
        for entry in step["log"]:
            seqs[saga_id] = entry["seq"] = seqs.get(saga_id, 0) + 1
    await db.write(lambda conn: write(conn, steps))
    sent = [{"sent_id": step["outbox"][0]["message_id"]} for step in steps]

    async def forget(conn: AsyncConnection) -> None:
        await conn.execute(_SENT, sent)

    await db.write(forget)


async def measure(runs: int) -> None:
    """One step a commit, then many."""
    alone: list[float] = []
    rates: dict[int, list[float]] = {1: [], TOGETHER: []}
    with folder() as home:
        db = Database(f"sqlite+aiosqlite:///{home / 'floor.db'}")
        await db.open()
        await db.write(lambda conn: conn.run_sync(metadata.create_all))
        saga_ids = [new_id() for _ in range(TOGETHER)]
        await db.write(lambda conn: conn.execute(insert(sagas), [saga_of(each) for each in saga_ids]))
        seqs: dict[str, int] = {}
        for _ in range(runs):
            for together, commits in ((1, 200), (TOGETHER, 8)):
                taken = []
                for _ in range(commits):
                    began = time.perf_counter()
                    await once(db, saga_ids[:together], seqs)
                    taken.append((time.perf_counter() - began) * 1000)
                rates[together].append(together * commits * 1000 / sum(taken))
                if together == 1:
                    alone.append(percentile(taken, 0.5))
        await db.close()
    group = "Floor: a bare loop with the same rows and commits"
    Figure(group=group, name="one step after the other: p50", values=alone, unit="ms").tell()
    for together, values in rates.items():
        Figure(group=group, name=f"{together} a commit", values=values, unit="steps/s").tell()


def saga_of(saga_id: str) -> dict[str, Any]:
    """A saga's row."""
    return {
        "id": saga_id, "version": 1, "definition": "deploy@3", "app_id": saga_id, "app": "shop", "commit_id": None,
        "state": "RUNNING", "step": "source", "needs_attention": False, "created_ms": 1, "origin": "x" * 480,
        "body": _BODY,
    }  # fmt: skip


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    quiet()
    asyncio.run(measure(given.runs))


if __name__ == "__main__":
    main()
