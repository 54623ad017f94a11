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
from typing import Any, Literal

import orjson
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import ColumnElement, RowMapping, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.messages import Envelope
from seedwork.set_wise import Among, Many, update_each
from seedwork.tables import KernelTables

LOST_LEASES = 3
"""After so many workers died over one piece of work it is the work that kills them (code `worker_lost`)."""

JobState = Literal["queued", "running", "done", "failed"]
Key = tuple[str, str]
"""Saga and step."""
_OPEN = ("queued", "running")


class Outcome(Struct, frozen=True):
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


class Job(Struct, frozen=True, kw_only=True):
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
        state: dict[str, JobState] = {"undo_state": "running"} if self.undoing else {"state": "running"}
        return replace(
            self,
            lease_owner=owner,
            lease_until_ms=until_ms,
            lease_number=self.lease_number + 1,
            lost_leases=lost,
            **state,
        )


class Held(Struct, frozen=True):
    """What a worker must know of a row that it holds."""

    lease_number: int
    undoing: bool


class Accepted(Struct, frozen=True):
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
        self._insert = Many(insert(tables.jobs))
        self._to_read = Among(select(tables.jobs), tables.jobs.c.saga_id)
        self._to_change = Among(select(tables.jobs).with_for_update(), tables.jobs.c.saga_id)

    async def load(self, conn: AsyncConnection, keys: Iterable[Key], *, to_change: bool = False) -> dict[Key, Job]:
        """Those of the keys that exist; `to_change` keeps them from changing elsewhere until the commit."""
        keys = set(keys)
        if not keys:
            return {}
        query = self._to_change if to_change else self._to_read
        rows = await query.execute(conn, {saga for saga, _ in keys})
        jobs = (_job(row) for row in rows.mappings())
        return {job.key: job for job in jobs if job.key in keys}

    async def save(self, conn: AsyncConnection, before: Mapping[Key, Job], after: Sequence[Job]) -> None:
        """Insert what is new, update what changed."""
        new = [_row(job) for job in after if job.key not in before]
        changed = [
            {"key_saga_id": job.saga_id, "key_step": job.step, **_changes(job)}
            for job in after
            if job.key in before and job != before[job.key]
        ]
        if new:
            await self._insert.later(conn, new)
        await update_each(conn, self._table, changed)

    async def claimable(
        self, conn: AsyncConnection, now_ms: int, *, room: Mapping[str, int], undo_room: int
    ) -> list[Job]:
        """Work that nobody holds, oldest first: undos, and of each kind as much as there is room for.

        On MySQL the rows are locked, and those that another replica has locked are skipped.
        """
        jobs = self._table.c
        free = or_(jobs.lease_until_ms.is_(None), jobs.lease_until_ms <= now_ms)
        undo = and_(jobs.tombstone_ms.is_not(None), jobs.undo_state.in_(_OPEN))
        found = await self._claimable(conn, "ix_jobs_undo_state", and_(undo, free), undo_room)
        for kind, places in room.items():
            forward = and_(jobs.tombstone_ms.is_(None), jobs.state.in_(_OPEN), jobs.kind == kind)
            found += await self._claimable(conn, "ix_jobs_state", and_(forward, free), places)
        return found

    async def waiting(self, conn: AsyncConnection, now_ms: int, limit: int) -> list[Job]:
        """Forward work that nobody holds, whoever accepted it, oldest first."""
        jobs = self._table.c
        query = (
            select(self._table)
            .where(jobs.tombstone_ms.is_(None), jobs.state.in_(_OPEN))
            .where(or_(jobs.lease_until_ms.is_(None), jobs.lease_until_ms <= now_ms))
            .order_by(jobs.accepted_ms)
            .limit(limit)
            .with_hint(self._table, "FORCE INDEX (ix_jobs_state)", "mysql")
        )
        return [_job(row) for row in (await conn.execute(query)).mappings()]

    async def _claimable(self, conn: AsyncConnection, index: str, which: ColumnElement[bool], limit: int) -> list[Job]:
        if limit <= 0:
            return []
        query = select(self._table).where(which).order_by(self._table.c.accepted_ms).limit(limit)
        if conn.dialect.name != "sqlite":
            # Without the hint the server may walk the index that has the order, past every job that ever ended.
            query = query.with_hint(self._table, f"FORCE INDEX ({index})").with_for_update(skip_locked=True)
        return [_job(row) for row in (await conn.execute(query)).mappings()]

    async def held_by(self, conn: AsyncConnection, owner: str) -> dict[Key, Held]:
        """What this worker holds, by the table's word."""
        jobs = self._table.c
        query = select(jobs.saga_id, jobs.step, jobs.lease_number, jobs.tombstone_ms).where(jobs.lease_owner == owner)
        return {
            (row.saga_id, row.step): Held(row.lease_number, undoing=row.tombstone_ms is not None)
            for row in await conn.execute(query)
        }

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
        forward = [_ending(job, outcome) for job, outcome in ended if not job.undoing]
        undone = [_ending(job, outcome) for job, outcome in ended if job.undoing]
        written = await update_each(conn, self._table, forward, only_where_null=("tombstone_ms",))
        return written + await update_each(conn, self._table, undone)

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
    """A failed undo is `failed`, so that the next attempt does it again; forward, a failure is an outcome.

    The owner is compared besides the number: it is null once an outcome is there, so one is never written twice, even
    where a COMMIT was done and nobody heard of it.
    """
    prefix = "undo_" if job.undoing else ""
    return {
        "key_saga_id": job.saga_id,
        "key_step": job.step,
        "key_lease_number": job.lease_number,
        "key_lease_owner": job.lease_owner,
        f"{prefix}state": "failed" if job.undoing and outcome.failure else "done",
        f"{prefix}outcome": outcome.to_json(),
        "lease_owner": None,
        "lease_until_ms": None,
    }


def _row(job: Job) -> dict[str, Any]:
    return {"saga_id": job.saga_id, "step": job.step, **_changes(job)}


def _changes(job: Job) -> dict[str, Any]:
    return {
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
