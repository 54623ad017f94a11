"""The proof of the proof: bugs are planted, and the invariants that hold for everything notice each of them."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from tests.seedwork.saga.exploring import explore, illegal
from tests.seedwork.saga.test_exploration import TWICE, journey
from tests.simulation.history import run
from tests.simulation.planted import BUGS, Bug


@dataclass(frozen=True)
class Caught:
    """How a planted bug was noticed."""

    violation: str = ""
    """Empty: it was not."""
    without: str = ""
    """What the same history shows without the bug: nothing."""


def test_each_planted_bug_is_caught(record_property: Callable[[str, object], None]) -> None:
    """By simulation or exploration, which are content with the same histories and states as soon as it is gone."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        found = dict(zip((bug.name for bug in BUGS), pool.map(_catch, range(len(BUGS))), strict=True))
    caught = [name for name, each in found.items() if each.violation]
    told = "; ".join(f"{name}: {each.violation[:100]}" for name, each in found.items())
    record_property("summary", f"planted bugs: {len(caught)}/{len(BUGS)} caught: {', '.join(caught)}")
    assert caught == [bug.name for bug in BUGS], told
    assert [each.without for each in found.values()] == [""] * len(BUGS)


def _catch(number: int) -> Caught:
    bug = BUGS[number]
    return _in_a_history(bug) if bug.plans else _in_the_exploration(bug)


def _in_a_history(bug: Bug) -> Caught:
    for plan in bug.plans:
        with bug.plant():
            violations = run(plan).violations
        if violations:
            return Caught(f"seed {plan.seed}: {violations[0]}", "".join(run(plan).violations))
    return Caught()


def _in_the_exploration(bug: Bug) -> Caught:
    def problems(*, until_wrong: bool) -> list[str]:
        explored = explore(journey(2, TWICE), verbs=("cancel", "retry"), until_wrong=until_wrong)
        return [problem for world in explored.worlds.values() for problem in illegal(world)]

    with bug.plant():
        found = problems(until_wrong=True)
    return Caught("".join(found[:1]), "".join(problems(until_wrong=False)))
