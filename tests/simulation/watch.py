"""Watches what is committed, at each commit, in every service's database, by the database's own triggers.

`watched` adds a table and triggers to a template; `Watch` reads what they wrote since the last look, and feeds the
reference model. What a transaction wrote and rolled back is never seen, as it should be.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from tests.simulation.reference_model import FLOWS, LaneModel, LogEntry, SagaModel

_SEEN = "CREATE TABLE seen (n INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT, who TEXT, number INTEGER)"
_NOW_MS = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
_KERNEL = f"""
CREATE TRIGGER lease_taken AFTER UPDATE OF lease_number ON jobs
WHEN OLD.lease_number <> NEW.lease_number AND OLD.lease_until_ms > {_NOW_MS}
BEGIN INSERT INTO seen (what, who) VALUES ('work was taken from somebody who still held it', NEW.saga_id); END;

CREATE TRIGGER lease_not_raised AFTER UPDATE OF lease_owner ON jobs
WHEN NEW.lease_owner IS NOT NULL AND NEW.lease_owner IS NOT OLD.lease_owner AND NEW.lease_number = OLD.lease_number
BEGIN INSERT INTO seen (what, who) VALUES ('work changed hands under one lease number', NEW.saga_id); END;

CREATE TRIGGER outcome_twice AFTER UPDATE OF outcome ON jobs
WHEN OLD.state = 'done' AND NEW.state = 'done' AND OLD.outcome <> NEW.outcome
BEGIN INSERT INTO seen (what, who) VALUES ('an outcome was replaced by another one', NEW.saga_id); END;

CREATE TRIGGER outcome_after_tombstone AFTER UPDATE OF state ON jobs
WHEN OLD.tombstone_ms IS NOT NULL AND NEW.state = 'done' AND OLD.state <> 'done'
BEGIN INSERT INTO seen (what, who) VALUES ('an outcome was written after the tombstone', NEW.saga_id); END;

CREATE TRIGGER tombstone_gone AFTER UPDATE OF tombstone_ms ON jobs
WHEN OLD.tombstone_ms IS NOT NULL AND NEW.tombstone_ms IS NOT OLD.tombstone_ms
BEGIN INSERT INTO seen (what, who) VALUES ('a tombstone was moved', NEW.saga_id); END;
"""  # noqa: S608  our own text
_COORDINATOR = """
CREATE TRIGGER log_grew AFTER INSERT ON saga_log
BEGIN INSERT INTO seen (what, who, number) VALUES ('log', NEW.saga_id, NEW.seq); END;

CREATE TRIGGER log_changed AFTER UPDATE ON saga_log
BEGIN INSERT INTO seen (what, who) VALUES ('a log entry was changed', NEW.saga_id); END;

CREATE TRIGGER lane_made AFTER INSERT ON lanes
BEGIN INSERT INTO seen (what, who) VALUES ('lane', NEW.app_id); END;

CREATE TRIGGER lane_changed AFTER UPDATE ON lanes
BEGIN INSERT INTO seen (what, who) VALUES ('lane', NEW.app_id); END;

CREATE TRIGGER end_is_the_end AFTER UPDATE OF state ON sagas
WHEN OLD.state IN ('SUCCEEDED', 'COMPENSATED') AND NEW.state <> OLD.state
BEGIN INSERT INTO seen (what, who) VALUES ('an ended saga moved', NEW.id); END;
"""
_DEPLOYER = """
CREATE TRIGGER fence_only_grows AFTER UPDATE ON routes WHEN NEW.fence < OLD.fence
BEGIN INSERT INTO seen (what, who) VALUES ('traffic was moved under an older fence', NEW.app_id); END;
"""
TRIGGERS = {"saga_coordinator": _COORDINATOR, "deployer": _DEPLOYER}

Report = Callable[[str], None]


def watched(conn: sqlite3.Connection, service: str) -> None:
    """Add what is needed to watch this service's database."""
    conn.executescript(_SEEN + ";" + _KERNEL + TRIGGERS.get(service, ""))


@dataclass(slots=True)
class Watch:
    """One service's database."""

    service: str
    report: Report
    last: int = 0

    def look(self, conn: sqlite3.Connection) -> None:
        """Right after a commit."""
        rows = conn.execute("SELECT n, what, who, number FROM seen WHERE n > ? ORDER BY n", (self.last,)).fetchall()
        if rows:
            self.last = rows[-1][0]
            for _, what, who, number in rows:
                self.take(conn, what, who, number)

    def take(self, _conn: sqlite3.Connection, what: str, who: str, _number: int | None) -> None:
        """One thing that was seen."""
        self.report(f"{self.service}: {what} ({who})")


@dataclass(slots=True)
class CoordinatorWatch(Watch):
    """The coordinator's, with the reference model."""

    sagas: dict[str, SagaModel] = field(default_factory=dict)
    lanes: dict[str, LaneModel] = field(default_factory=dict)
    app_of: dict[str, str] = field(default_factory=dict)
    on_entry: Callable[[LogEntry, SagaModel], Sequence[str]] = lambda _entry, _model: ()

    def take(self, conn: sqlite3.Connection, what: str, who: str, number: int | None) -> None:
        """A log entry, a lane, or what must not be."""
        if what == "log":
            self._log(conn, who, number or 0)
        elif what == "lane":
            row = conn.execute("SELECT body FROM lanes WHERE app_id = ?", (who,)).fetchone()
            for wrong in self.lanes.setdefault(who, LaneModel()).note(orjson.loads(row[0])):
                self.report(f"lane of {who}: {wrong}")
        else:
            self.report(f"{self.service}: {what} ({who})")

    def _log(self, conn: sqlite3.Connection, saga_id: str, seq: int) -> None:
        row = conn.execute(
            "SELECT at_ms, direction, type, step, attempt, state, payload FROM saga_log WHERE saga_id = ? AND seq = ?",
            (saga_id, seq),
        ).fetchone()
        entry = LogEntry(
            saga_id=saga_id, seq=seq, at_ms=row[0], direction=row[1], type=row[2], step=row[3], attempt=row[4],
            state=row[5], payload=orjson.loads(row[6]),
        )  # fmt: skip
        model = self.sagas.get(saga_id)
        if model is None:
            definition, app_id = conn.execute(
                "SELECT definition, app_id FROM sagas WHERE id = ?", (saga_id,)
            ).fetchone()
            model = self.sagas[saga_id] = SagaModel(FLOWS[definition.partition("@")[0]])
            self.app_of[saga_id] = app_id
        for wrong in (*model.note(entry), *self.on_entry(entry, model)):
            self.report(f"saga {saga_id}: {wrong}")
        if model.holds_lane:
            self._alone(saga_id)

    def _alone(self, saga_id: str) -> None:
        app_id = self.app_of[saga_id]
        others = [
            each
            for each, model in self.sagas.items()
            if each != saga_id and self.app_of[each] == app_id and model.holds_lane
        ]
        if others:
            self.report(f"lane of {app_id}: {saga_id} and {others} go forward at the same time")
