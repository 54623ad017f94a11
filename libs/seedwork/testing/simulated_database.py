"""SQLite files for a simulation: the real `Database` on the loop's own thread, with a clock and faults of ours.

`simulated_engine` takes the place of the engine that `Database.open` makes. Each statement is a visit, as with the real
driver, so other processes get on in between and a crash may come; but it is done by this thread, and the file's lock is
a queue of ours, so that a seed repeats it. The database's clock is the loop's, plus `skew_ms`, which can jump.

A file may be `read_committed`: a transaction then locks the file with its first write instead of at its beginning, so
what it has read may be old by then, as in MySQL's READ COMMITTED. Only a version check notices that.
"""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Insert, Select, TextClause, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from seedwork.testing.simulated_loop import Process, SimulatedLoop, current_process

EPOCH_MS = 1_790_000_000_000
"""Where the simulation's clocks begin."""
_BUSY_S = 30.0
"""As `busy_timeout`."""
_IDLE_S = 10.0
"""A paused process loses its open transaction after this, as a server ends one that idles."""
_NOW = "SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
"""How `database_now_ms` asks for the time; also what triggers may ask."""
_VISIT_S = 0.000_5
_SLOW_S = 8.0
_AT_A_STATEMENT = 0.1
"""How often others get on between two statements of a transaction that holds the lock."""


@dataclass(slots=True)
class DatabaseFaults:
    """How often things go wrong, from 0 to 1, in transactions that write."""

    refused: float = 0.0
    """It does not begin."""
    commit_refused: float = 0.0
    """Its commit fails, and nothing was written."""
    commit_unheard: float = 0.0
    """Its commit is done, and the answer gets lost."""
    slow: float = 0.0
    """It waits for seconds."""


class SimulatedFile:
    """One database: its file, its clock, its lock."""

    def __init__(self, loop: SimulatedLoop, path: Path, *, read_committed: bool) -> None:
        self.loop = loop
        self.path = path
        self.read_committed = read_committed
        self.skew_ms = 0
        self.faults = DatabaseFaults()
        self.counted: dict[str, int] = {}
        """Faults by kind."""
        self.on_commit: Callable[[sqlite3.Connection], None] | None = None
        """Looks at what was committed, at once."""
        self.connections: dict[_Raw, None] = {}
        self._holder: _Raw | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def now_ms(self) -> int:
        """The database's clock."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.skew_ms

    def happens(self, kind: str, rate: float) -> bool:
        """Whether a fault happens now; counted."""
        if rate and self.loop.chance.random() < rate:
            self.counted[kind] = self.counted.get(kind, 0) + 1
            return True
        return False

    async def lock(self, connection: "_Raw") -> None:
        """Become the one who writes.

        Raises:
            OperationalError: Others write all the time.
        """
        end = self.loop.time() + _BUSY_S
        while self._holder is not None:
            mine: asyncio.Future[None] = self.loop.create_future()
            self._waiting.append(mine)
            try:
                async with asyncio.timeout_at(end):
                    await mine
            except TimeoutError:
                raise _error("database is locked") from None
            finally:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(mine)
                if mine.done() and self._holder is None:
                    self.wake()
        self._holder = connection

    def unlock(self, connection: "_Raw") -> None:
        """Let the next one write, if this one was."""
        if self._holder is connection:
            self._holder = None
            self.wake()

    def wake(self) -> None:
        """One of those that wait may try."""
        if self._holder is None:
            following = next((each for each in self._waiting if not each.done()), None)
            if following is not None:
                following.set_result(None)


class Storage:
    """All databases of one simulated world."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.files: dict[str, SimulatedFile] = {}

    def add(self, path: Path, *, template: bytes, read_committed: bool = False) -> SimulatedFile:
        """A new database with the template's content, in place of what is there."""
        for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            each.unlink(missing_ok=True)
        path.write_bytes(template)
        made = self.files[str(path)] = SimulatedFile(self.loop, path, read_committed=read_committed)
        return made

    def paused(self, process: Process) -> None:
        """A process gets no turns any more: what it has open is ended after a while."""
        self.loop.call_later(_IDLE_S, self._end_idle, process, process.turns)

    def _end_idle(self, process: Process, turns: int) -> None:
        if process.paused and process.turns == turns:
            for file in self.files.values():
                for each in list(file.connections):
                    if each.process is process and each.busy:
                        each.drop()

    def close(self) -> None:
        """The world is over: nobody reads or writes any more."""
        for file in self.files.values():
            for each in list(file.connections):
                each.drop()
        self.files.clear()


_storages: dict[SimulatedLoop, Storage] = {}


def storage_of(loop: SimulatedLoop) -> Storage:
    """The world's."""
    return _storages.setdefault(loop, Storage(loop))


def end_storage(loop: SimulatedLoop) -> None:
    """Close everything and forget it."""
    if storage := _storages.pop(loop, None):
        storage.close()


def simulated_engine(url: URL, *, begin: str, size: int) -> "SimulatedEngine":  # noqa: ARG001  as the real one is made
    """In place of the engine of a SQLite file."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, SimulatedLoop) or loop not in _storages:
        raise TypeError("a simulated database needs a simulated loop and its storage")
    return SimulatedEngine(_storages[loop].files[str(url.database)], begin)


class SimulatedEngine:
    """What `Database` needs of an `AsyncEngine`."""

    def __init__(self, file: SimulatedFile, begin: str) -> None:
        self._file = file
        self._begin = begin
        self._idle: list[_Raw] = []

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator["SimulatedConnection"]:
        """A connection; what it has not committed is rolled back at the end."""
        await asyncio.sleep(0)
        raw = self._idle.pop() if self._idle else _Raw(self._file)
        connection = SimulatedConnection(self._file, raw, self._begin)
        try:
            if not connection.writes:
                await connection.start()
            yield connection
        finally:
            connection.rollback()
            if raw.open:
                self._idle.append(raw)

    async def dispose(self) -> None:
        """Close them all."""
        for each in self._idle:
            each.drop()


class SimulatedConnection:
    """What the services' SQL needs of an `AsyncConnection`."""

    def __init__(self, file: SimulatedFile, raw: "_Raw", begin: str) -> None:
        self.info: dict[str, Any] = {}
        self.writes = begin != "BEGIN"
        self._file = file
        self._raw = raw
        self._begin = begin
        self._begun = False
        self._late: list[tuple[Any, Any]] = []
        """Rows for the inbox, which nobody reads in the same transaction: they do not take the lock."""

    @property
    def dialect(self) -> Any:
        """SQLAlchemy's."""
        return self._raw.alchemy.dialect

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        """A transaction, committed at the end."""
        await self.start()
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        await self._commit()

    async def start(self) -> None:
        """BEGIN."""
        file = self._file
        await self._pass()
        if self.writes:
            if file.happens("database refused", file.faults.refused):
                raise _error("disk I/O error")
            if file.happens("database slow", file.faults.slow):
                await asyncio.sleep(file.loop.chance.random() * _SLOW_S)
            if file.read_committed:
                return
            await file.lock(self._raw)
        self._raw.run(self._begin)
        self._begun = True

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """One statement, in one visit."""
        await self._visit()
        if isinstance(statement, TextClause) and statement.text == _NOW:
            return _Clock(self._file.now_ms())  # asked so often that it is not worth a way through SQL
        if self.writes and not self._begun and not _reads(statement):
            if isinstance(statement, Insert) and statement.table.name == "inbox":
                self._late.append((statement, parameters))
                return _NO_ROWS
            await self._lock_late()
        return self._raw.connection().execute(statement, parameters)

    async def exec_driver_sql(self, sql: str, parameters: Any = None) -> CursorResult[Any]:
        """One statement in SQLite's own words."""
        await self._visit()
        if self.writes and not self._begun:
            await self._lock_late()
        return self._raw.connection().exec_driver_sql(sql, parameters)

    async def _lock_late(self) -> None:
        await self._file.lock(self._raw)
        self._raw.run(self._begin)
        self._begun = True
        late, self._late = self._late, []
        for statement, parameters in late:
            self._raw.connection().execute(statement, parameters)

    async def _commit(self) -> None:
        """It may be done although nobody hears of it."""
        file, raw = self._file, self._raw
        if self._late:
            await self._lock_late()
        if not self._begun:
            raw.connection().rollback()
            return
        await self._pass()
        if file.happens("commit refused", file.faults.commit_refused):
            self.rollback()
            raise _error("disk I/O error")
        raw.connection().commit()
        raw.sqlite.commit()  # also where nothing was executed, so that SQLAlchemy knows of no transaction
        self._begun = False
        file.unlock(raw)
        if file.on_commit is not None:
            file.on_commit(raw.sqlite)
        if file.happens("commit unheard", file.faults.commit_unheard):
            raw.drop()
            raise _gone()
        await self._pass()

    def rollback(self) -> None:
        """What was not committed never was."""
        self._late.clear()
        self._begun = False
        if self._raw.open:
            self._raw.alchemy.rollback()
            self._raw.sqlite.rollback()
        self._file.unlock(self._raw)

    async def _visit(self) -> None:
        """Others get on meanwhile.

        Where a transaction has the file to itself that changes nothing but who dies where, so there it happens now and
        then: each turn of the loop has its price.
        """
        if not self._begun or self._file.loop.chance.random() < _AT_A_STATEMENT:
            await asyncio.sleep(0)

    async def _pass(self) -> None:
        await asyncio.sleep(self._file.loop.chance.random() * _VISIT_S)
        self._raw.connection()


class _Raw:
    """One open SQLite connection, and SQLAlchemy's hands on it."""

    def __init__(self, file: SimulatedFile) -> None:
        self.process = current_process()
        self.open = True
        self.sqlite = sqlite3.connect(file.path, isolation_level=None, check_same_thread=False, timeout=0)
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON", "wal_autocheckpoint=10000"):
            self.sqlite.execute(f"PRAGMA {pragma}")
        self.sqlite.create_function("julianday", 1, lambda _now: file.now_ms() / 86_400_000 + 2_440_587.5)
        _handed_over.append(self.sqlite)
        self.alchemy: Connection = _alchemy.connect()
        self._file = file
        file.connections[self] = None
        if self.process is not None:
            self.process.on_death.append(self.drop)

    @property
    def busy(self) -> bool:
        """Whether something would be rolled back."""
        return self.open and self.sqlite.in_transaction

    def connection(self) -> Connection:
        """To execute with.

        Raises:
            OperationalError: It was closed.
        """
        if not self.open:
            raise _gone()
        return self.alchemy

    def run(self, sql: str) -> None:
        """A statement of ours."""
        self.connection()
        self.sqlite.execute(sql)

    def drop(self) -> None:
        """As if the process had died, or the server had closed it."""
        if self.open:
            self.open = False
            self.alchemy.invalidate()
            self.alchemy.close()
            self.sqlite.close()
            del self._file.connections[self]
            self._file.unlock(self)


def _reads(statement: Any) -> bool:
    return isinstance(statement, Select) or (isinstance(statement, TextClause) and statement.text.startswith("SELECT"))


def _error(what: str) -> OperationalError:
    return OperationalError(None, None, sqlite3.OperationalError(what))


def _gone() -> OperationalError:
    return OperationalError(None, None, sqlite3.OperationalError("connection closed"), connection_invalidated=True)


class _NoRows:
    """The result of an insert that comes later."""

    rowcount = -1


@dataclass(frozen=True, slots=True)
class _Clock:
    """The result of asking for the time."""

    now_ms: int

    def scalar_one(self) -> int:
        """The only row's only column."""
        return self.now_ms


_NO_ROWS: Any = _NoRows()
_handed_over: list[sqlite3.Connection] = []
_alchemy = create_engine("sqlite://", creator=_handed_over.pop, poolclass=NullPool, hide_parameters=True)
"""One for all: what a statement compiles to is kept, as it would not be in processes that begin anew."""
