"""Every state that sagas can reach, breadth first: all legal, and none of them a dead end."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from seedwork.lanes import Place
from seedwork.saga import Retry, Saga, Step, VerbName
from tests.seedwork.saga.exploring import VERBS, Explored, explore
from tests.seedwork.saga.trips import (
    CastOff,
    HasCastOff,
    Land,
    Landed,
    LandFailed,
    Pack,
    Packed,
    PackFailed,
    Sail,
    SailBack,
    Sailed,
    SailedBack,
    SailFailed,
    TripEnded,
    TripGivenUp,
    TripRequested,
    Unpack,
    Unpacked,
)

TWICE = Retry(attempts=2, first_s=0)
ONCE = Retry(attempts=1)
HOP = Saga(
    name="hop",
    starts_on=TripRequested,
    steps=(
        Step(
            "sail",
            send=lambda _: Sail(crates=1),
            ok=Sailed,
            failed=SailFailed,
            undo=lambda _: SailBack(),
            undone=SailedBack,
            retry=TWICE,
            undo_retry=TWICE,
        ),
        Step("land", send=lambda _: Land(), ok=Landed, failed=LandFailed, retry=ONCE),
    ),
    succeeded=lambda _: TripEnded(),
    compensated=lambda view: TripGivenUp(reason=view.saga.reason or ""),
    place=lambda data: Place(group="hop", order=data["number"]),
    replaces_after="sail",
)
SHORT = replace(HOP, steps=tuple(replace(step, retry=ONCE, undo_retry=ONCE) for step in HOP.steps))
PACK = Step("pack", send=lambda _: Pack(), ok=Packed, failed=PackFailed, undo=lambda _: Unpack(), undone=Unpacked)
SAIL = HOP.steps[0]
LAND = Step("land", send=lambda _: Land(), ok=Landed, failed=LandFailed, undo=lambda _: CastOff(), undone=HasCastOff)
RETURN = Step("return", send=lambda _: Sail(crates=0), ok=Sailed, failed=SailFailed, undo=SAIL.undo, undone=SailedBack)


def journey(steps: int, retry: Retry = ONCE) -> Saga:
    """A trip of so many steps, each with an undo."""
    some = (PACK, SAIL, LAND, RETURN)[:steps]
    return replace(
        HOP, name="journey", steps=tuple(replace(each, retry=retry, undo_retry=retry) for each in some),
        replaces_after=None,
    )  # fmt: skip


def check(explored: Explored, tell: Callable[[str, object], None], *, at_least: int, what: str) -> None:
    """All legal, no dead end; how much was seen is part of the result."""
    tell("summary", f"exploration: {len(explored.worlds)} states of {what}, all legal, no dead end")
    assert explored.problems() == []
    assert explored.dead_ends() == 0
    assert len(explored.worlds) > at_least


def test_every_state_of_one_saga_with_an_operator_is_legal_and_leads_to_an_end(
    record_property: Callable[[str, object], None],
) -> None:
    """Every verb in every state, at any moment."""
    check(explore(HOP, verbs=VERBS), record_property, at_least=200, what="one saga, every verb")


def test_every_state_of_two_sagas_in_one_lane_is_legal_and_leads_to_an_end(
    record_property: Callable[[str, object], None],
) -> None:
    """Waiting, superseded, granted twice; without an operator."""
    check(explore(SHORT, sagas=2), record_property, at_least=500, what="two sagas in one lane")


@pytest.mark.parametrize(
    ("steps", "retry", "verbs"),
    [(1, TWICE, ("cancel", "retry")), (2, TWICE, ("cancel", "retry")), (3, TWICE, ("cancel",)), (4, ONCE, ("cancel",))],
)
def test_every_state_of_a_saga_of_up_to_four_steps_is_legal_and_leads_to_an_end(
    steps: int, retry: Retry, verbs: tuple[VerbName, ...], record_property: Callable[[str, object], None]
) -> None:
    """Retries, late and repeated answers, cancelled at any moment."""
    what = f"{steps} steps, each tried {retry.attempts} times, with {' and '.join(verbs)}"
    check(explore(journey(steps, retry), verbs=verbs), record_property, at_least=20 * steps, what=what)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_two_coordinators_that_take_the_same_and_die_change_nothing_about_that(
    steps: int, record_property: Callable[[str, object], None]
) -> None:
    """Each takes an input, decides on what it has read, and writes if nothing has moved; or dies first."""
    explored = explore(journey(steps), verbs=("cancel",), desks=True)
    check(explored, record_property, at_least=200 * steps, what=f"two coordinators that may die, {steps} steps")
