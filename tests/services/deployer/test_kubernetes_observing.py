"""Whose fault it is that a release does not come up in a cluster, by what the cluster says; without a cluster."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from ocistore.store import Image
from seedwork.errors import KnarrError, Unavailable
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import EVENT, Cluster, Kind, Listed
from services.deployer.adapters.kubernetes.observing import Observing, Watched
from services.deployer.adapters.kubernetes.verdicts import Fault, Standing, read_pods
from services.deployer.errors import NoCapacity
from tests.services.deployer.conftest import Shelf
from tests.services.deployer.test_verdicts import STARTING, pod_of

SHAPE = objects.Shape(installation="knarr")
ADVICE_FOR_AUTHORS = ("on your machine", "app.json", "PORT")


class Events:
    """A cluster that has these events and nothing else."""

    def __init__(self, *events: Mapping[str, Any]) -> None:
        self._events = events

    async def list(self, kind: Kind, _namespace: str, _labels: Mapping[str, str], *, fields: str) -> Listed:
        assert (kind, "involvedObject.name=web-1" in fields) == (EVENT, True)
        return Listed([dict(each) for each in self._events], "1")


@pytest.fixture
async def image(shelf: Shelf) -> Image:
    return await shelf.image()


@pytest.fixture
def watched(shelf: Shelf, image: Image) -> Watched:
    release = shelf.release(image)
    return Watched(
        release=release,
        namespace="ns",
        labels={},
        facts=objects.facts_of(image, "registry/shop@sha256:1", default_user=1),
        probes={"web": objects.probes_of(release, "web", SHAPE)},
        digests=frozenset({release.digest}),
        kept=False,
    )


def observing(*events: Mapping[str, Any]) -> Observing:
    return Observing(cast("Cluster", Events(*events)), pull_timeout_s=1.0)


async def test_a_node_that_does_not_start_a_pod_is_named_with_what_it_says(watched: Watched) -> None:
    """Its network or its disk is the platform's: the deployment waits for an operator, and is not undone."""
    older = {"lastTimestamp": "2026-11-21T19:00:00Z", "message": "pulling"}
    newer = {"lastTimestamp": "2026-11-21T19:01:00Z", "message": "Failed to create pod sandbox: no bridge"}
    pods = read_pods([pod_of({}, {"state": STARTING})])
    fault = await observing(newer, older)._given_up(watched, Standing(runs=False, note="", pods=pods), None)
    assert isinstance(fault, NoCapacity)
    assert "Failed to create pod sandbox: no bridge" in fault.message
    assert not any(each in fault.message for each in ADVICE_FOR_AUTHORS)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault(what="No node has room for web.1", why="Insufficient cpu", blame="room"), NoCapacity, "Add a node"),
        (Fault(what="There is no room", why="exceeded quota", blame="quota"), NoCapacity, "KUBERNETES_QUOTA_PODS"),
        (Fault(what="The node ended web.1", why="Evicted", blame="node"), NoCapacity, "kubectl describe nodes"),
        (Fault(what="cannot pull", why="manifest unknown", blame="pull"), Unavailable, "registry/shop@sha256:1"),
    ],
    ids=["room", "quota", "node", "pull"],
)
async def test_a_fault_of_the_platform_has_the_operator_s_advice(
    watched: Watched, fault: Fault, error: type[KnarrError], said: str
) -> None:
    """None of it asks the app's author to change the app."""
    verdict = await observing()._verdict(watched, fault)
    assert type(verdict) is error
    assert said in verdict.message
    assert not any(each in verdict.message for each in ADVICE_FOR_AUTHORS)
