"""The rules of one saga (DESIGN §3.2), each as given / when / then."""

from typing import Any

import pytest

from seedwork.messages import UndoFailed, WorkReported
from seedwork.saga import SagaState, VerbName, VerbRefused
from seedwork.testing.saga import Scene, without_reports
from tests.seedwork.saga.trips import BURN, ERRAND, TRIP, Packed, PackFailed, Sail, TripGivenUp


def scene(hold_s: float = 3600.0) -> Scene:
    return Scene(TRIP, ERRAND, BURN, hold_s=hold_s)


def sailing(hold_s: float = 3600.0) -> Scene:
    """A saga whose first step is done and whose second was sent."""
    given = scene(hold_s)
    given.start("a")
    given.ok("pack", crates=7)
    return given


def held() -> Scene:
    """A saga that is held after the last attempt of its second step."""
    given = sailing()
    for _ in range(3):
        given.fail("sail", retryable=True, code="no_wind", message="No wind.", log_tail=["calm"])
        given.wait(4)
    return given


def undoing() -> Scene:
    """A saga that undoes its second step."""
    given = sailing()
    given.fail("sail")
    return given


def stuck() -> Scene:
    """A saga whose undo failed four times."""
    given = undoing()
    for _ in range(4):
        given.answer(UndoFailed, "sail", message="The mast broke.")
        given.wait(9)
    return given


# ------------------------------------------------------------------------------------------------ success


def test_a_started_saga_takes_the_free_lane_and_sends_its_first_command() -> None:
    """The lane's first fence goes with the command."""
    given = scene()
    saga = given.start("a")
    assert (saga.state, saga.fence, given.lane.holder) == ("RUNNING", 1, "a")
    assert given.sent() == ["Pack"]
    assert (given.last().step, given.last().attempt, given.last().fence) == ("pack", 1, 1)


def test_a_success_sends_the_next_command_made_from_what_was_answered() -> None:
    """The result of a step is what later commands are made from."""
    given = sailing()
    assert given.steps() == {"pack": "DONE", "sail": "SENT", "land": "PENDING"}
    command = given.last().message
    assert isinstance(command, Sail)
    assert command.crates == 7


def test_after_the_last_step_the_saga_has_succeeded_and_leaves_the_lane() -> None:
    """The news goes out, no timer stays."""
    given = sailing()
    given.ok("sail")
    saga = given.ok("land")
    assert saga.state == "SUCCEEDED"
    assert given.sent() == ["Pack", "Sail", "Land", "TripEnded"]
    assert given.timer() is None
    assert given.lane.holder is None
    assert given.lane.live is not None
    assert given.lane.live["saga_id"] == "a"


def test_a_success_of_an_earlier_attempt_counts() -> None:
    """Whichever attempt did the work, it is done."""
    given = sailing()
    given.wait(602)
    assert given.step("sail").attempt == 2
    given.ok("sail", attempt=1)
    assert given.steps()["sail"] == "DONE"
    assert given.sent()[-1] == "Land"


def test_a_repeated_success_is_logged_and_changes_nothing() -> None:
    """At least once means twice, now and then."""
    given = sailing()
    before = given["a"]
    after = given.ok("pack")
    assert after.seq == before.seq + 1
    assert (after.steps, after.wait, after.epoch, after.state) == (
        before.steps,
        before.wait,
        before.epoch,
        before.state,
    )
    assert given.sent() == ["Pack", "Sail"]


def test_an_answer_that_no_step_awaits_is_logged_and_changes_nothing() -> None:
    """A success before the command, an answer under another step's name."""
    given = sailing()
    before = given["a"]
    given.ok("land")
    given.answer(Packed, "sail")
    assert given["a"].steps == before.steps
    assert given["a"].seq == before.seq + 2


def test_an_answer_without_a_step_is_understood_by_its_type() -> None:
    """The test endpoints may leave the step out."""
    given = scene()
    given.start("a")
    given.answer(Packed, None)
    assert given.steps()["pack"] == "DONE"


# ------------------------------------------------------------------------------------------------ failure


def test_a_final_failure_begins_the_undo() -> None:
    """The failed step is undone as well: an earlier attempt may still be at work."""
    given = undoing()
    assert given["a"].state == "COMPENSATING"
    assert given["a"].reason == "failed"
    assert given.steps() == {"pack": "DONE", "sail": "UNDOING", "land": "PENDING"}
    assert given.sent()[-1] == "SailBack"


def test_a_final_failure_of_an_earlier_attempt_changes_nothing() -> None:
    """Only the latest attempt knows."""
    given = sailing()
    given.wait(602)
    given.fail("sail", attempt=1)
    assert given["a"].state == "RUNNING"


def test_a_retryable_failure_is_tried_again_after_a_wait_with_full_jitter() -> None:
    """The wait doubles, and is anything from nothing to the whole."""
    given = sailing()
    given.jitter = 0.5
    given.fail("sail", retryable=True)
    assert given.timer() is not None
    assert given.timer().due_ms == given.now_ms + 500  # type: ignore[union-attr]
    given.wait(0.5)
    assert given.step("sail").attempt == 2
    given.fail("sail", retryable=True)
    assert given.timer().due_ms == given.now_ms + 1000  # type: ignore[union-attr]


def test_a_repeated_retryable_failure_is_not_counted_twice() -> None:
    """While it waits for the next attempt, the same bad news is no news."""
    given = sailing()
    given.fail("sail", retryable=True)
    due = given.timer()
    given.fail("sail", retryable=True)
    assert given.timer() == due


def test_after_the_last_attempt_the_saga_is_held_with_all_that_a_specialist_needs() -> None:
    """Nothing is undone yet; reason, attempts and log tail are there."""
    given = held()
    saga, step = given["a"], given.step("sail")
    assert (saga.state, saga.held, saga.needs_attention, saga.direction) == ("PAUSED", True, True, "forward")
    assert (step.state, step.attempt) == ("FAILED", 3)
    assert step.error is not None
    assert (step.error["code"], step.error["message"], step.error["log_tail"]) == ("no_wind", "No wind.", ["calm"])
    assert given.sent().count("Sail") == 3
    assert "SailBack" not in given.sent()


def test_silence_is_tried_again_and_leaves_the_step_unknown_in_the_end() -> None:
    """Nobody knows whether the work was done."""
    given = sailing()
    given.wait(3 * 600 + 10)
    assert given.step("sail").state == "UNKNOWN"
    assert given["a"].held
    given.wait(3600)
    assert given["a"].reason == "timed_out"


def test_a_report_moves_the_timer_and_is_not_in_the_log() -> None:
    """Waiting for a build slot is not silence."""
    given = sailing()
    seq = given["a"].seq
    given.wait(599)
    saga = given.answer(WorkReported, "sail", status="queued", position=3, note="")
    assert saga.seq == seq
    assert saga.wait is not None
    assert saga.wait.note == "queued, position 3"
    given.wait(599)
    assert given.step("sail").attempt == 1
    given.wait(1)
    assert given.timer() is not None
    assert given.timer().kind == "retry"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ hold


def test_retry_of_a_held_saga_goes_on_at_exactly_this_step_with_a_fresh_allowance() -> None:
    """Attempt numbers go on; nothing finished is done again."""
    given = held()
    given.press("retry")
    assert given["a"].state == "RUNNING"
    assert not given["a"].held
    assert given.step("sail").attempt == 4
    assert given.sent().count("Pack") == 1
    for _ in range(2):
        given.fail("sail", retryable=True)
        given.wait(4)
    assert given.step("sail").attempt == 6
    given.ok("sail")
    assert given.ok("land").state == "SUCCEEDED"


def test_a_success_during_the_hold_ends_it() -> None:
    """The work was done after all."""
    given = held()
    given.ok("sail", attempt=2)
    assert (given["a"].state, given["a"].held) == ("RUNNING", False)
    assert given.sent()[-1] == "Land"


def test_a_final_failure_during_the_hold_ends_it_with_the_undo() -> None:
    """After silence, the answer came late and says no."""
    given = sailing()
    given.wait(3 * 600 + 10)
    given.fail("sail")
    assert given["a"].state == "COMPENSATING"


def test_the_undo_begins_when_the_hold_is_over() -> None:
    """Nobody came."""
    given = held()
    given.wait(3590)
    assert given["a"].held
    given.wait(20)
    assert (given["a"].state, given["a"].reason) == ("COMPENSATING", "failed")
    assert given.sent()[-1] == "SailBack"


def test_without_a_hold_the_undo_begins_at_once() -> None:
    """KNARR_SAGA_HOLD_S=0."""
    given = sailing(hold_s=0)
    for _ in range(3):
        given.fail("sail", retryable=True)
        given.wait(4)
    assert given["a"].state == "COMPENSATING"


def test_a_hold_ends_when_another_saga_of_the_app_waits() -> None:
    """The next push is not kept waiting for a person."""
    given = held()
    given.start("b", number=2)
    assert (given["a"].state, given["b"].state) == ("COMPENSATING", "QUEUED")


def test_no_hold_begins_while_another_saga_of_the_app_waits() -> None:
    """It waited before: the same."""
    given = sailing()
    given.start("b", number=2)
    for _ in range(3):
        given.fail("sail", "a", retryable=True)
        given.wait(4)
    assert given["a"].state == "COMPENSATING"


def test_pause_of_a_hold_removes_its_deadline() -> None:
    """A person looks at it; those who wait, wait."""
    given = held()
    given.press("pause", why="looking")
    given.wait(100_000)
    given.start("b", number=2)
    assert (given["a"].state, given["a"].held) == ("PAUSED", True)
    assert given["a"].pause is not None
    assert given["a"].pause.by == "ingrid"
    assert given.press("retry", "a").state == "RUNNING"


# ------------------------------------------------------------------------------------------------ undo


def test_the_undo_is_last_in_first_out_over_every_step_that_was_sent() -> None:
    """And over no other."""
    given = undoing()
    given.undone("sail")
    assert given.sent()[-1] == "Unpack"
    saga = given.undone("pack")
    assert saga.state == "COMPENSATED"
    assert given.sent() == ["Pack", "Sail", "SailBack", "Unpack", "TripGivenUp"]
    assert given.steps() == {"pack": "UNDONE", "sail": "UNDONE", "land": "PENDING"}


def test_a_step_whose_answer_is_outstanding_becomes_unknown_and_is_undone() -> None:
    """Its effect may be there."""
    given = sailing()
    given.press("cancel", why="wrong ship")
    assert given["a"].reason == "cancelled"
    assert given.steps()["sail"] == "UNDOING"
    assert given.last().attempt == 2


def test_a_forward_answer_during_the_undo_is_logged_and_changes_nothing() -> None:
    """Also not a late success."""
    given = undoing()
    before = given["a"]
    given.ok("sail")
    given.fail("sail", attempt=1)
    assert given["a"].seq == before.seq + 2
    assert (given["a"].steps, given["a"].state) == (before.steps, before.state)


def test_a_failed_undo_is_tried_more_often_than_forward_and_then_stuck() -> None:
    """The lane is free then: what is left touches only this saga's things."""
    given = stuck()
    assert (given["a"].state, given.step("sail").state) == ("STUCK", "STUCK")
    assert given["a"].needs_attention
    assert given.step("sail").undo_attempts == 4
    assert given.timer() is None
    assert given.lane.holder is None
    assert given["a"].updated_ms


def test_silence_of_an_undo_is_a_failed_attempt() -> None:
    """It is sent again after a wait."""
    given = undoing()
    given.wait(60.5)
    assert given.sent().count("SailBack") == 1
    given.wait(1)
    assert given.sent().count("SailBack") == 2


def test_an_undo_answer_of_an_earlier_attempt_counts() -> None:
    """Undone is undone."""
    given = undoing()
    first = given.step("sail").attempt
    given.wait(62)
    given.undone("sail", attempt=first)
    assert given.steps()["sail"] == "UNDONE"


def test_retry_of_a_stuck_saga_grants_a_fresh_allowance() -> None:
    """The undo goes on, without the lane."""
    given = stuck()
    given.press("retry")
    assert (given["a"].state, given.steps()["sail"]) == ("COMPENSATING", "UNDOING")
    given.undone("sail")
    assert given.undone("pack").state == "COMPENSATED"


def test_skip_of_a_stuck_undo_ends_with_what_is_left_over() -> None:
    """The other steps are undone all the same."""
    given = stuck()
    given.press("skip", why="sank")
    assert given.sent()[-1] == "Unpack"
    saga = given.undone("pack")
    assert saga.state == "COMPENSATED"
    assert saga.left_over == ({"what": "the ship of a", "where": "at sea"},)
    assert given.steps()["sail"] == "SKIPPED"


def test_an_undo_that_succeeds_late_frees_a_stuck_saga() -> None:
    """Nobody has to press anything when it is gone."""
    given = stuck()
    given.undone("sail", attempt=3)
    assert (given["a"].state, given.sent()[-1]) == ("COMPENSATING", "Unpack")


# ------------------------------------------------------------------------------------------------ forward only


def test_what_cannot_be_undone_is_tried_again_even_after_a_final_failure() -> None:
    """Then it waits for a person, and keeps the lane."""
    given = scene()
    given.start("a", BURN)
    given.fail("boats")
    given.wait(2)
    assert given.sent() == ["Burn", "Burn"]
    given.fail("boats")
    assert (given["a"].state, given["a"].direction, given.lane.holder) == ("STUCK", "forward", "a")
    given.press("retry")
    given.ok("boats")
    assert given.ok("bridges").state == "SUCCEEDED"


def test_a_forward_only_saga_with_a_skipped_step_does_the_rest_and_says_what_is_left() -> None:
    """It has not succeeded: something is left."""
    given = scene()
    given.start("a", BURN)
    given.fail("boats")
    given.wait(2)
    given.fail("boats")
    given.press("skip")
    saga = given.ok("bridges")
    assert saga.state == "COMPENSATED"
    assert saga.left_over == ({"what": "whatever boats made", "where": "trips"},)
    assert given.lane.holder is None


def test_a_forward_only_saga_cannot_be_cancelled_once_it_has_begun() -> None:
    """What is gone is gone."""
    given = scene()
    given.start("a", BURN)
    with pytest.raises(VerbRefused, match="cannot be brought back"):
        given.press("cancel")


# ------------------------------------------------------------------------------------------------ timers


def test_a_timer_of_another_epoch_changes_nothing() -> None:
    """It was set for a wait that is over."""
    given = scene()
    given.start("a")
    old = given.timer()
    assert old is not None
    given.ok("pack")
    given.now_ms += 10_000_000
    before = given["a"]
    assert given.fire("a", old) == before


def test_a_timer_that_comes_before_its_time_changes_nothing() -> None:
    """A report moved it."""
    given = sailing()
    timer = given.timer()
    assert timer is not None
    before = given["a"]
    given.now_ms = timer.due_ms - 1
    assert given.fire("a", timer) == before


# ------------------------------------------------------------------------------------------------ pause


def test_a_paused_saga_takes_a_success_and_sends_nothing() -> None:
    """Resume sends the next command."""
    given = sailing()
    given.press("pause")
    given.ok("sail")
    assert (given["a"].state, given.steps()["sail"]) == ("PAUSED", "DONE")
    assert given.sent()[-1] == "Sail"
    given.press("resume")
    assert (given["a"].state, given.sent()[-1]) == ("RUNNING", "Land")


def test_the_success_of_the_last_step_ends_a_paused_saga() -> None:
    """There is nothing left to hold back."""
    given = sailing()
    given.ok("sail")
    given.press("pause")
    assert given.ok("land").state == "SUCCEEDED"


def test_no_silence_is_counted_while_an_operator_pauses() -> None:
    """Resume begins the wait anew."""
    given = sailing()
    given.press("pause")
    given.wait(10_000)
    assert given.step("sail").attempt == 1
    given.press("resume")
    given.wait(599)
    assert given.timer() is not None
    assert given.timer().kind == "answer"  # type: ignore[union-attr]
    given.wait(2)
    assert given.step("sail").attempt == 2 or given.timer().kind == "retry"  # type: ignore[union-attr]


def test_a_final_failure_of_a_paused_saga_waits_with_its_undo() -> None:
    """Resume begins it."""
    given = sailing()
    given.press("pause")
    given.fail("sail")
    assert (given["a"].state, given["a"].direction) == ("PAUSED", "undo")
    assert given.sent()[-1] == "Sail"
    given.press("resume")
    assert (given["a"].state, given.sent()[-1]) == ("COMPENSATING", "SailBack")


def test_a_paused_undo_takes_an_answer_and_sends_nothing() -> None:
    """Resume undoes the next one."""
    given = undoing()
    given.press("pause")
    given.undone("sail")
    assert given["a"].state == "PAUSED"
    assert given.sent()[-1] == "SailBack"
    given.press("resume")
    assert given.sent()[-1] == "Unpack"


def test_a_retryable_failure_during_a_pause_is_tried_again_on_resume() -> None:
    """And counts as an attempt."""
    given = sailing()
    given.press("pause")
    given.fail("sail", retryable=True)
    given.wait(1000)
    assert given.step("sail").attempt == 1
    given.press("resume")
    assert given.step("sail").attempt == 2


# ------------------------------------------------------------------------------------------------ verbs


def _second_of_two() -> Scene:
    given = scene()
    given.start("first")
    given.start("a", number=2)
    return given


def _pressed(given: Scene, verb: VerbName) -> Scene:
    given.press(verb)
    return given


def _succeeded() -> Scene:
    given = sailing()
    given.ok("sail")
    given.ok("land")
    return given


def _compensated() -> Scene:
    given = undoing()
    given.undone("sail")
    given.undone("pack")
    return given


STATES: dict[str, Any] = {
    "QUEUED": _second_of_two,
    "RUNNING": sailing,
    "COMPENSATING": undoing,
    "PAUSED forward": lambda: _pressed(sailing(), "pause"),
    "held": held,
    "PAUSED undo": lambda: _pressed(undoing(), "pause"),
    "STUCK": stuck,
    "SUCCEEDED": _succeeded,
    "COMPENSATED": _compensated,
}
VERBS: tuple[VerbName, ...] = ("pause", "resume", "retry", "cancel", "skip", "compensate")
TABLE: dict[str, dict[str, str]] = {
    "QUEUED": {"cancel": "COMPENSATED"},
    "RUNNING": {"pause": "PAUSED", "cancel": "COMPENSATING"},
    "COMPENSATING": {"pause": "PAUSED"},
    "PAUSED forward": {"pause": "same", "resume": "RUNNING", "retry": "RUNNING", "cancel": "COMPENSATING"},
    "held": {"pause": "PAUSED", "resume": "RUNNING", "retry": "RUNNING", "cancel": "COMPENSATING"},
    "PAUSED undo": {"pause": "same", "resume": "COMPENSATING"},
    "STUCK": {"retry": "COMPENSATING", "skip": "COMPENSATING"},
    "SUCCEEDED": {"compensate": "SUCCEEDED"},
    "COMPENSATED": {"retry": "COMPENSATED"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", STATES)
def test_each_verb_in_each_state(state: str, verb: VerbName) -> None:
    """DESIGN §3.2, the table of verbs; else it is refused and says the state."""
    given = STATES[state]()
    before: SagaState = given["a"]
    expected = TABLE[state].get(verb)
    if expected is None:
        with pytest.raises(VerbRefused) as refused:
            given.press(verb, "a", why="test")
        assert refused.value.extensions["state"] == before.state
        assert given["a"] == before
        return
    after = given.press(verb, "a", why="test")
    if expected == "same":
        assert after == before
        return
    assert after.state == expected
    entry = next(each for each in reversed(given.entries["a"]) if each["direction"] == "operator")
    assert entry["type"] == verb
    assert entry["payload"] == {"by": "ingrid", "reason": "test"}


def test_a_cancel_that_is_in_force_changes_nothing() -> None:
    """During its undo and after it."""
    given = sailing()
    given.press("cancel")
    before = given["a"]
    assert given.press("cancel") == before
    given.undone("sail")
    ended = given.undone("pack")
    assert given.press("cancel") == ended


def test_cancel_of_a_waiting_saga_ends_it_at_once() -> None:
    """Its steps were never sent."""
    given = _second_of_two()
    saga = given.press("cancel", "a")
    assert (saga.state, saga.reason) == ("COMPENSATED", "cancelled")
    assert set(given.steps("a").values()) == {"PENDING"}
    assert given.lane.waiting == ()


def test_retry_of_an_undone_saga_starts_a_linked_one_with_the_same_data() -> None:
    """The old one stays as it ended and knows the new one."""
    given = _compensated()
    saga = given.press("retry")
    assert saga.linked_id is not None
    linked = given[saga.linked_id]
    assert (linked.state, linked.origin.parent_id, linked.origin.trigger) == ("RUNNING", "a", "retry")
    assert linked.origin.data == saga.origin.data


def test_retry_while_the_linked_saga_is_under_way_starts_no_second_one() -> None:
    """It is in force already."""
    given = _compensated()
    saga = given.press("retry")
    assert given.press("retry", open_link=saga.linked_id) == saga


def test_retry_of_what_is_older_than_what_is_live_needs_force() -> None:
    """And says so."""
    given = _compensated()
    given.start("b", number=2)
    for step in ("pack", "sail", "land"):
        given.ok(step, "b")
    with pytest.raises(VerbRefused, match="older than what is live"):
        given.press("retry", "a")
    saga = given.press("retry", "a", force=True)
    assert saga.linked_id is not None
    assert given[saga.linked_id].origin.data["force"] is True


def test_compensate_of_what_is_live_starts_a_linked_saga() -> None:
    """What it does is the definition's affair."""
    given = _succeeded()
    saga = given.press("compensate")
    assert saga.state == "SUCCEEDED"
    assert saga.linked_id is not None
    assert (given[saga.linked_id].origin.trigger, given[saga.linked_id].origin.parent_id) == ("rollback", "a")


def test_compensate_of_what_is_not_live_is_refused_with_the_reason() -> None:
    """Another one has landed since."""
    given = _succeeded()
    given.start("b", number=2)
    for step in ("pack", "sail", "land"):
        given.ok(step, "b")
    with pytest.raises(VerbRefused, match="since"):
        given.press("compensate", "a")


# ------------------------------------------------------------------------------------------------ the record


def test_the_reason_of_the_end_is_told() -> None:
    """Superseded by its first step's word."""
    given = scene()
    given.start("a")
    given.answer(PackFailed, "pack", retryable=False, code="superseded", message="Older.", superseded_by="z")
    saga = given.undone("pack")
    assert (saga.reason, saga.superseded_by) == ("superseded", "z")
    told = given.last().message
    assert isinstance(told, TripGivenUp)
    assert told.reason == "superseded"


@pytest.mark.parametrize("state", STATES)
def test_the_log_replays_to_the_same_state(state: str) -> None:
    """Input entries hold everything that the decision received."""
    given = STATES[state]()
    assert without_reports(given.replayed("a")) == without_reports(given["a"])
