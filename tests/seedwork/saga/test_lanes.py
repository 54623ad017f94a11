"""Lanes (DESIGN §3.3): one saga per app at a time, who waits, who replaces whom, and fences that only grow."""

from seedwork.messages import UndoFailed
from seedwork.saga import LaneGranted
from seedwork.testing.saga import Scene, without_reports
from tests.seedwork.saga.trips import BURN, ERRAND, TRIP, Pack, PackFailed


def scene() -> Scene:
    return Scene(TRIP, ERRAND, BURN)


def run(given: Scene, saga_id: str) -> None:
    for step in ("pack", "sail", "land"):
        given.ok(step, saga_id)


def states(given: Scene) -> dict[str, str]:
    return {saga_id: saga.state for saga_id, saga in given.sagas.items()}


def test_the_second_saga_of_an_app_waits_until_the_first_has_ended() -> None:
    """Then it is granted the lane, under a higher fence that its commands carry."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    assert states(given) == {"a": "RUNNING", "b": "QUEUED"}
    assert given.sent("b") == []
    run(given, "a")
    assert states(given) == {"a": "SUCCEEDED", "b": "RUNNING"}
    assert (given.lane.holder, given.lane.fence, given.last("b").fence) == ("b", 2, 2)


def test_the_lane_is_free_for_the_next_one_only_after_the_undo() -> None:
    """Two sagas never work on one app."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    given.fail("pack", "a")
    assert states(given) == {"a": "COMPENSATING", "b": "QUEUED"}
    given.undone("pack", "a")
    assert states(given) == {"a": "COMPENSATED", "b": "RUNNING"}


def test_a_stuck_undo_frees_the_lane() -> None:
    """What is left touches only its own things."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    given.fail("pack", "a")
    for _ in range(4):
        given.answer(UndoFailed, "pack", "a")
        given.wait(9)
    assert states(given) == {"a": "STUCK", "b": "RUNNING"}
    given.press("retry", "a")
    given.undone("pack", "a")
    assert (given["a"].state, given.lane.holder) == ("COMPENSATED", "b")


def test_an_operators_pause_keeps_the_lane() -> None:
    """Those behind wait."""
    given = scene()
    given.start("a", number=1)
    given.press("pause", "a")
    given.start("b", number=2)
    assert states(given) == {"a": "PAUSED", "b": "QUEUED"}


def test_of_waiting_pushes_the_newest_goes_and_replaces_the_others_once_it_has_its_source() -> None:
    """They end superseded with their steps pending; until then they may still be needed."""
    given = scene()
    given.start("a", number=1)
    for number, saga_id in ((2, "b"), (3, "c"), (4, "d")):
        given.start(saga_id, number=number)
    run(given, "a")
    assert states(given) == {"a": "SUCCEEDED", "b": "QUEUED", "c": "QUEUED", "d": "RUNNING"}
    given.ok("pack", "d")
    for saga_id in ("b", "c"):
        saga = given[saga_id]
        assert (saga.state, saga.reason, saga.superseded_by) == ("COMPENSATED", "superseded", "d")
        assert set(given.steps(saga_id).values()) == {"PENDING"}
        assert given.sent(saga_id) == ["TripGivenUp"]


def test_a_push_that_came_out_of_order_does_not_replace_what_is_newer() -> None:
    """Its source says that it is older; then the one that waited goes."""
    given = scene()
    given.start("a", number=1)
    given.start("newer", number=2, commit="22")
    given.start("older", number=3, commit="11")
    run(given, "a")
    assert given["older"].state == "RUNNING"
    command = given.last("older").message
    assert isinstance(command, Pack)
    assert command.known == {"newer": "22"}
    given.answer(PackFailed, "pack", "older", retryable=False, code="superseded", superseded_by="newer")
    given.undone("pack", "older")
    assert (given["older"].reason, given["older"].superseded_by) == ("superseded", "newer")
    assert given["newer"].state == "RUNNING"


def test_the_source_is_told_the_commits_that_are_live_or_waiting() -> None:
    """But not its own."""
    given = scene()
    given.start("a", number=1, commit="aa")
    given.start("b", number=2, commit="bb")
    run(given, "a")
    given.start("c", number=3, commit="cc")
    run(given, "b")
    command = given.last("c").message
    assert isinstance(command, Pack)
    assert command.known == {"b": "bb"}


def test_what_replaces_at_once_takes_the_place_of_the_older_one() -> None:
    """A newer config change contains the older one."""
    given = scene()
    given.start("a", number=1)
    given.start("x", ERRAND, number=1)
    given.start("b", number=2)
    given.start("y", ERRAND, number=2)
    assert (given["x"].state, given["x"].superseded_by) == ("COMPENSATED", "y")
    assert [each.saga_id for each in given.lane.waiting] == ["y", "b"]


def test_an_older_one_that_comes_late_is_replaced_by_the_one_that_waits() -> None:
    """Out of order, the other way round."""
    given = scene()
    given.start("a", number=1)
    given.start("y", ERRAND, number=2)
    given.start("x", ERRAND, number=1)
    assert (given["x"].state, given["x"].reason, given["x"].superseded_by) == ("COMPENSATED", "superseded", "y")
    assert without_reports(given.replayed("x")) == without_reports(given["x"])


def test_sagas_of_other_kinds_go_in_the_order_in_which_they_came() -> None:
    """First come, first served."""
    given = scene()
    given.start("a", number=1)
    given.start("x", ERRAND, number=1)
    given.start("z", BURN)
    run(given, "a")
    assert states(given) == {"a": "SUCCEEDED", "x": "RUNNING", "z": "QUEUED"}


def test_what_goes_first_cancels_a_running_saga_that_has_not_come_too_far() -> None:
    """And goes before those that wait."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    given.start("r", urgent=True)
    assert (given["a"].state, given["a"].reason) == ("COMPENSATING", "cancelled")
    given.undone("pack", "a")
    assert states(given) == {"a": "COMPENSATED", "b": "QUEUED", "r": "RUNNING"}
    assert without_reports(given.replayed("a")) == without_reports(given["a"])


def test_what_goes_first_leaves_a_saga_to_finish_that_has_come_too_far() -> None:
    """Its last command was sent."""
    given = scene()
    given.start("a", number=1)
    given.ok("pack", "a")
    given.ok("sail", "a")
    given.start("r", urgent=True)
    assert given["a"].state == "RUNNING"
    given.ok("land", "a")
    assert states(given) == {"a": "SUCCEEDED", "r": "RUNNING"}


def test_a_paused_saga_gives_way_when_it_is_resumed() -> None:
    """Until then the operator's word counts."""
    given = scene()
    given.start("a", number=1)
    given.press("pause", "a")
    given.start("r", urgent=True)
    assert given["a"].state == "PAUSED"
    given.press("resume", "a")
    assert (given["a"].state, given["a"].reason) == ("COMPENSATING", "cancelled")


def test_what_goes_first_passes_one_that_was_granted_the_lane_but_has_not_begun() -> None:
    """Nothing was sent, so nothing is cancelled: it is next."""
    given = scene()
    given.start("a", number=1)
    lane_before = given.lane
    given.start("b", number=2)
    granted, following = given.lane.left_by("a")
    assert following == "b"
    given.sagas.pop("a")
    given.lane = granted
    given.start("r", urgent=True)
    given.feed("b", LaneGranted(at_ms=given.now_ms))
    assert states(given) == {"b": "QUEUED", "r": "RUNNING"}
    assert given.lane.fence == lane_before.fence + 2
    run(given, "r")
    assert given["b"].state == "RUNNING"


def test_a_grant_that_arrives_twice_begins_once() -> None:
    """The second one changes nothing."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    run(given, "a")
    before = given["b"]
    assert given.feed("b", LaneGranted(at_ms=given.now_ms)) == before


def test_a_saga_cancelled_between_grant_and_word_hands_the_lane_on() -> None:
    """A lane is never forgotten."""
    given = scene()
    given.start("a", number=1)
    given.start("b", number=2)
    given.start("c", BURN)
    granted, _ = given.lane.left_by("a")
    given.sagas.pop("a")
    given.lane = granted
    given.press("cancel", "b")
    assert states(given) == {"b": "COMPENSATED", "c": "RUNNING"}
    assert given.lane.holder == "c"


def test_fences_only_grow() -> None:
    """Whatever happens to the sagas."""
    given = scene()
    fences = []
    for number in range(1, 8):
        saga_id = f"s{number}"
        given.start(saga_id, number=number)
        fences.append(given[saga_id].fence or 0)
        if number % 2:
            run(given, saga_id)
        else:
            given.fail("pack", saga_id)
            given.undone("pack", saga_id)
    assert fences == sorted(set(fences))


def test_a_log_entry_holds_only_what_counts_of_a_long_queue() -> None:
    """A storm of pushes does not make every log entry long."""
    given = scene()
    given.start("a", number=1)
    for number in range(2, 200):
        given.start(f"s{number}", number=number)
    given.fail("pack", "a")
    seen = given.entries["a"][-1]["context"]["lane"]["waiting"]
    assert 1 <= len(seen) <= 4
    assert without_reports(given.replayed("a")) == without_reports(given["a"])
