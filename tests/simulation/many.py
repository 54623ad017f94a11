"""Many histories: seeds in, one report out; a history that fails is made smaller before it is shown.

`make simulate SEEDS=1000` runs the seeds 0 to 999, `SEEDS=4711:5000` those from 4711 on, `SEEDS=4711` in the form
`SEEDS=4711:4712` one; on every core. A seed says everything: the same seed gives the same history, turn by turn.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample

from tests.simulation.history import Outcome, run
from tests.simulation.plans import Plan, plan_of, smaller

TRIES = 150
"""Histories that are tried to find a smaller one that fails, some seconds each."""


@dataclass(slots=True)
class Report:
    """What came of many histories."""

    histories: int = 0
    sagas: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.histories += 1
        self.sagas += outcome.sagas
        self.ends.update(outcome.ends)
        self.faults.update(outcome.faults)
        if outcome.violations:
            self.failed.append(outcome)

    def __str__(self) -> str:
        """Sagas, faults by kind, violations."""
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items()))
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        violations = sum(len(each.violations) for each in self.failed)
        return (
            f"{self.sagas} sagas ({ends}) in {self.histories} histories; "
            f"{sum(self.faults.values())} faults ({faults}); {violations} violations"
        )


def until(sagas: int, *, first_seed: int) -> Report:
    """One history after the other, until so many sagas have ended or one history fails."""
    report, seed = Report(), first_seed
    while report.sagas < sagas and not report.failed:
        report.add(run(plan_of(seed)))
        seed += 1
    return report


def smallest(plan: Plan, *, tries: int = TRIES) -> Plan:
    """The smallest plan that Hypothesis finds which still fails; the plan itself if none of them does."""
    failing, left = plan, tries

    def fails(smaller_plan: Plan) -> bool:
        nonlocal failing, left
        if left == 0:
            return False
        left -= 1
        if not run(smaller_plan).violations:
            return False
        failing = smaller_plan
        return True

    options = settings(
        max_examples=tries,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample):
        find(smaller(plan), fails, settings=options, random=Random(plan.seed))  # noqa: S311  no secret
    return failing


def explained(outcome: Outcome) -> str:
    """A failure as it is shown: the seed, and the smallest history that fails like that."""
    again = run(smallest(outcome.plan))
    shown = again if again.violations else outcome
    lines = [
        f"seed {outcome.plan.seed}: {outcome.violations[0]}",
        f"again: make simulate SEEDS={outcome.plan.seed}:{outcome.plan.seed + 1}",
        "",
        f"the smallest history that fails ({len(shown.plan.happenings)} of {len(outcome.plan.happenings)} happenings):",
        f"    {shown.plan!r}",
        *(f"    {line}" for line in shown.history),
        *(f"VIOLATED  {each}" for each in shown.violations),
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ make simulate


def main(arguments: Sequence[str]) -> int:
    """Run the seeds, one line for each history that fails; the first one is made smaller and shown."""
    first, _, last = (arguments[0] if arguments else "100").rpartition(":")
    seeds = range(int(first or 0), int(last))
    report = Report()
    with _histories(seeds) as outcomes:
        for outcome in outcomes:
            report.add(outcome)
            if outcome.violations:
                _say(f"seed {outcome.plan.seed}: {outcome.violations[0]}")
            elif report.histories % 100 == 0:
                _say(f"… {report.sagas} sagas in {report.histories} histories")
    _say(f"seeds {seeds.start} to {seeds.stop - 1}: {report}")
    if report.failed:
        _say("\n" + explained(report.failed[0]))
    return int(bool(report.failed))


@contextmanager
def _histories(seeds: Iterable[int]) -> Iterator[Iterator[Outcome]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield pool.map(_of_seed, seeds)


def _of_seed(seed: int) -> Outcome:
    return run(plan_of(seed))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
