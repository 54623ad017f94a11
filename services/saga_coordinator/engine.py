"""The loop around `decide`: messages, timers and verbs in; decisions on disk out, each input exactly once.

A batch of inputs is one transaction: inbox, sagas and lanes under version checks, log, outbox, timers. If it cannot be
committed because another coordinator was quicker, or because one of its inputs cannot be decided, its inputs are taken
one by one; what cannot be decided even alone goes to the dead letters in a transaction of its own. The bus is answered
after the commit, so nothing is lost, and the inbox knows what comes twice.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import structlog
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork import crash
from seedwork.access import Access
from seedwork.bus import Bus
from seedwork.clock import Clock
from seedwork.decide import UnknownSaga, decide
from seedwork.errors import KnarrError, RetryableError
from seedwork.inbox import take_new
from seedwork.messages import Envelope, new_id, reason_of, rfc3339_ms
from seedwork.outbox import Outbox
from seedwork.saga import (
    ENDED,
    OPEN,
    Answered,
    Decision,
    Definitions,
    Input,
    LaneAwaited,
    LaneGranted,
    Link,
    Origin,
    Pressed,
    Saga,
    SagaState,
    Started,
    Superseded,
    TimerFired,
    VerbName,
    WaitKind,
)
from seedwork.unit_of_work import Database, after_commit, database_now_ms
from services.saga_coordinator.models import kernel, sagas, timers
from services.saga_coordinator.queries import unknown_saga
from services.saga_coordinator.store import SOURCE, Cache, Moved, Sheet

SUBSCRIPTION = "saga_coordinator"
ATTEMPTS = 20
"""How often one input is decided anew because somebody else was quicker; each time somebody did get on."""
LOOK_AGAIN_S = 15.0
"""How long to sleep at most: what another coordinator left behind, or a jump of the clock, is noticed after that."""
AT_ONCE = 8
"""Batches that are decided side by side where the database has several writers: as many as it has."""
AFTER_FAULT_MS = 60_000
"""A timer that cannot be decided comes again after this."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DueTimer:
    """A row of `timers` whose time has come."""

    id: str
    saga_id: str
    due_ms: int
    kind: str
    step: str | None
    attempt: int
    epoch: int
    by_saga: str | None

    @property
    def type(self) -> str:
        """What it is called in the log."""
        return self.kind if self.by_saga else f"timer {self.kind}"


Work = Envelope | DueTimer


class Engine:
    """The coordinator of one process; several may share a database.

    Args:
        db: The service's database.
        outbox: Where messages are left.
        bus: Where they come from.
        clock: For sleeping; what is due is decided by the database's clock.
        definitions: Every saga in the code.
        hold_s: How long new sagas wait for a person.
        batch: Inputs in one transaction.
        jitter: A number from 0 to 1, another one each time.
        on_change: Called after a commit with the ids of the sagas whose log has grown.
    """

    def __init__(
        self,
        *,
        db: Database,
        outbox: Outbox,
        bus: Bus,
        clock: Clock,
        definitions: Definitions,
        hold_s: float,
        batch: int = 256,
        jitter: Callable[[], float] = random.random,
        on_change: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._bus = bus
        self._clock = clock
        self._definitions = definitions
        self._hold_ms = int(hold_s * 1000)
        self._batch = batch
        self._jitter = jitter
        self._on_change = on_change
        self._cache = Cache(alone=db.sole_process)
        self._wake = asyncio.Event()
        self._asleep_until_ms = 0
        self._arrived: deque[tuple[Sequence[Envelope], asyncio.Future[None]]] = deque()
        self._deciding: set[asyncio.Task[None]] = set()
        self._at_once = 1 if db.sole_process else AT_ONCE

    # ------------------------------------------------------------------------------------------ what comes in

    async def open(self) -> None:
        """Refuse to start without a definition that a saga still needs; then take messages.

        Raises:
            Misconfigured: A saga that has not ended began with a definition that is not in the code.
        """
        query = select(sagas.c.definition).where(sagas.c.state.in_(OPEN)).distinct()

        async def needed(conn: AsyncConnection) -> list[str]:
            return [row[0] for row in await conn.execute(query)]

        for key in await self._db.read(needed):
            self._definitions[key]
        await self._bus.subscribe(SUBSCRIPTION, self._definitions.messages(), self.handle)

    async def handle(self, envelopes: Sequence[Envelope]) -> None:
        """A batch from the bus; on return all of it is decided and on disk.

        What arrives while others are decided waits, and is then decided together: a transaction costs nearly the same
        for one input as for many.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived.append((envelopes, done))
        if sum(not each.done() for each in self._deciding) < self._at_once:
            task = asyncio.create_task(self._decide_arrived(), name="decide")
            self._deciding.add(task)
            task.add_done_callback(self._deciding.discard)
        await done

    async def _decide_arrived(self) -> None:
        """Until nobody waits."""
        while self._arrived:
            await self._decide_next()

    async def _decide_next(self) -> None:
        """As many of the batches that wait as fit into one."""
        batches = [self._arrived.popleft()]
        count = len(batches[0][0])
        while self._arrived and count + len(self._arrived[0][0]) <= self._batch:
            batches.append(self._arrived.popleft())
            count += len(batches[-1][0])
        parts = _parts([each for envelopes, _ in batches for each in envelopes], self._batch)
        outcomes = await asyncio.gather(*(self._take(part) for part in parts), return_exceptions=True)
        fault = next((each for each in outcomes if isinstance(each, BaseException)), None)
        for _, done in batches:
            if done.done():
                continue  # whoever waited was cancelled
            if fault is None:
                done.set_result(None)
            else:
                done.set_exception(fault)

    async def press(
        self, saga_id: str, verb: VerbName, *, access: Access, who: str, why: str = "", force: bool = False
    ) -> SagaState:
        """Decide an operator's verb now.

        Raises:
            NotFound: No such saga, or another team's.
            VerbRefused: Not in this state.
        """

        async def turn(conn: AsyncConnection) -> SagaState:
            sheet = await self._sheet(conn, fresh=True)
            await sheet.load([saga_id])
            saga = sheet.saga(saga_id)
            if saga is None or not access.sees(saga.origin.team):
                raise unknown_saga(saga_id)
            given = Pressed(
                at_ms=sheet.now_ms,
                jitter=self._jitter(),
                verb=verb,
                who=who,
                why=why,
                force=force,
                new_id=new_id(),
                open_link=await _open_link(conn, saga),
            )
            self._decide(sheet, saga, given, None)
            await self._write(conn, sheet, (verb,))
            decided = sheet.saga(saga_id)
            if decided is None:
                raise TypeError("a decision without its saga")
            return decided

        return await self._until_unmoved(turn)

    async def run_timers(self) -> None:
        """Feed timers when they are due, for ever; sleeps until the next one, or until an earlier one is set."""
        while True:
            self._wake.clear()
            self._asleep_until_ms = 0  # while we look, every new timer wakes us
            due, now_ms, next_ms = await self._db.read(self._due)
            if due:
                await self._take(due)
                continue
            until_ms = now_ms + int(LOOK_AGAIN_S * 1000)
            self._asleep_until_ms = min(until_ms, next_ms) if next_ms is not None else until_ms
            if not self._wake.is_set():
                await self._sleep((self._asleep_until_ms - now_ms) / 1000)

    async def _sleep(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (sleeping, waking):
                each.cancel()
            await asyncio.gather(sleeping, waking, return_exceptions=True)

    async def _due(self, conn: AsyncConnection) -> tuple[list[DueTimer], int, int | None]:
        """Timers whose time has come, now, and when the next one comes."""
        now_ms = await database_now_ms(conn)
        query = select(timers).where(timers.c.due_ms <= now_ms).order_by(timers.c.due_ms).limit(self._batch)
        due = [DueTimer(**row) for row in (await conn.execute(query)).mappings()]
        next_ms = None if due else (await conn.execute(select(func.min(timers.c.due_ms)))).scalar_one()
        return due, now_ms, next_ms

    # ------------------------------------------------------------------------------------------ one transaction

    async def _take(self, works: Sequence[Work]) -> None:
        """Together; if that fails, each alone; if that fails, as a dead letter."""
        try:
            if len(works) == 1:
                await self._until_unmoved(lambda conn: self._turn(conn, works))
            else:
                await self._together(works)
        except (Moved, IntegrityError):
            self._forget()
            await self._one_by_one(works)
        except RetryableError:
            self._forget()
            raise
        except Exception as error:  # noqa: BLE001  a payload that does not fit, a fault of a definition: kept with its reason
            if len(works) > 1:
                await self._one_by_one(works)
                return
            await self._bury(works[0], error)

    async def _together(self, works: Sequence[Work]) -> None:
        """In one transaction; where others write, once more on rows that are read if what was known is not so."""
        try:
            await self._db.write(lambda conn: self._turn(conn, works))
        except Moved:
            if self._cache.alone:
                raise
            self._cache.forget(each.correlationid if isinstance(each, Envelope) else each.saga_id for each in works)
            await self._db.write(lambda conn: self._turn(conn, works))

    def _forget(self) -> None:
        """Somebody else writes, or it is not known what was committed: read everything anew."""
        self._cache.forget()

    async def _one_by_one(self, works: Sequence[Work]) -> None:
        if len(works) == 1:
            raise Moved("A saga is moved all the time by another coordinator", why=f"{ATTEMPTS} attempts came too late")
        for each in works:
            await self._take([each])

    async def _until_unmoved(self, turn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._db.write(turn)
            except (Moved, IntegrityError):
                self._forget()
                await self._clock.sleep(0.005 * self._jitter())
        return await self._db.write(turn)

    async def _turn(self, conn: AsyncConnection, works: Sequence[Work]) -> None:
        """Decide each in its order, and write everything."""
        envelopes = [each for each in works if isinstance(each, Envelope)]
        due = [each for each in works if isinstance(each, DueTimer)]
        sheet = await self._sheet(conn, fresh=bool(due) or (len(works) == 1 and not self._cache.alone))
        if envelopes:
            envelopes = await take_new(conn, kernel, envelopes, sheet.now_ms)
        saga_ids = [each.correlationid for each in envelopes] + [each.saga_id for each in due]
        starting = [each.appid for each in envelopes if self._definitions.started_by(each.type)]
        await sheet.load(saga_ids, starting)
        for envelope in envelopes:
            self._message(sheet, envelope)
        for timer in due:
            self._timer(sheet, timer)
        await self._write(conn, sheet, works)

    async def _sheet(self, conn: AsyncConnection, *, fresh: bool) -> Sheet:
        """`fresh` reads the rows: a timer judged to be stale writes nothing that a version check could refuse.

        So it is for what is decided alone where others write too: whatever was wrong with a batch is not a row's age.
        """
        return Sheet(conn, self._outbox, await database_now_ms(conn), None if fresh else self._cache)

    async def _write(self, conn: AsyncConnection, sheet: Sheet, works: Sequence[Work | VerbName]) -> None:
        await sheet.write()
        touched, due_ms = sheet.touched, sheet.next_due_ms
        after_commit(conn, lambda: self._committed(sheet, touched, due_ms, works))
        crash.point("coordinator.before_commit", works)

    def _committed(
        self, sheet: Sheet, touched: Sequence[str], due_ms: int | None, works: Sequence[Work | VerbName]
    ) -> None:
        crash.point("coordinator.after_commit", works)
        sheet.committed(self._cache)
        if due_ms is not None and (self._asleep_until_ms == 0 or due_ms < self._asleep_until_ms):
            self._wake.set()
        self._on_change(touched)

    def _message(self, sheet: Sheet, envelope: Envelope) -> None:
        """A message of the bus: a start, or an answer."""
        saga = sheet.saga(envelope.correlationid)
        definition = self._definitions.started_by(envelope.type)
        common: dict[str, Any] = {"at_ms": sheet.now_ms, "jitter": self._jitter(), "message_id": envelope.id}
        given: Input
        if definition is not None:
            origin = self._origin(definition, envelope, sheet.now_ms)
            given = Started(type=envelope.type, origin=origin, causation_id=envelope.causationid, **common)
            if saga is None:
                self._begin(sheet, definition, given)
                return
        elif saga is None:
            raise UnknownSaga(
                f"There is no saga {envelope.correlationid!r} for this {envelope.type}",
                todo="Resend it once its saga has started, or leave it: nothing waits for it.",
            )
        else:
            given = Answered(
                type=envelope.type,
                data=envelope.data,
                step=envelope.sagastep,
                attempt=envelope.sagaattempt,
                causation_id=envelope.causationid,
                **common,
            )
        self._decide(sheet, saga, given, envelope.id)

    def _timer(self, sheet: Sheet, timer: DueTimer) -> None:
        """A due timer: the saga's own, or what another saga has to tell it."""
        saga = sheet.saga(timer.saga_id)
        if saga is None:
            sheet.drop_timer(timer.id)
            return
        given = _timer_input(timer, sheet.now_ms, self._jitter())
        self._decide(sheet, saga, given, None)
        if timer.by_saga is not None:
            sheet.drop_timer(timer.id)
        else:
            sheet.move_timer(timer.saga_id)

    def _begin(self, sheet: Sheet, definition: Saga, given: Started) -> None:
        decision = decide(definition, None, sheet.lane(given.origin.app_id), given)
        self._keep(sheet, decision, given.message_id)

    def _decide(self, sheet: Sheet, saga: SagaState, given: Input, causation_id: str | None) -> None:
        definition = self._definitions[saga.origin.definition]
        decision = decide(definition, saga, sheet.lane(saga.origin.app_id), given)
        self._keep(sheet, decision, causation_id)

    def _keep(self, sheet: Sheet, decision: Decision, causation_id: str | None) -> None:
        """Take it over; a linked saga starts at once, in the same transaction."""
        sheet.decided(decision, causation_id)
        if decision.link is not None:
            self._begin_linked(sheet, decision.saga, decision.link)

    def _begin_linked(self, sheet: Sheet, parent: SagaState, link: Link) -> None:
        definition = self._definitions.named(link.definition)
        origin = Origin(
            saga_id=link.saga_id,
            definition=definition.key,
            app_id=parent.origin.app_id,
            app=parent.origin.app,
            team=parent.origin.team,
            data=link.data,
            trigger=link.trigger,
            parent_id=parent.id,
            created_ms=sheet.now_ms,
            hold_ms=self._hold_ms,
            traceparent=parent.origin.traceparent,
        )
        started = Started(at_ms=sheet.now_ms, jitter=self._jitter(), type=definition.starts_on.__name__, origin=origin)
        self._begin(sheet, definition, started)

    def _origin(self, definition: Saga, envelope: Envelope, now_ms: int) -> Origin:
        data = envelope.data
        return Origin(
            saga_id=envelope.correlationid,
            definition=definition.key,
            app_id=envelope.appid,
            app=str(data.get("app") or envelope.subject),
            team=envelope.team,
            data=data,
            trigger=definition.trigger(data),
            parent_id=data.get("parent_id"),
            created_ms=now_ms,
            hold_ms=self._hold_ms,
            traceparent=envelope.traceparent,
        )

    # ------------------------------------------------------------------------------------------ dead letters

    async def _bury(self, work: Work, error: Exception) -> None:
        """Keep what cannot be decided, with the reason; a timer comes again later, else its saga would never end."""
        reason = reason_of(error)
        fault = None if isinstance(error, KnarrError) else error
        log.warning("an input goes to the dead letters", type=work.type, reason=reason, exc_info=fault)
        envelope = work if isinstance(work, Envelope) else _as_envelope(work)

        async def bury(conn: AsyncConnection) -> None:
            now_ms = await database_now_ms(conn)
            if isinstance(work, Envelope):
                if not await take_new(conn, kernel, [work], now_ms):
                    return
            else:
                later = {"due_ms": now_ms + AFTER_FAULT_MS}
                await conn.execute(update(timers).where(timers.c.id == work.id).values(later))
                newer = {"version": sagas.c.version + 1}  # see `Sheet.move_timer`
                await conn.execute(update(sagas).where(sagas.c.id == work.saga_id).values(newer))
            letters = kernel.dead_letters
            await conn.execute(delete(letters).where(letters.c.id == envelope.id))
            row = {
                "id": envelope.id,
                "at_ms": now_ms,
                "type": envelope.type,
                "saga_id": envelope.correlationid,
                "error": reason[:4000],
                "envelope": envelope.to_json().decode(),
            }
            await conn.execute(insert(letters).values(row))

        with contextlib.suppress(IntegrityError):  # another coordinator buried it in this moment
            await self._db.write(bury)
        self._forget()


def _timer_input(timer: DueTimer, at_ms: int, jitter: float) -> Input:
    if timer.by_saga is None:
        kind = cast("WaitKind", timer.kind)  # written from a `Timer`
        return TimerFired(
            at_ms=at_ms, jitter=jitter, step=timer.step, attempt=timer.attempt, epoch=timer.epoch, kind=kind
        )
    if timer.kind == "LaneGranted":
        return LaneGranted(at_ms=at_ms, jitter=jitter, message_id=timer.id)
    if timer.kind == "LaneAwaited":
        return LaneAwaited(at_ms=at_ms, jitter=jitter, message_id=timer.id, by=timer.by_saga)
    return Superseded(at_ms=at_ms, jitter=jitter, message_id=timer.id, by=timer.by_saga)


def _as_envelope(timer: DueTimer) -> Envelope:
    """A timer as it stands among the dead letters."""
    return Envelope(
        id=timer.id,
        source=SOURCE,
        type=timer.kind if timer.by_saga else "TimerFired",
        time=rfc3339_ms(timer.due_ms),
        correlationid=timer.saga_id,
        appid="",
        data={"kind": timer.kind, "epoch": timer.epoch, "by": timer.by_saga},
        sagastep=timer.step,
        sagaattempt=timer.attempt,
    )


async def _open_link(conn: AsyncConnection, saga: SagaState) -> str | None:
    """The saga that was started from this one, if it has not ended."""
    if saga.linked_id is None:
        return None
    row: Row[Any] | None = (await conn.execute(select(sagas.c.state).where(sagas.c.id == saga.linked_id))).one_or_none()
    return saga.linked_id if row is not None and row.state not in ENDED else None


def _parts(envelopes: Sequence[Envelope], size: int) -> list[list[Envelope]]:
    """About `size` each; an app's messages stay together, since they meet in its lane."""
    by_app: dict[str, list[Envelope]] = {}
    for each in envelopes:
        by_app.setdefault(each.appid, []).append(each)
    parts: list[list[Envelope]] = []
    for group in by_app.values():
        if not parts or len(parts[-1]) + len(group) > size:
            parts.append([])
        parts[-1] += group
    return parts
