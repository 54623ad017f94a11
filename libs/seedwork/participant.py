"""What turns a plain handler into a participant of sagas: each step's effects once, its answer at least once.

A command's job row is committed before the bus is acknowledged, so a ten-minute build never blocks a subscription. Then
the handler runs under a lease, and its outcome is committed together with the answer, only while the lease is held and
no undo has come in between. The rules of a row are in `jobs.py`; here they meet tasks, time and the database.

What a handler may rely on:

- it is cancelled when its undo arrives, its limit is over, its lease was lost, or the service stops;
- its undo starts after it has let go;
- it may run again, here or in another replica, after a crash or a retryable failure.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.bus import Bus
from seedwork.chassis.tracing import span
from seedwork.clock import Clock, is_due
from seedwork.errors import KnarrError, RetryableError
from seedwork.inbox import take_new
from seedwork.jobs import LOST_LEASES, Accepted, Held, Job, JobRows, Key, Outcome, accept_forward, accept_undo
from seedwork.masking import Hidden
from seedwork.messages import (
    Command,
    Envelope,
    Event,
    FailureEvent,
    Message,
    UndoFailed,
    UndoneEvent,
    WorkReported,
    new_id,
    reason_of,
    rfc3339_ms,
)
from seedwork.outbox import Outbox
from seedwork.streak import Streak
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Batched, Database, after_commit, database_now_ms

UNDO_SLOTS = 16
"""Undos at once: they are short and must not wait behind work."""
_REPORTED = 256
"""Waiting jobs that one replica reports at most; those behind them come when the queue has moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things may take, in seconds."""

    lease_s: float = 30.0
    """A worker that is silent for so long is taken for dead; renewed three times in that time."""
    report_first_s: float = 5.0
    report_every_s: float = 30.0
    sweep_after_s: float = 300.0
    """A worker that was only paused shows itself within this time: ten leases."""
    sweep_every_s: float = 60.0
    poll_s: float = 2.0
    """How often a replica looks for work that another one left, and for undos that another one took."""

    @classmethod
    def of_lease(cls, lease_s: float) -> "Timing":
        """All that depends on the lease, in its proportion."""
        return cls(lease_s=lease_s, sweep_after_s=10 * lease_s, poll_s=min(2.0, lease_s / 3))


log = structlog.get_logger(__name__)

_TEXTS = ("message", "log_tail", "note", "found", "done")
"""Fields of answers that are texts for people; the others are facts by which a saga goes on."""

Also = Callable[[AsyncConnection], Awaitable[None]]
EventHandler = Callable[[Any, Envelope, AsyncConnection], Awaitable[None]]


@dataclass(slots=True)
class Work:
    """What a handler knows of the work that it does."""

    saga_id: str
    step: str
    app_id: str
    team: str
    app: str
    attempt: int
    fence: int
    _note: str = ""
    _also: list[Also] = field(default_factory=list)
    _hidden: Hidden = field(default_factory=Hidden, repr=False)

    def note(self, text: str) -> None:
        """What it is at now, a short phrase for `waiting_for`."""
        self._note = text

    def hide(self, secrets: Iterable[str]) -> None:
        """Keep these values out of all texts that this work leaves: errors, last lines, notes, what an undo found."""
        self._hidden = Hidden(secrets)

    def shown(self, text: str) -> str:
        """Return the text without the hidden values."""
        return self._hidden.text(text)

    def masked(self, outcome: Outcome) -> Outcome:
        """Return the outcome as it is stored and sent: its texts for people without the hidden values."""
        texts = {name: outcome.data[name] for name in _TEXTS if name in outcome.data} if self._hidden else {}
        if not texts:
            return outcome
        data = {**outcome.data, **{name: self._hidden.value(each) for name, each in texts.items()}}
        return Outcome(type=outcome.type, data=data, failure=outcome.failure, retryable=outcome.retryable)

    def with_outcome(self, also: Also) -> None:
        """Add `also(conn)` to the transaction that commits the outcome; it runs only if this worker still owns it."""
        self._also.append(also)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    command: type[Command]
    handler: Callable[..., Awaitable[Event]]
    ok: type[Event]
    failed: type[FailureEvent]
    undo: type[Command] | None
    undo_handler: Callable[..., Awaitable[UndoneEvent]] | None
    undone: type[UndoneEvent] | None
    slots: int
    limit_s: float | None

    @property
    def kind(self) -> str:
        return self.command.__name__


@dataclass(slots=True)
class _Running:
    job: Job
    work: Work
    task: asyncio.Task[None] | None = None
    attempt: int = 0
    finished: bool = False
    """Whether the outcome is stored; else somebody has to take it up again."""


@dataclass(frozen=True, slots=True)
class _Ending:
    running: _Running
    command: Envelope
    outcome: Outcome


class _NotAllOurs(Exception):
    """Some rows of a batch have another holder or a tombstone: roll back, and look at each."""


class Participant:
    """The commands and events of one service.

    Args:
        name: The service's name; also the name of its subscription.
        db: Its database.
        tables: The kernel's tables in it.
        bus: Where commands come from; reports go there directly, answers through the outbox.
        clock: Time for waiting; leases use the database's clock.
        outbox: Where answers are left.
        timing: Leases, reports and sweeps; shorter ones for tests.
    """

    def __init__(
        self,
        name: str,
        *,
        db: Database,
        tables: KernelTables,
        bus: Bus,
        clock: Clock,
        outbox: Outbox,
        timing: Timing | None = None,
    ) -> None:
        self.name = name
        self._db = db
        self._tables = tables
        self._bus = bus
        self._clock = clock
        self._outbox = outbox
        self._rows = JobRows(tables)
        self._timing = timing or Timing()
        self._lease_ms = int(self._timing.lease_s * 1000)
        self._owner = new_id()
        self._steps: dict[str, _Step] = {}
        self._undos: dict[str, _Step] = {}
        self._events: dict[str, tuple[type[Event], EventHandler]] = {}
        self._running: dict[Key, _Running] = {}
        self._reserved: dict[Key, str] = {}
        """Slots of work that begins as soon as its lease is committed."""
        self._used: Counter[str] = Counter()
        """Slots that are reserved or at work, by kind."""
        self._queued: dict[Key, Job] = {}
        self._strays: dict[Key, int] = {}
        self._endings: Batched[_Ending, bool] = Batched(db, self._commit)
        self.streak = Streak()
        """Retryable failures in a row, for the health check."""
        self._wake = asyncio.Event()
        self._stopping = False

    def step(
        self,
        command: type[Command],
        handler: Callable[..., Awaitable[Event]],
        *,
        ok: type[Event],
        failed: type[FailureEvent],
        undo: type[Command] | None = None,
        undo_handler: Callable[..., Awaitable[UndoneEvent]] | None = None,
        undone: type[UndoneEvent] | None = None,
        slots: int = 8,
        limit_s: float | None = None,
    ) -> None:
        """Take part in a saga's step.

        Args:
            command: The forward command; `handler(command, work=…)` returns `ok` or `failed`.
            handler: A coroutine function; its ports are bound by `functools.partial`.
            ok: Its success event.
            failed: Its failure event.
            undo: The command that undoes it; `undo_handler(command, work=…)` returns `undone`.
            undo_handler: A coroutine function that succeeds when there is nothing to undo.
            undone: The undo's success event.
            slots: How many run at once; the others wait in order, and report their position.
            limit_s: Seconds after which the handler is cancelled, and the answer is the final failure `timed_out`.
        """
        entry = _Step(
            command=command,
            handler=handler,
            ok=ok,
            failed=failed,
            undo=undo,
            undo_handler=undo_handler,
            undone=undone,
            slots=slots,
            limit_s=limit_s,
        )
        self._steps[entry.kind] = entry
        if undo is not None:
            self._undos[undo.__name__] = entry

    def on(self, event: type[Event], handler: EventHandler) -> None:
        """Hear an event: `handler(event, envelope, conn)` runs in the inbox's transaction; database work only."""
        self._events[event.__name__] = (event, handler)

    def message_types(self) -> list[type[Message]]:
        """What this participant takes and what it answers."""
        types: set[type[Message]] = {event for event, _ in self._events.values()}
        for step in self._steps.values():
            types |= {step.command, step.ok, step.failed, WorkReported}
            if step.undo is not None and step.undone is not None:
                types |= {step.undo, step.undone, UndoFailed}
        return sorted(types, key=lambda each: each.__name__)

    def subscribed_types(self) -> list[type[Message]]:
        """What this participant takes."""
        types: list[type[Message]] = [step.command for step in self._steps.values()]
        types += [step.undo for step in self._undos.values() if step.undo is not None]
        types += [event for event, _ in self._events.values()]
        return types

    async def subscribe(self) -> None:
        """Begin to take messages."""
        if types := self.subscribed_types():
            await self._bus.subscribe(self.name, types, self._take)

    async def run(self) -> None:
        """Work, for ever: what is in the table from before, then what arrives."""
        if self._db.sole_process:
            await self._db.write(self._end_leases_of_the_dead)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claim_loop(), name=f"{self.name}-claim")
            group.create_task(self._lease_loop(), name=f"{self.name}-leases")
            group.create_task(self._report_loop(), name=f"{self.name}-reports")
            group.create_task(self._sweep_loop(), name=f"{self.name}-sweeper")

    async def stop(self, grace_s: float = 10.0) -> None:
        """Cancel what runs and give its leases back, so that it is taken up again at once."""
        self._stopping = True
        tasks = [each.task for each in self._running.values() if each.task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)

    @property
    def running_count(self) -> int:
        """Handlers at work in this process."""
        return len(self._running)

    async def idle(self) -> bool:
        """Whether no job waits or runs in this service's database."""

        async def count(conn: AsyncConnection) -> int:
            jobs = self._tables.jobs.c
            open_states = ("queued", "running")
            waiting = ((jobs.tombstone_ms.is_(None)) & jobs.state.in_(open_states)) | jobs.undo_state.in_(open_states)
            return int(
                (await conn.execute(select(func.count()).select_from(self._tables.jobs).where(waiting))).scalar_one()
            )

        return not self._running and await self._db.read(count) == 0

    # ── messages in ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, envelopes: Sequence[Envelope]) -> None:
        """One transaction for the batch; a message that cannot be handled goes to the dead letters by itself."""
        try:
            await self._db.write(lambda conn: self._accept(conn, envelopes))
            crash.point("inbox.after_commit", envelopes)
        except RetryableError:
            self._unreserve(envelopes)
            raise
        except Exception as error:
            self._unreserve(envelopes)
            if len(envelopes) > 1:
                for each in envelopes:
                    await self._take([each])
                return
            log.exception("message cannot be handled", type=envelopes[0].type, message_id=envelopes[0].id)
            await self._bury(envelopes[0], error)

    async def _bury(self, envelope: Envelope, error: Exception) -> None:
        text = reason_of(error)

        async def bury(conn: AsyncConnection) -> None:
            now_ms = await database_now_ms(conn)
            for new in await take_new(conn, self._tables, [envelope], now_ms):
                row = {
                    "id": new.id,
                    "at_ms": now_ms,
                    "type": new.type,
                    "saga_id": new.correlationid,
                    "error": text[:4000],
                    "envelope": new.to_json().decode(),
                }
                letters = self._tables.dead_letters
                await conn.execute(delete(letters).where(letters.c.id == new.id))  # it was sent again, in vain
                await conn.execute(insert(letters).values(row))

        await self._db.write(bury)

    async def _accept(self, conn: AsyncConnection, envelopes: Sequence[Envelope]) -> None:
        now_ms = await database_now_ms(conn)
        new = await take_new(conn, self._tables, envelopes, now_ms)
        for each in new:
            if each.type in self._events:
                model, handler = self._events[each.type]
                await handler(model.model_validate(each.data), each, conn)
        commands = [each for each in new if each.type in self._steps or each.type in self._undos]
        if commands:
            await self._accept_commands(conn, commands, now_ms)
        crash.point("inbox.before_commit", envelopes)

    async def _accept_commands(self, conn: AsyncConnection, commands: Sequence[Envelope], now_ms: int) -> None:
        keys = [(each.correlationid, each.sagastep or "") for each in commands]
        before = await self._rows.load(conn, keys, to_change=True)
        after = dict(before)
        answers: list[Envelope] = []
        for command in commands:
            accepted = self._rule(after.get((command.correlationid, command.sagastep or "")), command, now_ms)
            after[accepted.job.key] = accepted.job
            if accepted.answer:
                answers.append(self._answer(command, accepted.answer, command.sagaattempt or 1))
        jobs = [self._claim_here(job, now_ms) for job in after.values()]
        await self._rows.save(conn, before, jobs)
        await self._outbox.add(conn, answers)
        after_commit(conn, lambda: self._accepted(jobs))

    def _rule(self, job: Job | None, command: Envelope, now_ms: int) -> Accepted:
        if command.type in self._undos:
            return accept_undo(job, command, self._undos[command.type].kind, now_ms)
        step = self._steps[command.type]
        undone = step.failed(
            retryable=False,
            code="undone",
            message=f"{command.type} was undone before this attempt arrived; nothing was done.",
        )
        return accept_forward(job, command, now_ms, _outcome(undone))

    def _claim_here(self, job: Job, now_ms: int) -> Job:
        """Take the lease in the same transaction, where there is room; else it waits its turn."""
        if not job.waits or not job.free(now_ms) or job.key in self._running or self._stopping:
            return job
        if job.key not in self._reserved and self._room(job) <= 0:
            return job
        self._reserve(job)
        return job.leased(self._owner, now_ms + self._lease_ms, now_ms)

    def _room(self, job: Job) -> int:
        kind = _slot_kind(job)
        slots = self._steps[kind].slots if kind in self._steps else UNDO_SLOTS
        return slots - self._used[kind]

    def _reserve(self, job: Job) -> None:
        self._give_up(job.key)
        self._reserved[job.key] = kind = _slot_kind(job)
        self._used[kind] += 1

    def _give_up(self, key: Key) -> None:
        if kind := self._reserved.pop(key, None):
            self._used[kind] -= 1

    def _unreserve(self, envelopes: Iterable[Envelope]) -> None:
        for each in envelopes:
            self._give_up((each.correlationid, each.sagastep or ""))

    def _accepted(self, jobs: Iterable[Job]) -> None:
        """After the commit: start what was claimed, stop what was undone, remember what waits."""
        for job in jobs:
            running = self._running.get(job.key)
            if running:
                running.attempt = max(running.attempt, job.undo_attempt if running.job.undoing else job.attempt)
                if job.undoing and not running.job.undoing and running.task:
                    running.task.cancel()
            elif job.lease_owner == self._owner and job.waits:
                self._start(job)
            elif job.waits:
                self._queued[job.key] = job

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, job: Job) -> None:
        self._give_up(job.key)
        self._queued.pop(job.key, None)
        command = job.undo_command if job.undoing else job.command
        if command is None:
            raise RuntimeError(f"job {job.key} has no command")
        attempt = job.undo_attempt if job.undoing else job.attempt
        work = Work(
            saga_id=job.saga_id,
            step=job.step,
            app_id=job.app_id,
            team=command.team,
            app=command.subject,
            attempt=attempt,
            fence=command.fence or 0,
        )
        running = _Running(job=job, work=work, attempt=attempt)
        self._running[job.key] = running
        self._used[_slot_kind(job)] += 1
        running.task = asyncio.create_task(self._do(running, command), name=f"{job.kind}-{job.saga_id}")

    async def _do(self, running: _Running, command: Envelope) -> None:
        job = running.job
        with structlog.contextvars.bound_contextvars(saga_id=job.saga_id, step=job.step, attempt=running.attempt):
            try:
                crash.point("job.before_effect", command.type)
                with span(job.kind, traceparent=command.traceparent):
                    outcome = running.work.masked(await self._outcome_of(running, command))
                crash.point("job.after_effect", command.type)
                message = str(outcome.data.get("message", ""))
                self.streak.note(job.kind, retryable=outcome.retryable, message=message)
                await self._finish(running, command, outcome)
            except asyncio.CancelledError:
                await asyncio.shield(self._let_go(job))
                if not self._stopping:
                    await self._clean_up_if_undone(job)
            finally:
                del self._running[job.key]
                self._used[_slot_kind(job)] -= 1
                if self._queued or not running.finished:
                    self._wake.set()

    async def _outcome_of(self, running: _Running, command: Envelope) -> Outcome:
        job = running.job
        step = self._steps[job.kind]
        failed: type[FailureEvent] = UndoFailed if job.undoing else step.failed
        if not job.undoing and job.lost_leases >= LOST_LEASES:
            return _outcome(
                failed(
                    retryable=False,
                    code="worker_lost",
                    message=f"{job.kind} was given up: {job.lost_leases} workers died over it. "
                    "Look at what the work does to its machine (memory, disk), change it, and deploy again.",
                )
            )
        try:
            if job.undoing:
                if step.undo is None or step.undo_handler is None:
                    raise RuntimeError(f"{job.kind} has no undo")  # noqa: TRY301  it is answered like any fault
                answer: Event = await step.undo_handler(step.undo.model_validate(command.data), work=running.work)
            else:
                answer = await self._limited(step, command, running.work)
            return _outcome(answer)
        except KnarrError as error:
            retryable = job.undoing or isinstance(error, RetryableError)
            shown = running.work.shown(error.message)
            log.warning("work failed", kind=job.kind, code=error.reason_code, error=shown, retryable=retryable)
            return _outcome(
                failed(
                    retryable=retryable, code=error.reason_code, message=error.message, log_tail=tuple(error.log_tail)
                )
            )
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            return _outcome(
                failed(retryable=job.undoing, code="invalid", message=f"{command.type} has wrong data: {problems}.")
            )
        except Exception as error:  # the fault becomes an answer, and its trace stays in the log
            log.exception("a fault of the service", kind=job.kind)
            return _outcome(
                failed(
                    retryable=True,
                    code="fault",
                    message=f"{self.name} met a fault of its own ({type(error).__name__}). Its log has the details.",
                )
            )

    async def _limited(self, step: _Step, command: Envelope, work: Work) -> Event:
        model = step.command.model_validate(command.data)
        try:
            async with asyncio.timeout(step.limit_s) as limit:
                return await step.handler(model, work=work)
        except TimeoutError:
            if not limit.expired():
                raise
            return step.failed(
                retryable=False,
                code="timed_out",
                message=f"{step.kind} was stopped: it took longer than its limit of {step.limit_s:g} s.",
            )

    async def _finish(self, running: _Running, command: Envelope, outcome: Outcome) -> None:
        """Commit outcome and answer; while the database does not answer, keep trying as long as we are let."""
        wait_s = 0.1
        while True:
            try:
                done = await self._endings.write(_Ending(running, command, outcome))
                break
            except RetryableError as error:
                log.warning("the outcome is not stored yet", error=error.message, wait_s=wait_s)
                await self._clock.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
        running.finished = done
        if not done:
            log.info("the outcome came too late: undone, or another worker has the job", kind=running.job.kind)
            await self._let_go(running.job)
            await self._clean_up_if_undone(running.job)

    async def _commit(self, conn: AsyncConnection, endings: Sequence[_Ending]) -> Sequence[bool]:
        """Outcomes, what goes with them, and answers. Where not all rows are ours any more, each is tried alone."""
        written = await self._rows.finish(conn, [(each.running.job, each.outcome) for each in endings])
        if written != len(endings):
            if len(endings) > 1:
                raise _NotAllOurs
            return [False]
        for each in endings:
            if not each.outcome.failure:
                for also in each.running.work._also:  # noqa: SLF001  the kernel's own half of Work
                    await also(conn)
        answers = [self._answer(each.command, each.outcome, each.running.attempt) for each in endings]
        await self._outbox.add(conn, answers)
        after_commit(conn, lambda: crash.point("job.after_commit", (each.command for each in endings)))
        return [True] * len(endings)

    async def _let_go(self, job: Job) -> None:
        try:
            await self._db.write(lambda conn: self._rows.let_go(conn, job))
        except RetryableError as error:
            log.warning("the lease could not be given back; it will run out", error=error.message)

    async def _clean_up_if_undone(self, lost: Job) -> None:
        """A worker that slept through its lease and its undo removes what it made after the undo had looked."""
        rows = await self._db.read(lambda conn: self._rows.load(conn, [lost.key]))
        row = rows.get(lost.key)
        if row is not None and row.undo_state == "done" and not lost.undoing:
            await self._sweep(row)

    async def _sweep(self, job: Job) -> None:
        """Run the undo once more, for what may have been made behind its back; nobody waits for an answer."""
        step = self._steps[job.kind]
        if step.undo is None or step.undo_handler is None or job.undo_command is None:
            return
        command = job.undo_command
        work = Work(
            saga_id=job.saga_id, step=job.step, app_id=job.app_id, team=command.team, app=command.subject,
            attempt=job.undo_attempt, fence=command.fence or 0,
        )  # fmt: skip
        with structlog.contextvars.bound_contextvars(saga_id=job.saga_id, step=job.step):
            try:
                answer = await step.undo_handler(step.undo.model_validate(command.data), work=work)
            except KnarrError as error:
                log.warning("the sweep failed and comes again", kind=job.kind, error=error.message)
                return
            if answer.found:
                log.warning("swept after an undo", kind=job.kind, found=answer.found, done=answer.done)
        await self._db.write(lambda conn: self._rows.mark_swept(conn, job))

    async def _sweep_loop(self) -> None:
        """Undone work whose holder died without letting go is looked at once more, later."""
        while True:
            await self._clock.sleep(self._timing.sweep_every_s)
            try:
                await self._sweep_all(await self._db.now_ms() - int(self._timing.sweep_after_s * 1000))
            except RetryableError as error:
                log.warning("the sweeper waits", error=error.message)

    async def _sweep_all(self, before_ms: int) -> None:
        for job in await self._db.read(lambda conn: self._rows.unswept(conn, before_ms)):
            await self._sweep(job)

    def _answer(self, command: Envelope, outcome: Outcome, attempt: int) -> Envelope:
        return Envelope(
            id=new_id(),
            source=f"/{self.name}",
            type=outcome.type,
            time=rfc3339_ms(self._clock.now_ms()),
            subject=command.subject,
            correlationid=command.correlationid,
            appid=command.appid,
            team=command.team,
            data=outcome.data,
            causationid=command.id,
            sagastep=command.sagastep,
            sagaattempt=attempt,
            fence=command.fence,
            traceparent=command.traceparent,
        )

    # ── loops ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _claim_loop(self) -> None:
        """Take up what waits in the table: when something ended here, and from time to time what others left."""
        while True:
            self._wake.clear()
            try:
                claimed = await self._db.write(self._claim)
            except RetryableError as error:
                log.warning("cannot look for work", error=error.message)
                claimed = 0
            if not claimed:
                try:
                    async with asyncio.timeout(self._timing.poll_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _claim(self, conn: AsyncConnection) -> int:
        if self._stopping:
            return 0
        now_ms = await database_now_ms(conn)
        room = {kind: step.slots - self._used[kind] for kind, step in self._steps.items()}
        found = await self._rows.claimable(conn, now_ms, room=room, undo_room=UNDO_SLOTS - self._used["undo"])
        found = [job for job in found if job.key not in self._running and job.key not in self._reserved]
        claimed = [job.leased(self._owner, now_ms + self._lease_ms, now_ms) for job in found]
        await self._rows.save(conn, {job.key: job for job in found}, claimed)
        after_commit(conn, lambda: self._accepted(claimed))
        return len(claimed)

    async def _lease_loop(self) -> None:
        """Keep what is ours; stop what is not any more, or was undone by way of another replica."""
        alone = self._db.sole_process
        renew_at_ms = 0
        while True:
            await self._clock.sleep(min(self._timing.poll_s, self._timing.lease_s / 3))
            due = is_due(self._clock.now_ms(), renew_at_ms, self._lease_ms // 3)
            if alone and not (due and self._running):
                continue
            running = dict(self._running)  # what starts while we look is not judged by what we saw
            try:
                held = await (self._db.write(self._renew) if due else self._db.read(self._held))
                self._stop_what_is_lost(running, held)
                await self._adopt_strays(held)
            except RetryableError as error:
                log.warning("leases could not be renewed", error=error.message)
                continue
            if due:
                renew_at_ms = self._clock.now_ms() + self._lease_ms // 3

    async def _held(self, conn: AsyncConnection) -> dict[Key, Held]:
        return await self._rows.held_by(conn, self._owner)

    async def _renew(self, conn: AsyncConnection) -> dict[Key, Held]:
        await self._rows.renew(conn, self._owner, await database_now_ms(conn) + self._lease_ms)
        return await self._held(conn)

    def _stop_what_is_lost(self, running: Mapping[Key, _Running], held: Mapping[Key, Held]) -> None:
        for key, each in running.items():
            row = held.get(key)
            lost = row is None or row.lease_number != each.job.lease_number
            undone = row is not None and row.undoing and not each.job.undoing
            if (lost or undone) and self._running.get(key) is each and each.task and not each.task.done():
                log.info("work is stopped", kind=each.job.kind, saga_id=key[0], lost=lost)
                each.task.cancel()

    async def _adopt_strays(self, held: Mapping[Key, Held]) -> None:
        """Leases of ours that nobody works under: taken, or not given back, by a COMMIT of which we never heard.

        Work that begins or ends in this moment looks the same, so a stray must have been seen twice.
        """
        strays = {key: row.lease_number for key, row in held.items() if key not in self._running}
        twice = [key for key, number in strays.items() if self._strays.get(key) == number]
        self._strays = strays
        if not twice or self._stopping:
            return
        rows = await self._db.read(lambda conn: self._rows.load(conn, twice))
        for key, job in rows.items():
            ours = job.lease_owner == self._owner and job.lease_number == strays[key]
            if ours and job.waits and key not in self._running:
                log.info("work under a lease of ours is taken up", kind=job.kind, saga_id=job.saga_id)
                self._start(job)

    async def _report_loop(self) -> None:
        """Tell the saga that we are alive: 5 s after acceptance, then every 30 s."""
        next_at_ms: dict[Key, int] = {}
        look_at_ms = 0
        first_ms, every_ms = (int(each * 1000) for each in (self._timing.report_first_s, self._timing.report_every_s))
        while True:
            await self._clock.sleep(1.0)
            now_ms = self._clock.now_ms()
            if is_due(now_ms, look_at_ms, every_ms):
                look_at_ms = now_ms + every_ms
                await self._notice_what_waits()
            if self._queued:
                await self._forget_what_others_took()
            alive: list[tuple[Job, WorkReported]] = [
                (each.job, WorkReported(status="running", note=each.work.shown(each.work._note)))  # noqa: SLF001  the kernel's half
                for each in list(self._running.values())
            ]
            alive += self._queue_positions()
            keys = {job.key for job, _ in alive}
            next_at_ms = {key: at_ms for key, at_ms in next_at_ms.items() if key in keys}
            due: list[Envelope] = []
            for job, report in alive:
                at_ms = next_at_ms.setdefault(job.key, job.accepted_ms + first_ms)
                command = job.undo_command if job.undoing else job.command
                if command and is_due(now_ms, at_ms, max(first_ms, every_ms)):
                    next_at_ms[job.key] = now_ms + every_ms
                    attempt = job.undo_attempt if job.undoing else job.attempt
                    due.append(self._answer(command, _outcome(report), attempt))
            if due:
                try:
                    await self._bus.publish(due)
                except RetryableError as error:
                    log.info("reports were not published; the next ones will be", error=error.message)

    async def _notice_what_waits(self) -> None:
        """Jobs that another replica accepted wait here too: it may be gone, and a saga takes silence for a fault."""

        async def waiting(conn: AsyncConnection) -> list[Job]:
            return await self._rows.waiting(conn, await database_now_ms(conn), _REPORTED)

        try:
            jobs = await self._db.read(waiting)
        except RetryableError as error:
            log.warning("cannot look at the queue", error=error.message)
            return
        for job in jobs:
            if job.kind in self._steps and job.key not in self._running and job.key not in self._reserved:
                self._queued.setdefault(job.key, job)

    async def _forget_what_others_took(self) -> None:
        keys = list(self._queued)

        async def look(conn: AsyncConnection) -> tuple[dict[Key, Job], int]:
            return await self._rows.load(conn, keys), await database_now_ms(conn)

        try:
            rows, now_ms = await self._db.read(look)
        except RetryableError as error:
            log.warning("cannot look at the queue", error=error.message)
            return
        for key in keys:
            if not (key in rows and rows[key].waits and rows[key].free(now_ms)):
                self._queued.pop(key, None)

    def _queue_positions(self) -> list[tuple[Job, WorkReported]]:
        reports = []
        by_kind: dict[str, int] = {}
        for job in sorted(self._queued.values(), key=lambda each: each.accepted_ms):
            kind = _slot_kind(job)
            by_kind[kind] = by_kind.get(kind, 0) + 1
            reports.append((job, WorkReported(status="queued", position=by_kind[kind])))
        return reports

    async def _end_leases_of_the_dead(self, conn: AsyncConnection) -> None:
        await self._rows.end_leases_of_the_dead(conn, await database_now_ms(conn), but=self._owner)


def _slot_kind(job: Job) -> str:
    return "undo" if job.undoing else job.kind


def _outcome(answer: Event) -> Outcome:
    return Outcome(
        type=type(answer).__name__,
        data=answer.model_dump(mode="json"),
        failure=isinstance(answer, FailureEvent),
        retryable=isinstance(answer, FailureEvent) and answer.retryable,
    )
