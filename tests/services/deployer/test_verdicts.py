"""What a pod of a cluster says of itself, by statuses as clusters wrote them."""

from typing import Any

import pytest

from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.verdicts import hopeless, judge, next_start_ms, read_pods, state_of

MISSED = {
    "exitCode": 137,
    "finishedAt": None,
    "message": "The container could not be located when the pod was deleted.  The container used to be Running",
    "reason": "ContainerStatusUnknown",
    "startedAt": None,
}
"""As a kubelet of 1.20 writes it in `lastState`, and newer ones in `state`."""
STARTING: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
DELETED_AT, TOLD_AT = "2026-11-21T19:56:41Z", "2026-11-21T19:56:11Z"


def ended(at: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": at}}


def is_over(*containers: dict[str, Any], deleted: bool = True) -> bool:
    metadata: dict[str, Any] = {"name": "web-1", "creationTimestamp": "2026-11-21T19:50:00Z", "labels": {}}
    if deleted:
        metadata |= {"deletionTimestamp": DELETED_AT, "deletionGracePeriodSeconds": 30}
    statuses = [{"name": "web", "ready": False, "restartCount": 0, **each} for each in containers]
    (pod,) = read_pods([{"metadata": metadata, "status": {"phase": "Running", "containerStatuses": statuses}}])
    return pod.over


@pytest.mark.parametrize(
    "container",
    [
        {"state": ended(TOLD_AT)},
        {"state": STARTING, "lastState": {"terminated": MISSED}},
        {"state": {"terminated": MISSED}},
    ],
    ids=["it ended", "its end was missed", "its end was missed, newer"],
)
def test_a_deleted_pod_is_over_when_its_containers_are(container: dict[str, Any]) -> None:
    """Also where the kubelet missed how one ended: such a pod stays for up to 70 s, and nothing of it runs."""
    assert is_over(container)
    assert is_over(container, {"state": ended(DELETED_AT)})
    assert not is_over(container, {"state": {"running": {"startedAt": TOLD_AT}}})
    assert not is_over(container, deleted=False)


@pytest.mark.parametrize(
    "container",
    [
        {"state": {"running": {"startedAt": TOLD_AT}}},
        {"state": {"running": {"startedAt": TOLD_AT}}, "lastState": {"terminated": MISSED}},
        {"state": STARTING},
        {"state": STARTING, "lastState": ended(TOLD_AT)},
        {"state": ended("2026-11-21T19:56:10Z")},
        {"state": STARTING, "lastState": {"terminated": {**MISSED, "message": "…when the pod was terminated"}}},
    ],
    ids=["runs", "runs again", "starts", "is started again", "ended before it was told", "lost before it was told"],
)
def test_what_runs_or_may_just_be_started_is_not_over(container: dict[str, Any]) -> None:
    """A kubelet that has not heard of the end yet may start once more what ended by itself."""
    assert not is_over(container)


DIGEST, CONFIG = "sha256:aaaa", "sha256:bbbb"


def pod_of(status: dict[str, Any], *containers: dict[str, Any]) -> dict[str, Any]:
    annotations = {objects.PROCESS: "web", objects.DIGEST: DIGEST, objects.CONFIG_DIGEST: CONFIG}
    labels = {objects.SAGA: "s", objects.PROCESS: "web"}
    created = {"name": "web-1", "creationTimestamp": TOLD_AT, "labels": labels, "annotations": annotations}
    statuses = [{"name": "app", "ready": False, "restartCount": 0, **each} for each in containers]
    return {"metadata": created, "status": {"phase": "Running", "containerStatuses": statuses, **status}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


NO_ROOM = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1: Insufficient cpu"}


@pytest.mark.parametrize(
    ("item", "blame"),
    [
        (pod_of({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}), "node"),
        (pod_of({"phase": "Failed", "reason": "OutOfcpu"}), "node"),
        (pod_of({}, waiting("RunContainerError", "write /x: no space left on device")), "node"),
        (pod_of({"conditions": [NO_ROOM]}), "room"),
        (pod_of({}, waiting("ErrImagePull", "manifest unknown")), "pull"),
        (pod_of({}, waiting("RunContainerError", "exec: no-such-program")), "app"),
        (pod_of({}, {"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}), "app"),
    ],
    ids=["evicted", "not admitted", "disk full", "no room", "no image", "no program", "exit"],
)
def test_a_fault_of_the_platform_is_not_the_app_s(item: dict[str, Any], blame: str) -> None:
    """Whose fault it is decides whether the deployment is undone, and who gets the advice."""
    standing = judge([], [item], wanted={"web": 1}, digests=frozenset({DIGEST}), kept=False)
    assert standing.fault is not None
    assert standing.fault.blame == blame


def test_an_image_that_cannot_be_pulled_is_said_at_the_first_attempt() -> None:
    """Not after the patience for a start."""
    (pod,) = read_pods([pod_of({}, waiting("ErrImagePull", "connection refused"))])
    fault = hopeless(pod)
    assert fault is not None
    assert (fault.blame, fault.why) == ("pull", "connection refused")


def test_a_pod_that_its_node_ended_does_not_hold_up_the_one_in_its_place() -> None:
    """Its record stays in the cluster for long."""
    evicted = pod_of({"phase": "Failed", "reason": "Evicted"})
    assert state_of(read_pods([evicted])[0]) == (
        "down",
        "web.1 was ended by its node (Evicted); the cluster makes another one",
    )
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": TOLD_AT}
    runs = {"state": {"running": {"startedAt": TOLD_AT}}, "imageID": f"docker-pullable://registry/shop@{DIGEST}"}
    there = pod_of({"conditions": [ready]}, runs)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    deployment = {
        "metadata": {"generation": 1, "labels": {objects.PROCESS: "web"}},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, **counts},
    }
    standing = judge([deployment], [evicted, there], wanted={"web": 1}, digests=frozenset({DIGEST}), kept=False)
    assert standing.runs


def test_a_pod_that_runs_another_image_has_drifted() -> None:
    """It is not `up` under the release's digest; an engine may name the image by its config."""
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": TOLD_AT}

    def state(image_id: str) -> str:
        running = {"state": {"running": {"startedAt": TOLD_AT}}, "imageID": image_id}
        (pod,) = read_pods([pod_of({"conditions": [ready]}, running)])
        return state_of(pod)[0]

    assert state(f"docker-pullable://registry/shop@{DIGEST}") == "up"
    assert state(f"docker://{CONFIG}") == "up"
    assert state("docker-pullable://registry/evil@sha256:cccc") == "drifted"


@pytest.mark.parametrize(("said", "wait_s"), [("10s", 10), ("1m20s", 80), ("5m0s", 300)])
def test_the_next_start_of_a_crashed_pod_is_what_the_kubelet_says(said: str, wait_s: int) -> None:
    """Counted from its last end."""
    last = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": TOLD_AT}}
    crashed = waiting("CrashLoopBackOff", f"back-off {said} restarting failed container=app pod=web-1") | {
        "lastState": last
    }
    (pod,) = read_pods([pod_of({}, crashed)])
    assert pod.ended is not None
    assert next_start_ms(pod) == pod.ended.at_ms + wait_s * 1000
    assert next_start_ms(read_pods([pod_of({}, {"lastState": last, **waiting("ContainerCreating")})])[0]) is None
