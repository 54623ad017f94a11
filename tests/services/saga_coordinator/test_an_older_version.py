"""What an older version wrote goes on: its database is kept, with sagas that had ended, and sagas on their way.

`kept/schema-0001.sql` was written by the version before the schema's second step: deployments that succeeded, that were
tried again, cancelled, undone, held and retried, skipped; and others in the middle of a step, of an undo and of a wait,
in a lane, paused, held and stuck.
"""

import re
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from seedwork.messages import envelope
from seedwork.saga import SagaState
from seedwork.saga_records import from_json, replay
from seedwork.testing.saga import without_reports
from services.builder.contract import ImageBuilt
from services.saga_coordinator.sagas import DEFINITIONS
from tests.services.saga_coordinator.conftest import Stage, Staging, eventually

KEPT = Path(__file__).with_name("kept") / "schema-0001.sql"
ON_THEIR_WAY = Counter(QUEUED=2, RUNNING=2, COMPENSATING=1, PAUSED=2, STUCK=1)
ENDED = Counter(SUCCEEDED=6, COMPENSATED=3)


_TIME_MS = re.compile(r"\b17952\d{8}\b")
_WRITTEN_MS = 1_795_239_730_713
_HOURS_2_MS = 2 * 3_600_000


def two_hours_old() -> str:
    """The kept database as if it had been written two hours ago: all waits are over, nothing is too old to be kept."""
    later_ms = time.time_ns() // 1_000_000 - _HOURS_2_MS - _WRITTEN_MS
    return _TIME_MS.sub(lambda found: str(int(found[0]) + later_ms), KEPT.read_text())


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The kept one, where this test's coordinator looks for its own."""
    place = tmp_path / "saga_coordinator" / "saga_coordinator.db"
    place.parent.mkdir(mode=0o700)
    with sqlite3.connect(place) as conn:
        conn.executescript(two_hours_old())
    conn.close()
    return place


def rows_and_logs(database: Path) -> dict[str, tuple[SagaState, list[SagaState], list[str]]]:
    """By saga: its row's state, those that its log leads through, and those that the log's entries name."""
    conn = sqlite3.connect(database)
    conn.row_factory = sqlite3.Row
    entries: dict[str, list[dict[str, Any]]] = {}
    for each in conn.execute("SELECT * FROM saga_log ORDER BY saga_id, seq"):
        entry = {
            **dict(each),
            "payload": orjson.loads(each["payload"]),
            "context": orjson.loads(each["context"] or "{}"),
        }
        entries.setdefault(each["saga_id"], []).append(entry)
    found = {}
    for row in conn.execute("SELECT id, origin, body FROM sagas"):
        log = entries[row["id"]]
        states = replay(DEFINITIONS, row["id"], log)
        told = [entry["state"] for entry in log if entry["direction"] != "out"]
        found[row["id"]] = (from_json(row["origin"], row["body"]), states, told)
    conn.close()
    return found


def assert_replays(database: Path) -> None:
    """Each log leads through the states that it names to the state of the row."""
    for saga_id, (row, states, told) in rows_and_logs(database).items():
        assert [state.state for state in states] == told, saga_id
        assert without_reports(states[-1]) == without_reports(row), saga_id


def test_its_log_replays_to_its_rows(database: Path) -> None:
    """By today's rules."""
    assert Counter(row.state for row, _, _ in rows_and_logs(database).values()) == ON_THEIR_WAY + ENDED
    assert_replays(database)


async def test_what_was_on_its_way_goes_on_and_ends(database: Path, stage_at: Staging) -> None:
    """The schema is brought up to date; waits that are over since long end at once; people find what waits for them."""
    async with stage_at() as stage:
        await _in_states(stage, ENDED + Counter(SUCCEEDED=3, COMPENSATED=3, PAUSED=1, STUCK=1))
        await _press(stage, "skip", state="STUCK")
        paused = await _press(stage, "resume", state="PAUSED")  # and its builder, as slow as ever, answers at last
        built = envelope(
            ImageBuilt.example(),
            source="builder",
            saga_id=paused["id"],
            app_id=paused["app_id"],
            step="build",
            attempt=1,
        )
        await stage.bus.publish([built])
        await _in_states(stage, ENDED + Counter(SUCCEEDED=4, COMPENSATED=4))
        assert await stage.app.state.audit.look() == []
    assert_replays(database)


async def _press(stage: Stage, verb: str, *, state: str) -> Any:
    (saga,) = (await stage.get("/sagas", state=state))["items"]
    pressed = await stage.client.post(f"/sagas/{saga['id']}/{verb}", json={"reason": "after the upgrade"})
    assert pressed.status_code == 200, pressed.text
    return saga


async def _in_states(stage: Stage, wanted: Counter[str]) -> None:
    async def reached() -> bool:
        items = (await stage.get("/sagas", limit=100))["items"]
        return Counter(each["state"] for each in items) == wanted

    await eventually(reached)
