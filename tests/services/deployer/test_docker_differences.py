"""Containers of a Docker engine against the release that serves, without an engine."""

from dataclasses import replace

import pytest

from ocistore.store import Image
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.differences import differences, missing, state_of
from services.deployer.adapters.docker.engine import Container
from services.deployer.adapters.docker.shown import next_start_ms
from services.deployer.checks import Patience, checks_of
from services.deployer.ports import Release
from services.source.contract import HealthCheck
from tests.services.deployer.conftest import Shelf

REFERENCE = "registry/shop@sha256:1"
RUNS = Container(
    id="c1",
    name="web-1",
    labels={spec.PROCESS: "web.1", spec.SAGA: "s"},
    status="running",
    exit_code=0,
    error="",
    out_of_memory=False,
    started_ms=1_000,
    finished_ms=0,
    restarts=0,
    image=REFERENCE,
    image_id="sha256:2",
    addresses={"net": "172.18.0.2"},
    networks=frozenset({"net"}),
    restart_policy="unless-stopped",
)


@pytest.fixture
async def image(shelf: Shelf) -> Image:
    return await shelf.image(processes={"worker": ("w",)})


@pytest.fixture
def release(shelf: Shelf, image: Image) -> Release:
    return shelf.release(image)


@pytest.mark.parametrize(
    ("container", "found"),
    [
        (RUNS, []),
        (replace(RUNS, status="restarting", restarts=3), []),
        (replace(RUNS, status="removing"), []),
        (None, [("the container of web.1 is gone", "down", "make")]),
        (replace(RUNS, status="exited"), [("the container of web.1 was stopped", "down", "start")]),
        (replace(RUNS, status="paused"), [("the container of web.1 is paused", "down", "resume")]),
        (replace(RUNS, image="evil"), [("the container of web.1 runs the image evil", "drifted", "replace")]),
        (
            replace(RUNS, networks=frozenset({"bridge"})),
            [("the container of web.1 is not in the app's network", "down", "replace")],
        ),
    ],
    ids=["runs", "crashed", "is removed", "gone", "stopped", "paused", "other image", "other network"],
)
def test_what_differs_is_named_with_what_mends_it(
    release: Release, container: Container | None, found: list[tuple[str, str, str]]
) -> None:
    """A crash is none: the engine starts it again by itself."""
    there = [container] if container else []
    met = differences(release, there, reference=REFERENCE, networks=["net"])
    assert [(each.what, each.state, each.remedy) for each in met] == found


def test_instances_without_a_container_are_listed_as_down(release: Release) -> None:
    """Their names are those that the release wants."""
    two = replace(release, formation={"web": 2, "worker": 1})
    assert [(each.process, each.state) for each in missing(two, [RUNS], since_ms=5)] == [
        ("web.2", "down"),
        ("worker.1", "down"),
    ]


def test_only_a_container_that_the_engine_should_keep_running_is_stopped_by_somebody() -> None:
    """Before it was observed, an end is the app's own."""
    assert state_of(replace(RUNS, status="exited", restart_policy="no")) is None
    assert state_of(replace(RUNS, status="exited")) == (
        "down",
        "its container was stopped outside of knarr; it is started again",
    )


def test_the_next_start_of_a_crashed_container_is_known() -> None:
    """0.1 s, twice as long each time, a minute at most; from the beginning where it had run for 10 s."""
    crashed = replace(RUNS, status="restarting", started_ms=1_000, finished_ms=2_000)
    assert [next_start_ms(replace(crashed, restarts=n)) - 2_000 for n in (1, 2, 5, 50)] == [100, 200, 1_600, 60_000]
    assert next_start_ms(replace(crashed, restarts=50, finished_ms=20_000)) == 20_100


def test_the_checks_of_a_process_travel_in_a_label(release: Release) -> None:
    """What is completed after a restart of ours is what the app declared."""
    declared = {"web": (HealthCheck(path="/health", headers={"Host": "shop.example.com"}, attempts=2),)}
    labels = spec.labels_of("knarr", replace(release, checks=declared), "web.1", step="deploy", port=8080)
    assert checks_of("web", spec.declared_checks(labels), patience=Patience()) == checks_of(
        "web", declared, patience=Patience()
    )
    assert spec.declared_checks({spec.PROCESS: "worker.1"}) == {}
