"""`kill -9` of the whole process at every named point, for each step, each undo, the coordinator and the webhook.

Each crash is followed by another one while what was begun is carried on. Then the saga ends, no effect stands twice,
nothing is left over, and the version before has answered whenever the platform was up. `make crash-test` runs all of
them, `make test` a sample; KNARR_CRASH_SEED chooses the same one again.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from seedwork.crash import POINTS
from seedwork.testing.ports import block_of_ports
from tests.crash.cases import CASES, Case
from tests.crash.crashing import CrashingKnarr
from tests.crash.scenes import ENDS_ITS_APP, SCENES, Subject, play, play_at_any_moment
from tests.e2e.harness import remove
from tests.e2e.warm import Launcher

MOMENTS = 30
"""Kills at moments that nobody chose, in `make crash-test`."""
SAMPLE = 3
"""Cases in `make test`, two crashes each."""


@dataclass
class Bench:
    """Crashes one platform after the other; one that has failed a case is not used again."""

    ports: int
    launcher: Launcher
    knarr: CrashingKnarr | None = None
    subject: Subject | None = None
    apps: int = 0

    def play(self, case: Case) -> None:
        """One case."""
        self.run(case.name, partial(play, case=case), ends_its_app=case.scene in ENDS_ITS_APP)

    def run(self, name: str, story: Callable[[CrashingKnarr, Subject], None], *, ends_its_app: bool = False) -> None:
        """A story, on a platform that is up and well."""
        knarr = self.knarr or self._new()
        subject = self.subject or self._new_app(knarr)
        self.knarr = self.subject = None
        try:
            story(knarr, subject)
        except BaseException as error:
            error.add_note(f"{name}; the platform said:\n{knarr.last_words()}")
            self._end(knarr)
            raise
        self.knarr, self.subject = knarr, None if ends_its_app else subject

    def close(self) -> None:
        """End the platform, and the process that its starts are forks of."""
        if self.knarr is not None:
            self._end(self.knarr)

    def _new(self) -> CrashingKnarr:
        knarr = CrashingKnarr(Path(tempfile.mkdtemp(prefix="knarr-crash-")), self.ports, self.launcher)
        knarr.start()
        return knarr

    def _new_app(self, knarr: CrashingKnarr) -> Subject:
        self.apps += 1
        return Subject.made(knarr, f"app-{self.apps}")

    def _end(self, knarr: CrashingKnarr) -> None:
        knarr.kill()
        for process in knarr.processes():
            process.kill()
        remove(knarr.folder)


@pytest.fixture(scope="session")
def bench(launcher: Launcher) -> Iterator[Bench]:
    """Where platforms are crashed."""
    with block_of_ports() as ports:
        bench = Bench(ports, launcher)
        yield bench
        bench.close()


@pytest.mark.crash_points
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"crash-{case.scene}")) for case in CASES],
)
def test_a_kill_at_this_point_and_again_during_the_recovery(bench: Bench, case: Case) -> None:
    """Whatever was asked for comes about once, or is undone without a trace."""
    bench.play(case)


@pytest.mark.crash_points
@pytest.mark.xdist_group("crash-moments")
@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_kill_at_any_moment(bench: Bench, number: int) -> None:
    """Also in the middle of an effect, and in the middle of a start; the moments are others each time."""
    seed = _seed() + number
    chance = random.Random(seed)  # noqa: S311  no secret
    name = chance.choice(("push", "failing-push", "restart"))
    first_s, second_s = chance.uniform(0, 1.5), chance.uniform(0, 2.5)
    bench.run(
        f"KNARR_CRASH_SEED={seed - number}: {name}, killed after {first_s:.3f} s and {second_s:.3f} s",
        partial(play_at_any_moment, name=name, first_s=first_s, second_s=second_s),
    )


@pytest.mark.xdist_group("crash-sample")
def test_a_sample_of_the_crash_points(bench: Bench, record_property: Callable[[str, object], None]) -> None:
    """A few of them with each run of the tests, others each time."""
    seed = _seed()
    cases = random.Random(seed).sample(CASES, SAMPLE)  # noqa: S311  no secret
    record_property("summary", f"crash points: KNARR_CRASH_SEED={seed} tried {', '.join(each.name for each in cases)}")
    for case in cases:
        bench.play(case)


def _seed() -> int:
    return int(os.environ.get("KNARR_CRASH_SEED") or time.time_ns() % 1_000_000)


def test_every_point_of_the_table_is_tried() -> None:
    """A point that nobody tries proves nothing."""
    assert {case.point.partition("/")[0] for case in CASES} == set(POINTS)
    assert {case.scene for case in CASES} == set(SCENES)
