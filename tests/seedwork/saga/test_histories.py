"""Whatever happens, in whatever order: histories by chance keep the promises of a saga."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from seedwork.messages import UndoFailed, WorkReported
from seedwork.saga import ENDED, VerbName, VerbRefused
from seedwork.testing.saga import Scene, without_reports
from tests.seedwork.saga.trips import BURN, ERRAND, TRIP

DEFINITIONS = {"trip": TRIP, "errand": ERRAND, "burn": BURN}
STEPS = ("pack", "sail", "land", "boats", "bridges")
VERBS: tuple[VerbName, ...] = ("pause", "resume", "retry", "cancel", "skip", "compensate")

ACTIONS = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(sorted(DEFINITIONS)), st.integers(1, 5), st.booleans()),
    st.tuples(
        st.sampled_from(("ok", "fail", "lost", "undone", "undo_failed", "reported")),
        st.integers(0, 5),
        st.sampled_from(STEPS),
        st.integers(0, 2),
    ),
    st.tuples(st.just("press"), st.integers(0, 5), st.sampled_from(VERBS), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((1, 30, 100, 4000)), st.none(), st.none()),
)


def act(scene: Scene, action: tuple[str, Any, Any, Any]) -> None:
    """One thing that happens, if it can."""
    what, first, second, third = action
    if what == "start":
        definition = DEFINITIONS[first]
        data = {"trip": {"number": second, "urgent": third}, "errand": {"number": second}, "burn": {}}[first]
        scene.start(f"s{len(scene.sagas):03}", definition, **data)
        return
    if what == "wait":
        scene.wait(first)
        return
    if not scene.sagas:
        return
    saga_id = sorted(scene.sagas)[first % len(scene.sagas)]
    if what == "press":
        try:
            scene.press(second, saga_id, force=third)
        except VerbRefused:
            return
    elif second in {each.name for each in scene[saga_id].steps}:
        answer(scene, what, saga_id, second, max(1, scene.step(second, saga_id).attempt - third))


def answer(scene: Scene, what: str, saga_id: str, step: str, attempt: int) -> None:
    """An answer that may be true, late, repeated or nonsense."""
    if what == "ok":
        scene.ok(step, saga_id, attempt=attempt)
    elif what in ("fail", "lost"):
        scene.fail(step, saga_id, attempt=attempt, retryable=what == "lost")
    elif what == "undo_failed":
        scene.answer(UndoFailed, step, saga_id, attempt=attempt)
    elif what == "reported":
        scene.answer(WorkReported, step, saga_id, attempt=attempt)
    elif scene.definitions[scene[saga_id].origin.definition].forward_only is False:
        scene.undone(step, saga_id, attempt=attempt)


def check(scene: Scene) -> None:
    """What must be true at every moment."""
    holder = scene.lane.holder
    for saga_id, saga in scene.sagas.items():
        waits = scene.lane.is_waiting(saga_id)
        assert (saga.state == "QUEUED") == (waits or (holder == saga_id and saga.fence is None))
        assert not (waits and holder == saga_id)
        person = saga.state == "STUCK" or saga.pause is not None
        assert saga.ended or waits or person or scene.timer(saga_id) is not None, f"{saga_id} waits for nothing"
        assert not (saga.ended and scene.timer(saga_id))
        if saga.state in ("RUNNING", "COMPENSATING", "PAUSED"):
            assert holder == saga_id or saga.direction == "undo"
        if saga.state == "SUCCEEDED":
            assert all(step.state == "DONE" for step in saga.steps)
        if saga.state == "COMPENSATED" and saga.direction == "undo":
            assert all(step.state in ("UNDONE", "SKIPPED") for step in saga.steps if step.attempt)
    if holder is None:
        assert not scene.lane.waiting
    else:
        assert scene[holder].state not in ENDED
    fences = [saga.fence for saga in scene.sagas.values() if saga.fence is not None]
    assert len(fences) == len(set(fences))


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_every_history_keeps_the_promises_and_replays(actions: list[tuple[str, Any, Any, Any]]) -> None:
    """One holder, nobody forgotten, ends that say the truth, a log that leads to the same state."""
    scene = Scene(TRIP, ERRAND, BURN)
    for action in actions:
        act(scene, action)
        check(scene)
    for saga_id, saga in scene.sagas.items():
        assert without_reports(scene.replayed(saga_id)) == without_reports(saga)


@settings(max_examples=30, deadline=None)
@given(st.lists(ACTIONS, max_size=30))
def test_from_every_history_each_saga_can_come_to_its_end(actions: list[tuple[str, Any, Any, Any]]) -> None:
    """No dead ends: with participants that answer, and a person who goes on where one is asked for."""
    scene = Scene(TRIP, ERRAND, BURN)
    for action in actions:
        act(scene, action)
    for _ in range(40 * (len(scene.sagas) + 1)):
        open_ones = [saga_id for saga_id, saga in scene.sagas.items() if not saga.ended and saga.state != "QUEUED"]
        if not open_ones:
            break
        for saga_id in open_ones:
            move(scene, saga_id)
    assert {saga.state for saga in scene.sagas.values()} <= ENDED


def move(scene: Scene, saga_id: str) -> None:
    """What participants and a person would do next."""
    saga = scene[saga_id]
    if saga.ended:
        return
    if saga.state == "STUCK":
        scene.press("skip", saga_id)
    elif saga.state == "PAUSED":
        scene.press("resume", saga_id)
    elif saga.current is not None and saga.direction == "forward":
        scene.ok(saga.current.name, saga_id)
    elif saga.current is not None:
        scene.undone(saga.current.name, saga_id)
