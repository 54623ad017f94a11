"""What the state of an app is called, and which command follows from it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from knarr.status import command_for, crashes_of, hold_of, notes_of, polling_of, until, words_of

NOW = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({}, None),
        ({"state": "live"}, None),
        ({"state": "no_process", "formation": {"web": 0, "worker": 1}}, "knarr scale shop web=1"),
        ({"state": "stopped", "formation": {"web": 0}, "release": 1}, "knarr scale shop web=1"),
        ({"state": "stopped", "formation": {"worker": 0}, "release": 1}, "knarr scale shop worker=1"),
        ({"state": "stopped", "formation": {"web": 0}, "release": 4}, "knarr start shop"),
        ({"state": "stopped", "formation": {}, "release": 1}, "knarr deploy DIR --app shop"),
        ({"state": "crash_loop"}, "knarr logs shop"),
    ],
)
def test_a_state_names_the_next_command(running: dict[str, Any], expected: str | None) -> None:
    """Only where there is something to do."""
    assert command_for("shop", running) == expected


def test_a_crash_loop_says_how_often_and_when_it_starts_next() -> None:
    """Also between two crashes, when an instance is up."""
    instances = [
        {"restarts": 3, "next_start": "2026-12-01T10:00:12Z"},
        {"restarts": 1, "next_start": "2026-12-01T10:00:05.400Z"},
    ]
    assert crashes_of({"instances": instances}, now=NOW) == "4 restarts, next start in 5 s"
    assert crashes_of({"instances": [{"restarts": 1, "next_start": None}]}, now=NOW) == "1 restart"
    assert crashes_of({"instances": [{"restarts": 0}]}, now=NOW) is None
    assert until("2026-12-01T09:59:59Z", now=NOW) == "now"
    assert words_of({"state": "crash_loop"}) == "crash loop"


def test_a_poll_that_fails_and_pushes_on_hold_are_said() -> None:
    """The API knew; nothing showed it."""
    known = {
        "name": "shop",
        "polling": {"failures": 2, "error": "the host does not answer"},
        "auto_deploy": {"on": False, "since": "2026-12-01", "by": "ann", "why": "rollback"},
    }
    assert notes_of(known) == ["polling failed 2 times", "pushes are held"]
    assert polling_of(known) == "failed 2 times: the host does not answer"
    assert hold_of(known) == "held since 2026-12-01 by ann (rollback): `knarr apps release shop`"
    well = {"polling": {"failures": 0, "error": None}, "auto_deploy": {"on": True}}
    assert (notes_of(well), polling_of(well), hold_of(well)) == ([], None, None)
