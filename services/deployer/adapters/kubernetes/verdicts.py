"""What the cluster says of a release's Deployments and pods in; whether it runs, and why not, out. Pure.

A pod says the same thing in many places (phase, conditions, container states); here it is read once. Reference:
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import Object
from services.deployer.ports import Instance, InstanceState

Blame = Literal["app", "room", "quota", "pull", "node"]
"""The app's own fault; no node has room; the namespace's quota is used up; the image is not pulled; a node's fault."""

_NEVER = frozenset({"CreateContainerConfigError", "InvalidImageName", "RunContainerError", "ErrImageNeverPull"})
"""A container that waits for one of these reasons waits for ever."""
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_NODE_ENDED = frozenset(
    {
        *("Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeAffinity"),
        *("OutOfcpu", "OutOfmemory", "OutOfpods", "UnexpectedAdmissionError"),
    }
)
"""Reasons for which a node ends a pod as a whole: not for what the app did."""
_NODE_HINTS = ("no space left on device", "cannot allocate memory", "too many open files", "deadline exceeded")
"""In the message of a container that a node could not start."""
_BACK_OFF = re.compile(r"back-off (?:(\d{1,4})m)?(\d{1,4})s", re.ASCII)
_KILLED = 137
_MISSED = "ContainerStatusUnknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended last."""

    exit_code: int
    reason: str
    """`Error`, `Completed`, `OOMKilled`, `ContainerCannotRun` …"""
    message: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod of ours."""

    name: str
    label: str
    """`web.1`: numbers go by age."""
    process: str
    labels: Mapping[str, str]
    ready: bool
    runs: bool
    since_ms: int
    """When it became as it is."""
    stopping: bool
    over: bool
    """Its containers have ended since it was told to go: only the cluster's record of it is left."""
    restarts: int
    ended: Ended | None
    waiting: str
    """The reason for which its container waits."""
    message: str
    """More about that."""
    unschedulable: str
    """Why no node takes it; empty: one did."""
    image_id: str
    started_ms: int = 0
    """Start of its container; 0: it does not run."""
    address: str = ""
    """Of the pod in the cluster's network."""
    failed: bool = False
    """It is over and was not told to go: the cluster's record of it stays, and another one is made in its place."""
    digests: frozenset[str] = frozenset()
    """Names that its image may have, as its release says; empty: it does not say."""

    @property
    def saga_id(self) -> str:
        """Of its release."""
        return self.labels.get(objects.SAGA, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a release does not run."""

    what: str
    why: str = ""
    blame: Blame = "app"
    pod: str = ""
    """Whose last lines say more."""
    at_once: bool = True
    """Whether waiting longer is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a release is."""

    runs: bool
    note: str
    fault: Fault | None = None
    pods: Sequence[Pod] = field(default_factory=tuple)


def wants_none(owner: Object) -> bool:
    """Whether the controller of this Deployment, ReplicaSet or Job has heard that no pod of it is wanted."""
    spec, status = owner.get("spec") or {}, owner.get("status") or {}
    if "parallelism" in spec:
        return spec["parallelism"] == 0 and not status.get("active")
    return spec.get("replicas") == 0 and status.get("observedGeneration", 0) >= owner["metadata"]["generation"]


def read_pods(items: Sequence[Object]) -> list[Pod]:
    """The pods of ours, the oldest of each process first."""
    grouped: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for item in items:
        labels = item["metadata"].get("labels") or {}
        grouped[labels.get(objects.SAGA, ""), labels.get(objects.PROCESS, "")].append(item)
    found = []
    for group in grouped.values():
        group.sort(key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))
        found += [_pod(item, number) for number, item in enumerate(group, start=1)]
    return found


def judge(
    deployments: Sequence[Object],
    items: Sequence[Object],
    *,
    wanted: Mapping[str, int],
    digests: frozenset[str],
    kept: bool,
) -> Standing:
    """Whether what was asked for was observed: generation, replicas, digest.

    Args:
        deployments: Of the release.
        items: Its pods.
        wanted: Instances by process type.
        digests: Names of its image: of its manifest and of its config.
        kept: It has the traffic: what crashes is started again, and judged only when our patience ends.
    """
    there = [each for each in read_pods(items) if not each.stopping]
    pods = [each for each in there if not each.failed]
    lost = [fault for pod in there if pod.failed and (fault := _fault(pod))]
    faults = [fault for pod in pods if not pod.ready and (fault := _fault(pod))]
    faults += [_stranger(pod) for pod in pods if pod.ready and pod.image_id and _digest(pod) not in digests]
    final = next((fault for fault in faults if fault.at_once), None)
    if final and not kept:
        return Standing(runs=False, note=final.what, fault=final, pods=pods)
    by_process = {_process_of(each): each for each in deployments}
    rolled_out = all(_rolled_out(by_process.get(process), count) for process, count in wanted.items())
    ready = sum(pod.ready and _digest(pod) in digests for pod in pods)
    if rolled_out and not faults and ready == sum(wanted.values()):
        return Standing(runs=True, note="", pods=pods)
    fault = next(iter([*faults, *lost]), None) or _failing(deployments)
    note = fault.what if fault else f"{ready} of {sum(wanted.values())} instances are ready"
    return Standing(runs=False, note=note, fault=fault, pods=pods)


def instance(pod: Pod) -> Instance:
    """As the port wants it."""
    state, note = state_of(pod)
    return Instance(
        id=pod.name,
        app_id=pod.labels[objects.APP_ID],
        saga_id=pod.saga_id,
        release=int(pod.labels[objects.RELEASE]),
        process=pod.label,
        state=state,
        since_ms=pod.since_ms,
        restarts=pod.restarts,
        note=note,
        digest=_digest(pod),
        next_start_ms=next_start_ms(pod),
        first_answer_ms=max(0, pod.since_ms - pod.started_ms)
        if pod.ready and pod.started_ms and not pod.restarts
        else None,
    )


def state_of(pod: Pod) -> tuple[InstanceState, str]:
    """In one word, and why."""
    if pod.stopping:
        return "stopping", ""
    if pod.failed:
        return "down", f"{_how_it_ended(pod)}; the cluster makes another one"
    if pod.ready and is_strange(pod):
        return "drifted", f"it runs the image {pod.image_id}, which is not the release's; it is replaced"
    if pod.ready:
        return "up", ""
    if pod.ended and (not pod.runs or pod.waiting == "CrashLoopBackOff"):
        return "crashed", f"{_how_it_ended(pod)}; the cluster starts it again"
    note = pod.unschedulable or (f"{pod.waiting}: {pod.message}" if pod.message else pod.waiting)
    return "starting", note or "it does not answer yet"


def is_strange(pod: Pod) -> bool:
    """Whether it runs another image than its release says."""
    return bool(pod.image_id and pod.digests and _digest(pod) not in pod.digests)


def hopeless(pod: Pod) -> Fault | None:
    """Why its container will not start; None, if it may."""
    fault = None if pod.ended and not pod.failed else _fault(pod)
    return fault if fault and (fault.at_once or pod.failed) else None


def ended_early(pod: Pod) -> Fault:
    """The verdict on a container that ended by itself."""
    why = "its last lines say more"
    if pod.ended and pod.ended.reason == "OOMKilled":
        why = f"it used more memory than it may (KNARR_APP_MEMORY_MB); {why}"
    elif pod.ended and pod.ended.exit_code == _KILLED:
        why = f"perhaps it used more memory than it may (KNARR_APP_MEMORY_MB); {why}"
    when = "before it answered" if pod.process == objects.WEB else "at once"
    return Fault(what=f"{_how_it_ended(pod)} {when}", why=why, pod=pod.name)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fault(pod: Pod) -> Fault | None:
    if pod.failed and pod.ended and pod.ended.reason in _NODE_ENDED:
        why = f"{pod.ended.reason}: {pod.ended.message}" if pod.ended.message else pod.ended.reason
        return Fault(what=f"The node ended {pod.label}", why=why, blame="node", at_once=False)
    if pod.waiting in _NEVER or (pod.ended and pod.ended.reason == "ContainerCannotRun"):
        return _cannot_start(pod)
    return ended_early(pod) if pod.ended else _waits(pod)


def _cannot_start(pod: Pod) -> Fault:
    why = pod.message or (pod.ended.message if pod.ended else "") or pod.waiting
    if any(hint in why for hint in _NODE_HINTS):
        return Fault(what=f"The node cannot start {pod.label}", why=why, blame="node", at_once=False)
    return Fault(what=f"{pod.label} cannot be started", why=why, pod=pod.name)


def _waits(pod: Pod) -> Fault | None:
    if pod.waiting in _PULL:
        why = pod.message or pod.waiting
        return Fault(what=f"The cluster cannot pull the image of {pod.label}", why=why, blame="pull")
    if pod.unschedulable:
        return Fault(what=f"No node has room for {pod.label}", why=pod.unschedulable, blame="room", at_once=False)
    if pod.waiting and pod.waiting not in {"ContainerCreating", "PodInitializing"}:
        why = f"{pod.waiting}: {pod.message}" if pod.message else pod.waiting
        return Fault(what=f"{pod.label} is not started", why=why, pod=pod.name, at_once=False)
    return None


def next_start_ms(pod: Pod) -> int | None:
    """Time at which the kubelet starts a crashed container again, as it says itself; None: it does not wait."""
    said = _BACK_OFF.search(pod.message) if pod.waiting == "CrashLoopBackOff" else None
    if said is None or pod.ended is None or not pod.ended.at_ms:
        return None
    return pod.ended.at_ms + 1000 * (60 * int(said[1] or 0) + int(said[2]))


def _stranger(pod: Pod) -> Fault:
    return Fault(
        what=f"{pod.label} does not run the image that was asked for", why=f"it runs {pod.image_id}", pod=pod.name
    )


def _failing(deployments: Sequence[Object]) -> Fault | None:
    """A controller that may not make its pods."""
    for deployment in deployments:
        for condition in deployment.get("status", {}).get("conditions") or ():
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                what = f"There is no room for {_process_of(deployment)}"
                return Fault(what=what, why=condition.get("message", ""), blame="quota", at_once=False)
    return None


def _rolled_out(deployment: Object | None, count: int) -> bool:
    """Whether its controller has seen this generation and every replica of it is available."""
    if deployment is None:
        return False
    status = deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and deployment["spec"]["replicas"] == count
        and status.get("replicas", 0) == count
        and status.get("updatedReplicas", 0) == count
        and status.get("readyReplicas", 0) == count
        and status.get("availableReplicas", 0) == count
    )


def _process_of(item: Object) -> str:
    annotations = item["metadata"].get("annotations") or {}
    return str(annotations.get(objects.PROCESS) or item["metadata"]["labels"].get(objects.PROCESS, ""))


def _digest(pod: Pod) -> str:
    """Of `docker-pullable://host/repository@sha256:…` or `docker://sha256:…`."""
    return f"sha256:{pod.image_id.rpartition('sha256:')[2]}" if pod.image_id else ""


def _how_it_ended(pod: Pod) -> str:
    if pod.ended is None:
        return f"{pod.label} ended"
    if pod.ended.reason in _NODE_ENDED:
        return f"{pod.label} was ended by its node ({pod.ended.reason})"
    if pod.ended.reason == "OOMKilled":
        return f"{pod.label} ran out of memory"
    code = pod.ended.exit_code
    return f"{pod.label} {f'was ended by signal {code - 128}' if code > 128 else f'exited with status {code}'}"


def _pod(item: Object, number: int) -> Pod:
    metadata, status = item["metadata"], item.get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    container: Object = next(iter(status.get("containerStatuses") or ()), {})
    state = container.get("state") or {}
    waiting, running = state.get("waiting") or {}, state.get("running")
    ready = conditions.get("Ready", {})
    scheduled = conditions.get("PodScheduled", {})
    process = _process_of(item)
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    return Pod(
        name=metadata["name"],
        label=f"{process}.{number}",
        process=process,
        labels=metadata.get("labels") or {},
        ready=ready.get("status") == "True",
        runs=running is not None,
        since_ms=ms(ready.get("lastTransitionTime") or metadata["creationTimestamp"]),
        stopping="deletionTimestamp" in metadata,
        over=_is_over(metadata, status),
        restarts=int(container.get("restartCount", 0)),
        ended=_evicted(status) or (_ended(ended) if ended else None),
        waiting=waiting.get("reason", ""),
        message=waiting.get("message", ""),
        unschedulable=scheduled.get("message", "no node was found")
        if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
        else "",
        image_id=container.get("imageID", ""),
        started_ms=ms((running or {}).get("startedAt") or ""),
        address=status.get("podIP", ""),
        failed=status.get("phase") == "Failed" and "deletionTimestamp" not in metadata,
        digests=_digests(metadata),
    )


def _digests(metadata: Object) -> frozenset[str]:
    annotations = metadata.get("annotations") or {}
    named = [annotations.get(each, "") for each in (objects.DIGEST, objects.CONFIG_DIGEST)]
    return frozenset(named) if all(named) else frozenset()


def _is_over(metadata: Object, status: Object) -> bool:
    """Whether nothing of it runs, or will: one that ended by itself before may just be started again."""
    containers = status.get("containerStatuses") or ()
    if "deletionTimestamp" not in metadata or not containers:
        return False
    told_ms = ms(metadata["deletionTimestamp"]) - 1000 * (metadata.get("deletionGracePeriodSeconds") or 0)
    return all(_has_ended(each, told_ms) for each in containers)


def _has_ended(container: Object, told_ms: int) -> bool:
    """Since it was told to; or the kubelet missed its end, and found none any more when it ended the pod."""
    now, before = ((container.get(name) or {}) for name in ("state", "lastState"))
    end = now.get("terminated")
    if end is not None and ms(end.get("finishedAt") or "") >= told_ms:
        return True
    missed = end or ("running" not in now and before.get("terminated")) or {}
    return missed.get("reason") == _MISSED and "pod was deleted" in missed.get("message", "")


def _ended(terminated: Object) -> Ended:
    return Ended(
        exit_code=int(terminated.get("exitCode", 0)),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        at_ms=ms(terminated.get("finishedAt") or ""),
    )


def _evicted(status: Object) -> Ended | None:
    """A pod that the node ended as a whole, such as for want of disk."""
    if status.get("phase") != "Failed" or not status.get("reason"):
        return None
    return Ended(exit_code=1, reason=status.get("reason", ""), message=status.get("message", ""), at_ms=0)


def ms(text: str) -> int:
    """RFC 3339 as milliseconds since 1970; 0 for none."""
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else 0
