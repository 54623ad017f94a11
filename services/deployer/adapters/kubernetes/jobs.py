"""A Job of one pod in, how it ended out."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from seedwork.errors import Conflict
from services.deployer.adapters.kubernetes import verdicts
from services.deployer.adapters.kubernetes.cluster import JOB, POD, Cluster, Object

_WATCH_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a Job ended."""

    fault: str
    """Empty: well."""
    pod: str
    """Whose lines say more; empty: there was none."""
    still_there: bool = False
    """Our patience ended, the Job did not."""
    platform: bool = False
    """It is no fault of the app."""


async def ended(
    cluster: Cluster, namespace: str, labels: Mapping[str, str], *, limit_s: float, start_limit_s: float
) -> End:
    """Wait for the end of the Job with these labels.

    Args:
        cluster: Runs it.
        namespace: Where.
        labels: Of the Job and its pod, and of nothing else.
        limit_s: How long it may run.
        start_limit_s: How long its pod may take to begin, the image's pull included.

    Raises:
        Conflict: Somebody removed it.
    """
    clock = asyncio.get_running_loop().time
    began, running_since = clock(), None
    while True:
        jobs = await cluster.list(JOB, namespace, labels)
        listed = await cluster.list(POD, namespace, labels)
        if not jobs.items:
            raise Conflict("The release command was stopped", why="its Job is gone")
        pod = next(iter(verdicts.read_pods(listed.items)), None)
        lost = verdicts.hopeless(pod) if pod else None
        if lost and lost.blame != "app":
            return End(fault=f"could not be run: {lost.what}: {lost.why}", pod="", still_there=True, platform=True)
        fault = _fault(jobs.items[0], pod)
        if fault is None and pod and pod.runs:
            running_since = running_since or clock()
        if fault is not None:
            return End(fault=fault, pod=pod.name if pod else "")
        late, platform = "", False
        if running_since is not None and clock() - running_since > limit_s:
            late = f"ran for longer than {limit_s:g} s (KNARR_RELEASE_COMMAND_TIMEOUT_S)"
        elif running_since is None and clock() - began > start_limit_s:
            late, platform = f"was not begun within {start_limit_s:g} s: {_why_not(pod)}", True
        if late:
            return End(fault=late, pod=pod.name if pod else "", still_there=True, platform=platform)
        await cluster.changed(POD, namespace, labels, listed.version, limit_s=_WATCH_S)


def _fault(job: Object, pod: verdicts.Pod | None) -> str | None:
    """How it failed; empty: it went well; None: it is not over."""
    conditions = job.get("status", {}).get("conditions") or ()
    over = {each["type"]: each.get("reason", "") for each in conditions if each["status"] == "True"}
    if "Complete" in over:
        return ""
    if pod and pod.ended and not pod.runs:
        if pod.ended.reason == "Completed":
            return ""
        how = f": {pod.ended.message}" if pod.ended.reason == "ContainerCannotRun" else ""
        return f"ended with status {pod.ended.exit_code}{how}"
    if "Failed" in over:
        return f"failed ({over['Failed']})"
    if pod and (hopeless := verdicts.hopeless(pod)):
        return f"could not be started: {hopeless.why or hopeless.what}"
    return None


def _why_not(pod: verdicts.Pod | None) -> str:
    if pod is None:
        return "the cluster made no pod; is the namespace's quota used up?"
    return pod.unschedulable or pod.message or pod.waiting or "nothing is known"
