"""The state of an app in one word, from what its release wants and what is observed."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.deployer.ports import Instance
from services.deployer.releases import KnownRelease
from services.deployer.state import CRASH_LOOP_S, has_address, state_of

NOW = 1_000_000_000


def release(formation: Mapping[str, int], *, processes: tuple[str, ...] = ("web", "worker")) -> KnownRelease:
    return KnownRelease(
        saga_id="s1",
        app_id="a1",
        number=3,
        kind="deploy",
        commit=None,
        repository="shop",
        digest="sha256:1",
        config_version=1,
        formation=formation,
        processes=processes,
        layers=(),
        manifest_hash="",
        state="live",
        created_ms=0,
    )


def instance(state: str, *, process: str = "web.1", saga_id: str = "s1", **more: Any) -> Instance:
    given = {"since_ms": NOW - 1000, **more}
    return Instance(id=process, app_id="a1", saga_id=saga_id, release=3, process=process, state=state, **given)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    ("formation", "instances", "trouble", "expected"),
    [
        ({"web": 1}, [instance("up")], "", "live"),
        ({"web": 2}, [instance("up")], "", "starting"),
        ({"web": 1}, [instance("starting", note="it does not answer yet")], "", "starting"),
        ({"web": 1}, [instance("up", saga_id="other")], "", "starting"),
        ({"web": 1}, [instance("up")], "its port is taken", "down"),
        ({"web": 1}, [instance("down")], "", "down"),
        ({"web": 1}, [instance("drifted")], "", "drifted"),
        ({"web": 1}, [instance("crashed", restarts=1)], "", "crash_loop"),
        ({"web": 1}, [instance("up", restarts=1)], "", "live"),
        ({"web": 1}, [instance("up", restarts=2)], "", "crash_loop"),
        ({"web": 1}, [instance("up", restarts=2, since_ms=NOW - CRASH_LOOP_S * 1000)], "", "live"),
        ({"web": 1, "worker": 1}, [instance("up"), instance("crashed", process="worker.1")], "", "crash_loop"),
        ({"web": 0, "worker": 0}, [], "", "stopped"),
        ({"web": 0, "worker": 0}, [], "its port is taken", "stopped"),
        ({"web": 0, "worker": 1}, [instance("up", process="worker.1")], "", "no_process"),
    ],
)
def test_the_state_is_what_is_observed_not_what_is_hoped(
    formation: Mapping[str, int], instances: list[Instance], trouble: str, expected: str
) -> None:
    """A crash loop counts also while its instance answers, until it has run for a while."""
    state, reason = state_of(release(formation), instances, trouble, now_ms=NOW)
    assert state == expected
    assert bool(reason) == (state != "live")


def test_before_the_first_release_there_is_none() -> None:
    """The reason of a failed start is kept."""
    assert state_of(None, [], "", now_ms=NOW)[0] == "no_release"
    assert state_of(None, [], "its port is taken", now_ms=NOW) == ("no_release", "its port is taken")


def test_a_worker_alone_is_live_and_has_no_address() -> None:
    """It has no web process that somebody could have scaled to zero."""
    worker = release({"worker": 1}, processes=("worker",))
    assert state_of(worker, [instance("up", process="worker.1")], "", now_ms=NOW)[0] == "live"
    assert not has_address(worker)
    assert not has_address(release({"web": 0, "worker": 1}))
    assert has_address(release({"web": 1}))


def test_a_crash_loop_says_how_often_and_why() -> None:
    """The count and the runtime's note."""
    crashed = instance("crashed", restarts=4, note="it ended with status 3; it starts again in 8 s")
    _, reason = state_of(release({"web": 1}), [crashed], "", now_ms=NOW)
    assert reason == "web.1 crashed 4 times: it ended with status 3; it starts again in 8 s"


def test_an_app_whose_only_process_was_never_started_says_that_nothing_runs() -> None:
    """The command line puts the command for the app's own process type behind it; there is no address."""
    worker = release({"worker": 0}, processes=("worker",))
    assert state_of(worker, [], "", now_ms=NOW) == ("stopped", "nothing runs")
    assert not has_address(worker)
