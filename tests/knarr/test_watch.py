"""Watching a saga: a line per step, a stream that is taken up again, the build's output in its place."""

import io
from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest
from rich.console import Console

from knarr.client import Platform
from knarr.home import Address
from knarr.terminal import Terminal, theme
from knarr.watch import StillRunning, watch
from knarr.wording import gist

EVENTS = {"Content-Type": "text/event-stream"}
STEPS = ("source", "build", "publish", "deploy")


class Broken(httpx2.SyncByteStream):
    """A stream that ends in the middle of nowhere after some events."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        raise httpx2.ReadError("gone")


class Coordinator:
    """A saga whose states follow from how often it was looked at."""

    def __init__(self, *looks: dict[str, Any], build_states: tuple[str, ...] = ("succeeded",)) -> None:
        self.looks = list(looks)
        self.build_states = list(build_states)
        self.resumed_after: list[str | None] = []
        self.log_offsets: list[int] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path == "/sagas/s1":
            return httpx2.Response(200, json=self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])
        if path == "/sagas/s1/stream":
            self.resumed_after.append(request.headers.get("last-event-id"))
            if len(self.resumed_after) == 1:
                return httpx2.Response(
                    200, headers=EVENTS, stream=Broken(event(1, "source", {"size_bytes": 4200, "commit": "ab" * 20}))
                )
            rest = event(2, "build", {}) + event(3, "publish", {})
            return httpx2.Response(200, headers=EVENTS, content=rest + b"event: end\ndata: {}\n\n")
        if path == "/builds/s1":
            return httpx2.Response(200, json={"state": self.build_states.pop(0)})
        if path == "/builds/s1/log":
            whole = b"installing one thing\ndone\n"
            self.log_offsets.append(int(request.url.params["offset"]))
            until = 13 if self.build_states[0] == "running" else len(whole)
            return httpx2.Response(200, content=whole[self.log_offsets[-1] : until])
        return httpx2.Response(404)


def event(seq: int, step: str, payload: dict[str, Any]) -> bytes:
    entry = {"seq": seq, "direction": "in", "type": "Done", "step": step, "payload": payload}
    return b"id: %d\nevent: log\ndata: %s\n\n" % (seq, orjson.dumps(entry))


def saga(state: str, *states: str, **more: Any) -> dict[str, Any]:
    steps = [
        {"name": name, "state": each, "attempts": 1, "started_at": None, "ended_at": None, "error": None}
        for name, each in zip(STEPS, states, strict=True)
    ]
    return {"id": "s1", "app": "shop", "saga": "deploy", "state": state, "steps": steps, "direction": "forward", **more}


def watched(coordinator: Coordinator, **options: Any) -> tuple[dict[str, Any], str]:
    terminal = Terminal()
    text = io.StringIO()
    terminal.err = Console(file=text, theme=theme(), width=200)
    address = Address(host="127.0.0.1", port_base=8700)
    platform = Platform(address, "t", transport=httpx2.MockTransport(coordinator.answer))
    ended = watch(platform, terminal, "s1", **options)
    return dict(ended), text.getvalue()


def test_each_step_gets_a_line_and_the_build_its_output() -> None:
    """In the order of what happened, the output before the line that ends the build."""
    coordinator = Coordinator(
        saga("RUNNING", "SENT", "PENDING", "PENDING", "PENDING"),
        saga("RUNNING", "DONE", "SENT", "PENDING", "PENDING"),
        saga("SUCCEEDED", "DONE", "DONE", "DONE", "DONE"),
    )
    ended, text = watched(coordinator)
    assert ended["state"] == "SUCCEEDED"
    places = [text.index(each) for each in ("✓ source", "│ installing one thing", "✓ build", "✓ publish", "✓ deploy")]
    assert places == sorted(places)
    assert "abababababab, 4.2 kB" in text


def test_a_broken_stream_is_taken_up_after_the_last_entry() -> None:
    """`Last-Event-ID`, as server-sent events have it."""
    running = saga("RUNNING", "DONE", "SENT", "PENDING", "PENDING")
    coordinator = Coordinator(running, running, running, saga("SUCCEEDED", *["DONE"] * 4))
    watched(coordinator)
    assert coordinator.resumed_after[:2] == [None, "1"]


def test_a_log_that_ends_before_its_build_is_taken_up_where_it_ended() -> None:
    """The platform was stopped and started again: each line is shown once, whole."""
    coordinator = Coordinator(
        saga("RUNNING", "DONE", "SENT", "PENDING", "PENDING"),
        saga("SUCCEEDED", *["DONE"] * 4),
        build_states=("running", "succeeded"),
    )
    _, text = watched(coordinator)
    assert coordinator.log_offsets == [0, 13]
    assert text.count("│ installing one thing") == text.count("│ done") == 1


def test_a_failure_shows_its_reason_and_each_undo() -> None:
    """What went wrong, in the platform's words."""
    failed = saga("COMPENSATED", "UNDONE", "UNDONE", "UNDONE", "FAILED")
    failed["steps"][3]["error"] = {"message": "It exited with code 1.", "code": "failed"}
    _, text = watched(Coordinator(failed))
    assert "✗ deploy   It exited with code 1." in text
    assert text.count("↶") == 3


def test_the_tail_of_a_failed_build_is_shown_once() -> None:
    """Its log was shown line by line; only what was not in it follows the reason."""
    building = saga("RUNNING", "DONE", "SENT", "PENDING", "PENDING")
    failed = saga("COMPENSATED", "UNDONE", "FAILED", "PENDING", "PENDING")
    tail = ["installing one thing", "done", "and the tool ended with status 1"]
    failed["steps"][1]["error"] = {"message": "It cannot be built.", "code": "failed", "log_tail": tail}
    _, text = watched(Coordinator(building, building, failed))
    for line in tail:
        assert text.count(f"│ {line}") == 1, text


def test_an_app_cannot_write_to_the_terminal_through_the_tail_of_its_failure() -> None:
    """Escapes are shown as text."""
    failed = saga("COMPENSATED", "UNDONE", "UNDONE", "UNDONE", "FAILED")
    tail = ["\x1b]0;title\x07gone\x1b[2J"]
    failed["steps"][3]["error"] = {"message": "It \x1b[2Jended.", "code": "failed", "log_tail": tail}
    _, text = watched(Coordinator(failed))
    assert "\x1b" not in text
    assert "^[]0;title^Ggone^[[2J" in text


@pytest.mark.parametrize(
    ("step", "answer", "expected"),
    [
        (
            "deploy",
            {"number": 3, "formation": {"web": 2}, "url": "http://a/", "first_answer_ms": 120},
            "release 3, 2 web, http://a/, first answer after 120 ms",
        ),
        ("deploy", {"number": 3, "formation": {"web": 0}, "url": "http://a/"}, "release 3, no instance"),
        ("deploy", {"number": 3, "unchanged": True}, "nothing changed: release 3 runs already"),
        ("observe", {"number": 3, "observed_s": 10.0}, "observed for 10 s"),
        (
            "observe",
            {"number": 3, "observed_s": 2.5, "ended_early": "a newer push waits"},
            "observed for 2.5 s, ended early: a newer push waits",
        ),
        ("observe", {"number": 3, "observed_s": 0}, "not observed"),
        ("observe", {"number": 3, "observed_s": 0, "ended_early": "nothing changed"}, "not observed: nothing changed"),
    ],
)
def test_a_step_says_the_one_fact_that_counts(step: str, answer: dict[str, Any], expected: str) -> None:
    """The address and the time to the first answer when the traffic moves, not at the end of the window."""
    assert gist(step, answer) == expected


def test_what_was_undone_before_anybody_looked_was_done_first() -> None:
    """Quick steps: the success of each is in the stream, and shown before the failure and the undo."""
    failed = saga("COMPENSATED", "UNDONE", "UNDONE", "PENDING", "PENDING")
    failed["steps"][1]["error"] = {"message": "It cannot be built.", "code": "failed"}
    _, text = watched(Coordinator(failed))
    assert "✓ build" not in text
    places = [text.index(each) for each in ("✓ source", "✗ build", "↶ build", "↶ source")]
    assert places == sorted(places)


def test_what_succeeded_before_anybody_looked_is_shown_in_its_turn() -> None:
    """Also where a later step is undone already: the build stands above it, and its output below the source."""
    undoing = saga("COMPENSATING", "DONE", "DONE", "UNDONE", "UNDONE")
    undoing["steps"][3]["error"] = {"message": "It exited with code 1.", "code": "failed"}
    failed = saga("COMPENSATED", *["UNDONE"] * 4)
    failed["steps"][3]["error"] = undoing["steps"][3]["error"]
    _, text = watched(Coordinator(undoing, failed))
    shown = ("✓ source", "│ installing one thing", "✓ build", "✓ publish", "✗ deploy", "↶ deploy", "↶ publish")
    places = [text.index(each) for each in shown]
    assert places == sorted(places), text


def test_a_saga_that_needs_a_person_ends_the_watch() -> None:
    """It would wait for ever."""
    held = saga("PAUSED", "DONE", "UNKNOWN", "PENDING", "PENDING", needs_attention=True)
    ended, _ = watched(Coordinator(held))
    assert ended["state"] == "PAUSED"


def test_each_wait_for_another_attempt_is_told_once() -> None:
    """With the reason, where it is another one, and how many there are: the next one may be a minute away."""
    states = "DONE", "DONE", "SENT", "PENDING"

    def waits(since: str, attempt: int) -> dict[str, Any]:
        note = f"attempt {attempt} of 9 after: The registry does not answer."
        waiting = {"what": "timer", "from": "publish", "since": since, "until": since, "note": note}
        return saga("RUNNING", *states, waiting_for=waiting)

    first, second = waits("2026-11-21T10:00:00.000Z", 2), waits("2026-11-21T10:00:02.000Z", 3)
    _, text = watched(Coordinator(first, first, second, saga("SUCCEEDED", *["DONE"] * 4)))
    told = [line.strip() for line in text.splitlines() if "↻" in line]
    assert told == [
        "↻ publish  attempt 2 of 9 after: The registry does not answer.",
        "↻ publish  attempt 3 of 9, for the same reason",
    ]


def test_waiting_can_be_limited() -> None:
    """The saga goes on, and the error says how to look again."""
    with pytest.raises(StillRunning, match="knarr deployments s1"):
        watched(Coordinator(saga("RUNNING", "SENT", "PENDING", "PENDING", "PENDING")), timeout_s=0.01)
