"""What a release wants in a cluster against what is there, without a cluster."""

import copy
from typing import Any

import pytest

from ocistore.store import Image
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import BUDGETS, Object
from services.deployer.adapters.kubernetes.comparing import differences, differs, tampered
from services.deployer.ports import Release
from tests.services.deployer.conftest import Shelf

SHAPE = objects.Shape(installation="knarr")


@pytest.fixture
async def image(shelf: Shelf) -> Image:
    return await shelf.image(processes={"worker": ("w",)})


@pytest.fixture
def release(shelf: Shelf, image: Image) -> Release:
    return shelf.release(image, formation={"web": 2, "worker": 1})


@pytest.fixture
def web(release: Release) -> Object:
    facts = objects.facts_of(release.image, f"registry/shop@{release.digest}", default_user=10_001)
    return objects.deployment("ns", release, "web", facts, SHAPE)


def as_stored(item: Object) -> Object:
    """As an API server gives it back: defaults, quantities in their shortest form, zeros left out."""
    stored = copy.deepcopy(item)
    stored["metadata"] |= {"uid": "1", "resourceVersion": "2", "generation": 1}
    stored["status"] = {"replicas": 2}
    stored["spec"]["strategy"] = {"type": "RollingUpdate"}
    del stored["spec"]["minReadySeconds"]
    pod = stored["spec"]["template"]["spec"]
    pod["dnsPolicy"] = "ClusterFirst"
    (container,) = pod["containers"]
    container["terminationMessagePath"] = "/dev/termination-log"
    container["resources"]["limits"]["cpu"] = "1"
    container["readinessProbe"]["successThreshold"] = 1
    return stored


def at(item: Any, *path: str | int) -> Any:
    for each in path:
        item = item[each]
    return item


def test_what_an_api_server_adds_is_no_difference(web: Object) -> None:
    """Its defaults, and `1000m` as `1`."""
    assert not differs(web, as_stored(web))


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("spec", "replicas"), 0, "was scaled to 0"),
        (("spec", "template", "spec", "containers", 0, "image"), "evil", "has the image evil"),
        (("spec", "template", "spec", "containers", 0, "command"), ["sh"], "was changed"),
        (("spec", "template", "spec", "automountServiceAccountToken"), True, "was changed"),
        (("spec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "9Gi", "was changed"),
        (("metadata", "labels", objects.SAGA), "other", "was changed"),
    ],
)
def test_what_somebody_changed_is_named(web: Object, path: tuple[str | int, ...], value: object, what: str) -> None:
    """Replicas and the image by their values."""
    there = as_stored(web)
    at(there, *path[:-1])[path[-1]] = value
    assert [each.what for each in differences([web], [there])] == [f"the Deployment of web {what}"]


def test_what_is_gone_or_going_is_named(web: Object) -> None:
    """A deletion that waits for its finalizers as well."""
    going = as_stored(web)
    going["metadata"]["deletionTimestamp"] = "2026-11-21T19:56:41Z"
    for there in ([], [going]):
        assert [each.what for each in differences([web], there)] == ["the Deployment of web is gone"]


def test_a_deployment_itself_tells_of_its_scale_and_its_image(web: Object) -> None:
    """Without the release, which costs a look into the database and the registry."""
    there = as_stored(web)
    assert tampered(there) == ""
    there["spec"]["replicas"] = 0
    assert tampered(there) == "was scaled to 0"
    there = as_stored(web)
    there["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    assert tampered(there) == "has the image evil"


def test_two_instances_are_spread_and_not_taken_away_together(release: Release, web: Object) -> None:
    """One alone has neither: a budget would keep its node from being drained."""
    pod = web["spec"]["template"]["spec"]
    keys = {each["topologyKey"]: each["whenUnsatisfiable"] for each in pod["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname": "ScheduleAnyway", "topology.kubernetes.io/zone": "ScheduleAnyway"}
    new, old = BUDGETS
    budget = objects.disruption_budget("ns", release, "web", SHAPE, old)
    assert budget is not None
    assert budget["apiVersion"] == "policy/v1beta1"
    assert budget["spec"] == {"maxUnavailable": 1, "selector": web["spec"]["selector"]}
    assert objects.disruption_budget("ns", release, "worker", SHAPE, new) is None
    facts = objects.facts_of(release.image, "reference", default_user=1)
    worker = objects.deployment("ns", release, "worker", facts, SHAPE)
    assert "topologySpreadConstraints" not in worker["spec"]["template"]["spec"]


def test_an_app_that_fixes_its_port_is_asked_there(image: Image) -> None:
    """Whatever its image exposes."""
    assert objects.facts_of(image, "reference", default_user=1, port=5000).port == 5000
    assert objects.facts_of(image, "reference", default_user=1).port == 8080


def test_a_one_off_process_is_a_pod_that_is_not_started_again(release: Release) -> None:
    """It has the release's label and environment, no probe, and a limit."""
    facts = objects.facts_of(release.image, "reference", default_user=1)
    pod = objects.run_pod("ns", release, ("sh", "-c", "x"), facts, SHAPE, name="n", label="run.1", now="5")
    (container,) = pod["spec"]["containers"]
    assert (pod["spec"]["restartPolicy"], pod["spec"]["activeDeadlineSeconds"]) == ("Never", 86_400)
    assert pod["metadata"]["labels"][objects.SAGA] == release.saga_id
    assert container["command"] == ["sh", "-c", "x"]
    assert {"name": "KNARR_INSTANCE", "value": "run.1"} in container["env"]
    assert [each["name"] for each in container["env"]].count("KNARR_INSTANCE") == 1
    assert not any("Probe" in name for name in container)
