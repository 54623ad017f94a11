"""One row per (saga, step): who works on it, what came of it, and whether it was undone. Pure rules and their SQL.

The rules (DESIGN §3.5):

- a forward command joins work that is queued or runs, repeats an outcome that is final, works again after a retryable
  failure, and is refused (`undone`) where a tombstone stands;
- an undo command writes the tombstone, even where no work is known, and starts when nobody holds the lease;
- an outcome is written only by the holder of the lease, and a forward one only while there is no tombstone.

Leases are counted by the database's clock. A row is claimed by raising its `lease_number`; whoever finds another number
there has lost it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from sqlalchemy import ColumnElement, RowMapping, and_, bindparam, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.tables import KernelTables

LOST_LEASES = 3
"""After so many workers died over one piece of work it is the work that kills them (code `worker_lost`)."""

JobState = Literal["queued", "running", "done", "failed"]
Key = tuple[str, str]
"""Saga and step."""
_OPEN = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of work: the answer's type and payload."""

    type: str
    data: Mapping[str, Any]
    failure: bool = False
    retryable: bool = False

    def to_json(self) -> str:
        """As it stands in the row."""
        return orjson.dumps(
            {"type": self.type, "data": dict(self.data), "failure": self.failure, "retryable": self.retryable}
        ).decode()

    @classmethod
    def from_json(cls, value: str) -> "Outcome":
        """From the row."""
        record = orjson.loads(value)
        return cls(**record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The row as a value."""

    saga_id: str
    step: str
    app_id: str
    kind: str
    """The name under which its participant registered it: the forward command's type."""
    accepted_ms: int
    state: JobState | None = None
    command: Envelope | None = None
    attempt: int = 0
    outcome: Outcome | None = None
    undo_state: JobState | None = None
    undo_command: Envelope | None = None
    undo_attempt: int = 0
    undo_outcome: Outcome | None = None
    tombstone_ms: int | None = None
    lease_owner: str | None = None
    lease_until_ms: int | None = None
    lease_number: int = 0
    lost_leases: int = 0
    swept: bool = False

    @property
    def key(self) -> Key:
        """Saga and step."""
        return self.saga_id, self.step

    @property
    def undoing(self) -> bool:
        """Whether the next or current work is the undo."""
        return self.tombstone_ms is not None

    @property
    def waits(self) -> bool:
        """Whether there is work that nobody has finished."""
        state = self.undo_state if self.undoing else self.state
        return state in _OPEN

    def free(self, now_ms: int) -> bool:
        """Whether nobody holds it."""
        return self.lease_until_ms is None or self.lease_until_ms <= now_ms

    def leased(self, owner: str, until_ms: int, now_ms: int) -> "Job":
        """The row after this owner took it; a lease that ran out while work was on it counts as lost."""
        lost = self.lost_leases
        if self.lease_until_ms is not None and self.lease_until_ms <= now_ms and not self.undoing:
            lost += 1
        taken = replace(
            self, lease_owner=owner, lease_until_ms=until_ms, lease_number=self.lease_number + 1, lost_leases=lost
        )
        return replace(taken, undo_state="running") if self.undoing else replace(taken, state="running")


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a command did to its row: the row as it is to be, and an answer that can be given at once."""

    job: Job
    answer: Outcome | None = None


def accept_forward(job: Job | None, command: Envelope, now_ms: int, undone: Outcome) -> Accepted:
    """The rule for a forward attempt; `undone` is the answer where a tombstone stands."""
    attempt = command.sagaattempt or 1
    if job is None:
        return Accepted(_new(command, command.type, now_ms, state="queued", command=command, attempt=attempt))
    if job.tombstone_ms is not None:
        return Accepted(job, undone)
    job = replace(job, attempt=max(job.attempt, attempt))
    if job.state == "done" and job.outcome is not None:
        if not job.outcome.retryable:
            return Accepted(job, job.outcome)
        return Accepted(replace(job, state="queued", command=command, outcome=None, accepted_ms=now_ms))
    return Accepted(job)


def accept_undo(job: Job | None, command: Envelope, kind: str, now_ms: int) -> Accepted:
    """The rule for an undo: a tombstone, whatever was there."""
    attempt = command.sagaattempt or 1
    if job is None:
        job = _new(command, kind, now_ms)
    job = replace(job, tombstone_ms=job.tombstone_ms or now_ms, undo_attempt=max(job.undo_attempt, attempt))
    if job.undo_state == "done" and job.undo_outcome is not None:
        return Accepted(job, job.undo_outcome)
    if job.undo_state in _OPEN:
        return Accepted(job)
    return Accepted(replace(job, undo_state="queued", undo_command=command, accepted_ms=now_ms))


def _new(message: Envelope, kind: str, now_ms: int, **fields: Any) -> Job:
    return Job(
        saga_id=message.correlationid,
        step=message.sagastep or "",
        app_id=message.appid,
        kind=kind,
        accepted_ms=now_ms,
        **fields,
    )


class JobRows:
    """The rows of one service."""

    def __init__(self, tables: KernelTables) -> None:
        self._table = tables.jobs
        self._insert = insert(tables.jobs)
        jobs = tables.jobs.c
        key = and_(jobs.saga_id == bindparam("key_saga_id"), jobs.step == bindparam("key_step"))
        self._update = update(tables.jobs).where(key)
        held = update(tables.jobs).where(key, jobs.lease_number == bindparam("key_lease_number"))
        free = {"lease_owner": None, "lease_until_ms": None}
        self._finish = held.where(jobs.tombstone_ms.is_(None)).values(
            state=bindparam("to_state"), outcome=bindparam("to_outcome"), **free
        )
        self._finish_undo = held.values(undo_state=bindparam("to_state"), undo_outcome=bindparam("to_outcome"), **free)

    async def load(self, conn: AsyncConnection, keys: Iterable[Key]) -> dict[Key, Job]:
        """Those of the keys that exist."""
        keys = set(keys)
        if not keys:
            return {}
        rows = await conn.execute(select(self._table).where(self._table.c.saga_id.in_({saga for saga, _ in keys})))
        jobs = (_job(row) for row in rows.mappings())
        return {job.key: job for job in jobs if job.key in keys}

    async def save(self, conn: AsyncConnection, before: Mapping[Key, Job], after: Sequence[Job]) -> None:
        """Insert what is new, update what changed."""
        new = [_row(job) for job in after if job.key not in before]
        changed = [
            {**_row(job), "key_saga_id": job.saga_id, "key_step": job.step}
            for job in after
            if job.key in before and job != before[job.key]
        ]
        if new:
            await conn.execute(self._insert, new)
        if changed:
            columns: dict[str, Any] = {name: bindparam(name) for name in changed[0] if not name.startswith("key_")}
            del columns["saga_id"], columns["step"]
            await conn.execute(
                self._update.values(columns),
                [{k: v for k, v in row.items() if k not in ("saga_id", "step")} for row in changed],
            )

    async def claimable(
        self, conn: AsyncConnection, now_ms: int, *, room: Mapping[str, int], undo_room: int
    ) -> list[Job]:
        """Work that nobody holds, oldest first: undos, and of each kind as much as there is room for.

        On MySQL the rows are locked, and those that another replica has locked are skipped.
        """
        jobs = self._table.c
        free = or_(jobs.lease_until_ms.is_(None), jobs.lease_until_ms <= now_ms)
        undo = and_(jobs.tombstone_ms.is_not(None), jobs.undo_state.in_(_OPEN))
        found = await self._claimable(conn, and_(undo, free), undo_room)
        for kind, places in room.items():
            forward = and_(jobs.tombstone_ms.is_(None), jobs.state.in_(_OPEN), jobs.kind == kind)
            found += await self._claimable(conn, and_(forward, free), places)
        return found

    async def _claimable(self, conn: AsyncConnection, which: ColumnElement[bool], limit: int) -> list[Job]:
        if limit <= 0:
            return []
        query = select(self._table).where(which).order_by(self._table.c.accepted_ms).limit(limit)
        if conn.dialect.name != "sqlite":
            query = query.with_for_update(skip_locked=True)
        return [_job(row) for row in (await conn.execute(query)).mappings()]

    async def held_by(self, conn: AsyncConnection, owner: str) -> dict[Key, Job]:
        """What this worker holds, by the table's word."""
        rows = await conn.execute(select(self._table).where(self._table.c.lease_owner == owner))
        return {job.key: job for job in (_job(row) for row in rows.mappings())}

    async def renew(self, conn: AsyncConnection, owner: str, until_ms: int) -> None:
        """Hold everything that this worker holds for longer."""
        await conn.execute(
            update(self._table).where(self._table.c.lease_owner == owner).values(lease_until_ms=until_ms)
        )

    async def end_leases_of_the_dead(self, conn: AsyncConnection, now_ms: int, *, but: str) -> int:
        """Where one process alone can hold leases, every lease of another owner belonged to a dead one."""
        result = await conn.execute(
            update(self._table)
            .where(self._table.c.lease_until_ms.is_not(None), self._table.c.lease_owner != but)
            .values(lease_until_ms=now_ms)
        )
        return result.rowcount

    async def finish(self, conn: AsyncConnection, ended: Sequence[tuple[Job, Outcome]]) -> int:
        """Write outcomes and let go; how many were written.

        A row is left as it is where the lease is another's, or where a tombstone came in while forward work was done.
        """
        written = 0
        for statement, undoing in ((self._finish, False), (self._finish_undo, True)):
            rows = [_ending(job, outcome) for job, outcome in ended if job.undoing is undoing]
            if rows:
                written += (await conn.execute(statement, rows)).rowcount
        return written

    async def unswept(self, conn: AsyncConnection, before_ms: int, limit: int = 50) -> list[Job]:
        """Undone work, begun by somebody once, that was not looked at again since the tombstone."""
        jobs = self._table.c
        query = (
            select(self._table)
            .where(jobs.undo_state == "done", jobs.swept.is_(False), jobs.command.is_not(None))
            .where(jobs.tombstone_ms <= before_ms)
            .order_by(jobs.accepted_ms)
            .limit(limit)
        )
        return [_job(row) for row in (await conn.execute(query)).mappings()]

    async def mark_swept(self, conn: AsyncConnection, job: Job) -> None:
        """The sweep has looked."""
        jobs = self._table.c
        where = and_(jobs.saga_id == job.saga_id, jobs.step == job.step)
        await conn.execute(update(self._table).where(where).values(swept=True))

    async def let_go(self, conn: AsyncConnection, job: Job) -> None:
        """Give the lease back with the work unfinished: a graceful stop, or a tombstone came."""
        jobs = self._table.c
        await conn.execute(
            update(self._table)
            .where(jobs.saga_id == job.saga_id, jobs.step == job.step, jobs.lease_number == job.lease_number)
            .values(lease_owner=None, lease_until_ms=None)
        )


def _ending(job: Job, outcome: Outcome) -> dict[str, Any]:
    """A failed undo is `failed`, so that the next attempt does it again; forward, a failure is an outcome."""
    return {
        "key_saga_id": job.saga_id,
        "key_step": job.step,
        "key_lease_number": job.lease_number,
        "to_state": "failed" if job.undoing and outcome.failure else "done",
        "to_outcome": outcome.to_json(),
    }


def _row(job: Job) -> dict[str, Any]:
    return {
        "saga_id": job.saga_id,
        "step": job.step,
        "app_id": job.app_id,
        "kind": job.kind,
        "accepted_ms": job.accepted_ms,
        "state": job.state,
        "command": job.command.to_json().decode() if job.command else None,
        "attempt": job.attempt,
        "outcome": job.outcome.to_json() if job.outcome else None,
        "undo_state": job.undo_state,
        "undo_command": job.undo_command.to_json().decode() if job.undo_command else None,
        "undo_attempt": job.undo_attempt,
        "undo_outcome": job.undo_outcome.to_json() if job.undo_outcome else None,
        "tombstone_ms": job.tombstone_ms,
        "lease_owner": job.lease_owner,
        "lease_until_ms": job.lease_until_ms,
        "lease_number": job.lease_number,
        "lost_leases": job.lost_leases,
        "swept": job.swept,
    }


def _job(row: RowMapping) -> Job:
    return Job(
        saga_id=row["saga_id"],
        step=row["step"],
        app_id=row["app_id"],
        kind=row["kind"],
        accepted_ms=row["accepted_ms"],
        state=row["state"],
        command=Envelope.from_json(row["command"]) if row["command"] else None,
        attempt=row["attempt"],
        outcome=Outcome.from_json(row["outcome"]) if row["outcome"] else None,
        undo_state=row["undo_state"],
        undo_command=Envelope.from_json(row["undo_command"]) if row["undo_command"] else None,
        undo_attempt=row["undo_attempt"],
        undo_outcome=Outcome.from_json(row["undo_outcome"]) if row["undo_outcome"] else None,
        tombstone_ms=row["tombstone_ms"],
        lease_owner=row["lease_owner"],
        lease_until_ms=row["lease_until_ms"],
        lease_number=row["lease_number"],
        lost_leases=row["lost_leases"],
        swept=bool(row["swept"]),
    )
