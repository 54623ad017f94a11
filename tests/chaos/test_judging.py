"""Each way in which it could go wrong is planted into facts that are right, and is found; right ones are let be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.judging import Facts, Front, ReleaseRow, SagaRow, Thing, violations_of
from tests.chaos.pushing import Pushed


def pushed(number: int, *, good: bool = True) -> Pushed:
    return Pushed("shop", number, f"c{number}", good, (f"s{number}",), 1, 0.0)


def saga(number: int, state: str = "SUCCEEDED", **more: Any) -> SagaRow:
    row = SagaRow(
        id=f"s{number}", app="shop", app_id="id", commit=f"c{number}", state=state, held=False, why="", fence=number,
        entries=9, gaps=0,
    )  # fmt: skip
    return replace(row, **more)


def right() -> Facts:
    """Three pushes: the first was replaced, the second is live, the third was undone; a fourth waits for a person."""
    return Facts(
        pushed=[pushed(1), pushed(2), pushed(3, good=False), pushed(4)],
        sagas={
            "s1": saga(1),
            "s2": saga(2),
            "s3": saga(3, "COMPENSATED", why="it crashed"),
            "s4": saga(4, "PAUSED", held=True, why="no registry"),
        },
        unsent={"webhook": 0},
        dead_letters={"bus": 0},
        open_jobs={"builder": 0},
        releases=[
            ReleaseRow(saga_id="s1", app_id="id", commit="c1", digest="d1", state="superseded"),
            ReleaseRow(saga_id="s2", app_id="id", commit="c2", digest="d2", state="live"),
            ReleaseRow(saga_id="s3", app_id="id", commit="c3", digest="d3", state="undone"),
        ],
        routes={"id": "s2"},
        references=frozenset({("shop", "d1", "s1"), ("shop", "d2", "s2")}),
        stored={"shop": ["d1", "d2"], "staging/id": []},
        tags={"shop": {"c1": "d1", "c2": "d2"}},
        served={("shop", "d1"): 200, ("shop", "d2"): 200, ("shop", "d3"): 404},
        things=[Thing(app_id="id", name="Pod/web", saga_id="s2", digest="d2")],
        fronts={"id": Front(saga_id="s2", fence=2)},
        answers={"shop": "shop 2"},
        shown={"shop": ["shop 1", "shop 2"]},
        files=["shared/builder", "shared/source/archives/sha256"],
    )


def with_saga(facts: Facts, number: int, **more: Any) -> None:
    facts.sagas = {**facts.sagas, f"s{number}": replace(facts.sagas[f"s{number}"], **more)}


def add_push(facts: Facts, push: Pushed) -> None:
    facts.pushed = [*facts.pushed, push]


def add_saga(facts: Facts, number: int, **more: Any) -> None:
    facts.sagas = {**facts.sagas, f"s{number}": saga(number, **more)}


def give(**fields: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        for name, value in fields.items():
            setattr(facts, name, value)

    return change


def release(facts: Facts, number: int, **more: Any) -> None:
    facts.releases = [replace(each, **more) if each.saga_id == f"s{number}" else each for each in facts.releases]


def thing(**more: Any) -> Thing:
    return replace(right().things[0], **more)


def held_too(facts: Facts) -> None:
    facts.references |= {("shop", "d3", "s3")}


def went_back(facts: Facts) -> None:
    facts.shown = {"shop": ["shop 1", "shop 2", "shop 1", "shop 2"]}


PLANTED: dict[str, tuple[Callable[[Facts], None], str]] = {
    "a push without a saga": (lambda facts: add_push(facts, pushed(5)), "does not exist"),
    "a push with two sagas": (
        lambda facts: add_push(facts, replace(pushed(5), sagas=("s1", "s2"))),
        "started 2 sagas",
    ),
    "a push that started nothing": (lambda facts: add_push(facts, replace(pushed(5), sagas=())), "started 0 sagas"),
    "two pushes with one saga": (lambda facts: add_push(facts, pushed(1)), "2 pushes have the saga"),
    "a saga that nobody pushed": (lambda facts: add_saga(facts, 5, fence=0), "has no push"),
    "a saga of another commit": (lambda facts: with_saga(facts, 1, commit="c9"), "and its saga s1 of shop c9"),
    "a saga that goes on for ever": (lambda facts: with_saga(facts, 4, held=False, state="RUNNING"), "not ended"),
    "a wait without a reason": (lambda facts: with_saga(facts, 4, why=""), "does not say why"),
    "a stuck undo without a reason": (lambda facts: with_saga(facts, 3, state="STUCK", why=""), "does not say why"),
    "a gap in a log": (lambda facts: with_saga(facts, 1, gaps=1), "1 gaps"),
    "a saga without a log": (lambda facts: with_saga(facts, 1, entries=0), "0 entries"),
    "a forgotten saga": (give(forgotten=["saga s1: nothing moves it"]), "audit: saga s1"),
    "an unsent message": (give(unsent={"webhook": 1}), "webhook has 1 messages not sent"),
    "a dead letter": (give(dead_letters={"bus": 2}), "bus has 2 dead letters"),
    "work that nobody does": (give(open_jobs={"builder": 1}), "builder has 1 open jobs"),
    "a success that is not live": (lambda facts: release(facts, 2, state="superseded"), "its releases are"),
    "two live releases": (lambda facts: release(facts, 1, state="live"), "a second live release"),
    "an undone saga with a release": (lambda facts: release(facts, 3, state="superseded"), "its release is superseded"),
    "a release of nobody": (lambda facts: release(facts, 1, saga_id="s9"), "the unknown saga s9"),
    "an old route": (give(routes={"id": "s1"}), "is served by s1"),
    "a kept release without an image": (
        give(references=frozenset({("shop", "d2", "s2")})),
        "holds no image for it",
    ),
    "a reference to another image": (
        give(references=frozenset({("shop", "d1", "s1"), ("shop", "d1", "s2")})),
        "what is held for it d1",
    ),
    "a reference of an undone saga": (held_too, "held for saga s3"),
    "an image that is gone": (give(stored={"shop": ["d1"]}), "shop lacks d2"),
    "an image of nobody": (give(stored={"shop": ["d1", "d2", "d3"]}), "shop has d3"),
    "an undone image that answers": (give(served={("shop", "d3"): 200}), "answered by 200, not by 404"),
    "a live image that does not": (give(served={("shop", "d2"): 404}), "answered by 404, not by 200"),
    "a tag of another image": (give(tags={"shop": {"c1": "d1", "c2": "d1"}}), "tags of shop"),
    "a tag too many": (give(tags={"shop": {"c1": "d1", "c2": "d2", "c3": "d3"}}), "tags of shop"),
    "an old pod": (
        lambda facts: setattr(facts, "things", [thing(), thing(saga_id="s1")]),
        "Pod/web of saga s1 is still there",
    ),
    "another digest": (give(things=[thing(digest="d1")]), "runs d1"),
    "no pod": (give(things=[]), "no pod of shop"),
    "traffic to an old release": (give(fronts={"id": Front(saga_id="s1", fence=2)}), "leads to"),
    "no Service": (give(fronts={}), "leads to None"),
    "an old fence": (give(fronts={"id": Front(saga_id="s2", fence=1)}), "has the fence 1"),
    "an old answer": (give(answers={"shop": "shop 1"}), "answers 'shop 1'"),
    "traffic that went back": (went_back, "went back from 'shop 2'"),
    "a bad version that was shown": (give(shown={"shop": ["shop 1", "shop 3"]}), "which nobody has pushed"),
    "a work folder of an ended saga": (give(files=["shared/builder/work/s3"]), "left of a saga that has ended"),
}


def test_what_is_right_is_let_be() -> None:
    """Also a saga that waits for a person, with what it has made."""
    facts = right()
    assert violations_of(facts) == []
    facts.references |= {("shop", "d4", "s4")}
    facts.stored = {"shop": ["d1", "d2", "d4"], "staging/id": ["d4"]}
    facts.tags = {"shop": {"c1": "d1", "c2": "d2", "c4": "d4"}}
    facts.things = [*facts.things, thing(saga_id="s4", digest="d4")]
    facts.files = ["shared/source/archives/sha256/d4", "shared/builder/work/s4"]
    assert violations_of(facts) == []


@pytest.mark.parametrize(("plant", "words"), PLANTED.values(), ids=PLANTED)
def test_what_is_wrong_is_found(plant: Callable[[Facts], None], words: str) -> None:
    """In a sentence that names it."""
    facts = right()
    plant(facts)
    found = violations_of(facts)
    assert any(words in each for each in found), found


def test_an_app_may_go_back_from_what_was_undone() -> None:
    """The undo of a release that was live for a moment brings the one before it."""
    facts = right()
    facts.pushed = [pushed(1), pushed(2), pushed(3), pushed(4)]
    facts.shown = {"shop": ["shop 2", "shop 3", "shop 2"]}
    assert violations_of(facts) == []


def test_nothing_is_left_when_nobody_waits() -> None:
    """Staged images and archives are excused only while a saga may need them."""
    facts = right()
    with_saga(facts, 4, state="COMPENSATED", held=False)
    facts.stored = {"shop": ["d1", "d2"], "staging/id": ["d4"]}
    facts.files = ["shared/source/archives/sha256/d4"]
    found = violations_of(facts)
    assert found == [
        "staging/id still has ['d4']",
        "shared/source/archives/sha256/d4 is an archive that nobody needs",
    ]
