"""Sagas, lanes, log and timers in SQL: one transaction's worth of them, loaded as a set and written as a set.

`Sheet.load` reads what a batch of inputs is about with one query a table; `decided` takes each decision in memory,
where the next input of the batch finds it; `write` brings all of it back. Every update compares the version it read: if
a row was moved by somebody else, `Moved` is raised and nothing is written.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import BindParameter, Table, bindparam, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import RetryableError
from seedwork.lanes import Lane
from seedwork.messages import Envelope, new_id, rfc3339_ms
from seedwork.outbox import Outbox
from seedwork.saga import Decision, SagaState, timer_of
from seedwork.saga_records import body_to_json, from_json, origin_to_json
from seedwork.set_wise import Many, update_each
from services.saga_coordinator.models import lanes, saga_log, sagas, timers

SOURCE = "/saga_coordinator"

_NEVER_CHANGE = frozenset({"id", "definition", "app_id", "app", "created_ms", "origin"})
_CACHED = 4096
"""Sagas under way that one process keeps in memory: some 4 KB each."""


class Changes:
    """Rows that are as they were read become what they are now; how many there were.

    SQLite runs a statement for each row inside the connection's thread; MySQL gets one statement for all of them.
    """

    def __init__(self, table: Table, key: str) -> None:
        self._table = table
        self._key = key
        columns: dict[str, Any] = {
            each.name: bindparam(each.name) for each in table.columns if each.name not in _NEVER_CHANGE
        }
        same = (table.c[key] == bindparam("key_id"), table.c.version == bindparam("key_version"))
        self._each = Many(update(table).where(*same).values(columns))

    async def execute(self, conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many rows were found; they are named by `key_id` and `key_version`."""
        if conn.dialect.name == "sqlite":
            return await self._each.execute(conn, rows)
        named = [{f"key_{self._key}": row["key_id"], **row} for row in rows]
        if self._key != "id":
            for row in named:
                del row["key_id"]
        return await update_each(conn, self._table, named)


# Built once: putting a statement together costs more than running it.
_KEYS: BindParameter[Any] = bindparam("keys", expanding=True)
_SAGAS = select(sagas.c.id, sagas.c.version, sagas.c.origin, sagas.c.body).where(sagas.c.id.in_(_KEYS))
_LANES = select(lanes.c.app_id, lanes.c.version, lanes.c.body).where(lanes.c.app_id.in_(_KEYS))
_INSERT_SAGA, _UPDATE_SAGA = Many(insert(sagas)), Changes(sagas, "id")
_INSERT_LANE, _UPDATE_LANE = Many(insert(lanes)), Changes(lanes, "app_id")
_INSERT_LOG = Many(insert(saga_log))
_DELETE_TIMER = Many(delete(timers).where(timers.c.id == bindparam("key_id")))
_DELETE_TIMERS = delete(timers).where(timers.c.id.in_(_KEYS))
_PUT_TIMER = Many(
    text(
        "REPLACE INTO timers (id, saga_id, due_ms, kind, step, attempt, epoch, by_saga) "
        "VALUES (:id, :saga_id, :due_ms, :kind, :step, :attempt, :epoch, :by_saga)"
    )
)


class Moved(RetryableError):
    """Somebody else moved the saga or its lane since it was read: read it again, decide again."""

    code = "moved"


@dataclass(slots=True)
class _Row:
    """A saga or a lane: as it is now, and the version that was read; 0: there is none yet."""

    value: Any
    version: int
    changed: bool = False
    known: bool = False
    """Whether it was not read, but known from the cache."""
    timer_ms: int | None = None
    """When the saga's row of `timers` is due; None: there is none, or nobody has looked."""


class Cache:
    """Sagas and lanes as this process last committed them, so that they need not be read and parsed again.

    Where no other process writes, a row is as it was left. Elsewhere another coordinator may have moved it: a decision
    about a saga that is known from here counts only if it changes the saga, since then its version is compared; lanes,
    which most decisions only look at, are read.

    Args:
        alone: Whether no other process writes.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self._rows: OrderedDict[str, tuple[Any, int, int | None]] = OrderedDict()

    def get(self, key: str) -> tuple[Any, int, int | None] | None:
        """Value, version, and when its row of `timers` is due."""
        return self._rows.get(key)

    def put(self, key: str, value: Any, version: int, timer_ms: int | None = None) -> None:
        """As it was committed."""
        self._rows[key] = (value, version, timer_ms)
        self._rows.move_to_end(key)
        if len(self._rows) > 2 * _CACHED:
            self._rows.popitem(last=False)

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """These, or all."""
        if keys is None:
            self._rows.clear()
        for key in keys or ():
            self._rows.pop(key, None)


class Sheet:
    """What one transaction works on.

    Args:
        conn: The transaction.
        outbox: Where messages are left.
        now_ms: The database's clock.
        cache: What is known of the rows; None: they are read.
    """

    def __init__(self, conn: AsyncConnection, outbox: Outbox, now_ms: int, cache: Cache | None = None) -> None:
        self.now_ms = now_ms
        self._cache = cache
        self._conn = conn
        self._outbox = outbox
        self._time = rfc3339_ms(now_ms)
        self._sagas: dict[str, _Row] = {}
        self._lanes: dict[str, _Row] = {}
        self._log: list[dict[str, Any]] = []
        self._messages: list[Envelope] = []
        self._timers: dict[str, dict[str, Any]] = {}
        self._no_timers: set[str] = set()

    async def load(self, saga_ids: Iterable[str], app_ids: Iterable[str] = ()) -> None:
        """Read these sagas, and the lanes of their apps and of those given."""
        unknown = self._from_cache(self._sagas, set(saga_ids))
        if unknown:
            for saga_id, version, origin, body in await self._conn.execute(_SAGAS, {"keys": list(unknown)}):
                self._sagas[saga_id] = _Row(from_json(origin, body), version)
        apps = {each.value.origin.app_id for each in self._sagas.values()}
        wanted = apps.union(app_ids)
        alone = self._cache is None or self._cache.alone
        unknown = self._from_cache(self._lanes, wanted) if alone else wanted - self._lanes.keys()
        if unknown:
            for app_id, version, body in await self._conn.execute(_LANES, {"keys": list(unknown)}):
                self._lanes[app_id] = _Row(lane_from_json(body), version)

    def _from_cache(self, rows: dict[str, _Row], keys: set[str]) -> set[str]:
        """Take those that are known; the others have to be read."""
        unknown = keys - rows.keys()
        if self._cache is None:
            return unknown
        for key in tuple(unknown):
            known = self._cache.get(key)
            if known is not None:
                value, version, timer_ms = known
                rows[key] = _Row(value, version, known=True, timer_ms=timer_ms)
                unknown.discard(key)
        return unknown

    def committed(self, cache: Cache) -> None:
        """Remember what is on disk now; what has ended is not needed again."""
        for saga_id, row in self._sagas.items():
            if row.value.ended:
                cache.forget([saga_id])
            elif row.changed:
                cache.put(saga_id, row.value, row.version + 1, row.timer_ms)
        for app_id, row in self._lanes.items() if cache.alone else ():
            if row.value.holder is None:
                cache.forget([app_id])
            elif row.changed:
                cache.put(app_id, row.value, row.version + 1)

    def saga(self, saga_id: str) -> SagaState | None:
        """As it stands after the decisions so far."""
        row = self._sagas.get(saga_id)
        return row.value if row else None

    def lane(self, app_id: str) -> Lane:
        """As it stands after the decisions so far."""
        row = self._lanes.get(app_id)
        return row.value if row else Lane(app_id=app_id)

    def decided(self, decision: Decision, causation_id: str | None) -> None:
        """Take a decision over."""
        saga, lane = decision.saga, decision.lane
        row = self._sagas.setdefault(saga.id, _Row(None, 0))
        before, row.value = row.value, saga
        row.changed = row.changed or before is not saga
        lane_row = self._lanes.setdefault(lane.app_id, _Row(Lane(app_id=lane.app_id), 0))
        lane_row.changed = lane_row.changed or lane_row.value is not lane
        lane_row.value = lane
        self._keep_entry(decision)
        self._keep_messages(decision, causation_id)
        if before is None or before.wait is not saga.wait:
            self.set_timer(saga)
        for notice in decision.notices:
            self._put_timer(new_id(), notice.saga_id, self.now_ms, notice.kind, by_saga=notice.by)

    def set_timer(self, saga: SagaState) -> None:
        """See to it that the saga's row of `timers` is due in time.

        A row that is due earlier stays as it is, since most waits end long before their time: when it is due, it is
        out of date, and `move_timer` puts it right.
        """
        row, timer = self._sagas[saga.id], timer_of(saga)
        if timer is None:
            row.timer_ms = None
            self._timers.pop(saga.id, None)
            self._no_timers.add(saga.id)
        elif row.timer_ms is None or row.timer_ms > timer.due_ms:
            row.timer_ms = timer.due_ms
            self._put_timer(
                saga.id,
                saga.id,
                timer.due_ms,
                timer.kind,
                step=timer.step,
                attempt=timer.attempt,
                epoch=timer.epoch,
            )

    def move_timer(self, saga_id: str) -> None:
        """The saga's row of `timers` was due: make it what the saga says, so that it does not come again.

        The saga gets a new version even where nothing was decided: its row of `timers` changes with the version only,
        so that whoever knows the one knows when the other is due.
        """
        row = self._sagas[saga_id]
        row.changed, row.timer_ms = True, None
        self.set_timer(row.value)

    def drop_timer(self, timer_id: str) -> None:
        """It was seen to."""
        self._no_timers.add(timer_id)

    @property
    def next_due_ms(self) -> int | None:
        """The earliest timer that was set."""
        return min((each["due_ms"] for each in self._timers.values()), default=None)

    @property
    def touched(self) -> list[str]:
        """The sagas whose log has grown."""
        return list({each["saga_id"]: None for each in self._log})

    async def write(self) -> None:
        """All of it.

        Raises:
            Moved: A row is not as it was read; or nobody can say so of a saga that was not read.
        """
        shared = self._cache is not None and not self._cache.alone
        if shared and any(row.known and not row.changed for row in self._sagas.values()):
            raise Moved("A saga that stays as it was must be read", why="another coordinator may have moved it")
        await self._write(self._sagas, _INSERT_SAGA, _UPDATE_SAGA, _saga_columns)
        await self._write(self._lanes, _INSERT_LANE, _UPDATE_LANE, _lane_columns)
        if self._log:
            await _INSERT_LOG.later(self._conn, self._log)
        if self._no_timers:
            await self._delete_timers()
        if self._timers:
            await _PUT_TIMER.later(self._conn, list(self._timers.values()))
        await self._outbox.add(self._conn, self._messages)

    async def _delete_timers(self) -> None:
        if self._conn.dialect.name == "sqlite":
            await _DELETE_TIMER.later(self._conn, [{"key_id": each} for each in self._no_timers])
        else:
            await self._conn.execute(_DELETE_TIMERS, {"keys": sorted(self._no_timers)})

    async def _write(
        self, rows: dict[str, _Row], insertion: Many, change: Changes, columns: Callable[[Any], dict[str, Any]]
    ) -> None:
        new: list[dict[str, Any]] = []
        old: list[dict[str, Any]] = []
        for key, row in rows.items():
            if row.changed:
                record = {**columns(row.value), "version": row.version + 1, "key_id": key, "key_version": row.version}
                (old if row.version else new).append(record)
        if new:
            await insertion.later(self._conn, [{**each, **_first(rows[each["key_id"]].value)} for each in new])
        if old and await change.execute(self._conn, old) != len(old):
            raise Moved("A saga was moved by another coordinator", why="its version is not the one that was read")

    def _keep_entry(self, decision: Decision) -> None:
        entry = decision.entry
        if entry is not None:
            self._log.append(
                {
                    "saga_id": decision.saga.id,
                    "seq": entry.seq,
                    "at_ms": entry.at_ms,
                    "direction": entry.direction,
                    "type": entry.type,
                    "message_id": entry.message_id,
                    "causation_id": entry.causation_id,
                    "step": entry.step,
                    "attempt": entry.attempt,
                    "state": entry.state,
                    "payload": orjson.dumps(entry.payload).decode(),
                    "context": orjson.dumps(entry.context).decode(),
                }
            )

    def _keep_messages(self, decision: Decision, causation_id: str | None) -> None:
        saga = decision.saga
        origin = saga.origin
        for each in decision.messages:
            message = Envelope(
                id=new_id(),
                source=SOURCE,
                type=type(each.message).__name__,
                time=self._time,
                subject=origin.app,
                correlationid=origin.saga_id,
                appid=origin.app_id,
                team=origin.team,
                data=each.message.model_dump(mode="json"),
                version=each.message.VERSION,
                causationid=causation_id,
                sagastep=each.step,
                sagaattempt=each.attempt,
                fence=each.fence,
                traceparent=origin.traceparent,
            )
            self._messages.append(message)
            self._log.append(
                {
                    "saga_id": origin.saga_id,
                    "seq": each.seq,
                    "at_ms": self.now_ms,
                    "direction": "out",
                    "type": message.type,
                    "message_id": message.id,
                    "causation_id": causation_id,
                    "step": each.step,
                    "attempt": each.attempt,
                    "state": saga.state,
                    "payload": orjson.dumps(message.data).decode(),
                    "context": None,
                }
            )

    def _put_timer(
        self,
        timer_id: str,
        saga_id: str,
        due_ms: int,
        kind: str,
        *,
        step: str | None = None,
        attempt: int = 0,
        epoch: int = 0,
        by_saga: str | None = None,
    ) -> None:
        self._no_timers.discard(timer_id)
        self._timers[timer_id] = {
            "id": timer_id,
            "saga_id": saga_id,
            "due_ms": due_ms,
            "kind": kind,
            "step": step,
            "attempt": attempt,
            "epoch": epoch,
            "by_saga": by_saga,
        }


def _first(value: SagaState | Lane) -> dict[str, Any]:
    """The columns that are written once."""
    if isinstance(value, Lane):
        return {"app_id": value.app_id}
    origin = value.origin
    return {
        "id": origin.saga_id,
        "definition": origin.definition,
        "app_id": origin.app_id,
        "app": origin.app,
        "created_ms": origin.created_ms,
        "origin": origin_to_json(origin),
    }


def _saga_columns(saga: SagaState) -> dict[str, Any]:
    """The columns that change, without the version."""
    return {
        "commit_id": saga.commit,
        "state": saga.state,
        "step": step_of(saga),
        "needs_attention": saga.needs_attention,
        "team": saga.origin.team,
        "body": body_to_json(saga),
    }


def step_of(saga: SagaState) -> str | None:
    """The step that is worked on; of an undone saga the one for which it was undone; else none."""
    step = saga.failed_step if saga.state == "COMPENSATED" else saga.current
    return step.name if step and saga.state != "QUEUED" else None


def _lane_columns(lane: Lane) -> dict[str, Any]:
    """Likewise."""
    return {
        "holder": lane.holder,
        "fence": lane.fence,
        "body": orjson.dumps(lane.to_record()).decode(),
    }


def lane_from_json(body: str) -> Lane:
    """A lane from its row."""
    return Lane.from_record(orjson.loads(body))


async def find(conn: AsyncConnection, saga_ids: Sequence[str]) -> dict[str, SagaState]:
    """Those of the sagas that exist."""
    if not saga_ids:
        return {}
    query = select(sagas.c.id, sagas.c.origin, sagas.c.body).where(sagas.c.id.in_(list(saga_ids)))
    return {row.id: from_json(row.origin, row.body) for row in await conn.execute(query)}
