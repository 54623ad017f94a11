"""When a pod of a cluster is over, by statuses as clusters wrote them."""

from typing import Any

import pytest

from services.deployer.adapters.kubernetes.verdicts import read_pods

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
