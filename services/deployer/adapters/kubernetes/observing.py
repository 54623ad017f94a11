"""A release's Deployments and pods, watched until all run and pass their checks, or until it is said why not."""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from seedwork.errors import Conflict, KnarrError, Unavailable
from services.deployer.adapters.kubernetes import objects, verdicts
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, EVENT, POD, Cluster
from services.deployer.adapters.kubernetes.followed import Followed
from services.deployer.adapters.kubernetes.probes import Probes
from services.deployer.adapters.kubernetes.reaching import Reaching
from services.deployer.adapters.lines import blotted
from services.deployer.checks import Check
from services.deployer.errors import AppDoesNotStart, NoCapacity
from services.deployer.ports import Note, Release

AGAIN = "Run the image on your machine with PORT set to see the same."
LONGER = "If it only needs longer, set KNARR_START_TIMEOUT_S higher."
_TAIL_LINES = 50
_ASK_AGAIN_S = 0.25
_ROOM = {
    "room": "Add a node, or lower KNARR_KUBERNETES_REQUEST_CPUS or KNARR_KUBERNETES_REQUEST_MEMORY_MB.",
    "quota": "Raise KNARR_KUBERNETES_QUOTA_CPUS, KNARR_KUBERNETES_QUOTA_MEMORY_MB or KNARR_KUBERNETES_QUOTA_PODS.",
    "node": "Look at the node: `kubectl describe nodes` shows its conditions.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is watched."""

    release: Release
    namespace: str
    labels: dict[str, str]
    """Of its Deployments and pods."""
    facts: objects.Facts
    probes: dict[str, Probes]
    """By process type."""
    digests: frozenset[str]
    """Names of its image: of its manifest and of its config."""
    kept: bool
    """It has the traffic: what crashes is started again, and judged only when our patience ends."""

    @property
    def start_s(self) -> float:
        """Longest time of a start in seconds."""
        wanted = [self.probes[name].start_s for name, count in self.release.formation.items() if count]
        return max(wanted, default=0.0)


class Observing:
    """Observes releases.

    Args:
        cluster: Runs the pods.
        pull_timeout_s: How long nodes may take to have the image.
    """

    def __init__(self, cluster: Cluster, *, pull_timeout_s: float) -> None:
        self._cluster = cluster
        self._reaching = Reaching(cluster)
        self._pull_timeout_s = pull_timeout_s

    async def until_it_runs(self, watched: Watched, *, note: Note) -> None:
        """Return when every instance runs the release's digest and passes its checks.

        Raises:
            AppDoesNotStart: One does not.
            NoCapacity: The cluster has no room for one, or its node ended it.
            Unavailable: The cluster does not get the image, or a pod is not reached from here.
        """
        release, clock = watched.release, asyncio.get_running_loop().time
        patience = _Patience(watched.start_s, self._pull_timeout_s, clock())
        async with Followed(self._cluster, watched.namespace, watched.labels, DEPLOYMENT, POD) as seen:
            while True:
                deployments = seen.of(DEPLOYMENT)
                if len(deployments) < len(release.formation):
                    raise Conflict("The release was stopped meanwhile", why=f"it has {len(deployments)} Deployments")
                standing = verdicts.judge(
                    deployments, seen.of(POD), wanted=release.formation, digests=watched.digests, kept=watched.kept
                )
                unready = await self._unready_by_our_checks(watched, standing) if standing.runs else None
                if standing.runs and unready is None:
                    return
                note(standing.note or (unready[2] if unready else ""))
                if standing.fault and standing.fault.at_once and not watched.kept:
                    raise await self._verdict(watched, standing.fault)
                if patience.is_over(standing, clock()):
                    raise await self._given_up(watched, standing, unready)
                await _change(seen, limit_s=_ASK_AGAIN_S if unready else None)

    async def tail(self, namespace: str, pod: str, release: Release) -> tuple[str, ...]:
        """A pod's last lines, without values of config vars."""
        return await self.last_lines(namespace, pod, release.env.values())

    async def last_lines(
        self, namespace: str, pod: str, secrets: Collection[str], *, previous: bool = False
    ) -> tuple[str, ...]:
        """Those of a pod, or of its container `previous` to the one that runs, without the secrets."""
        lines = self._cluster.logs(namespace, pod, lines=_TAIL_LINES, follow=False, times=False, previous=previous)
        return blotted([line async for line in lines], secrets)

    async def failed_probe(self, namespace: str, pod: str, *, first: str = "") -> str:
        """What the kubelet said last of a probe of the pod that failed; empty: nothing.

        Args:
            namespace: Where the pod is.
            pod: Its name.
            first: Type of probe, such as `Liveness`, whose failures count more than later ones of other types.
        """
        return await self._newest_event(namespace, f"involvedObject.name={pod},reason=Unhealthy", first=first)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _warning(self, namespace: str, pod: str) -> str:
        """What the cluster warned of last about a pod."""
        return await self._newest_event(namespace, f"involvedObject.name={pod},type=Warning")

    async def _newest_event(self, namespace: str, fields: str, *, first: str = "") -> str:
        """The message of the newest event; of those that begin with `first`, if there are any."""
        events = (await self._cluster.list(EVENT, namespace, {}, fields=fields)).items
        preferred = [each for each in events if first and str(each.get("message", "")).startswith(first)]
        newest = max(preferred or events, key=lambda each: each.get("lastTimestamp") or "", default=None)
        return str(newest.get("message", "")).strip() if newest else ""

    async def _unready_by_our_checks(
        self, watched: Watched, standing: verdicts.Standing
    ) -> tuple[verdicts.Pod, Check, str] | None:
        """The first pod that does not pass a check which no kubelet makes."""
        asked = [pod for pod in standing.pods if pod.process in watched.probes]
        found = await asyncio.gather(
            *(self._first_fault(watched, pod, watched.probes[pod.process].own) for pod in asked)
        )
        return next(((pod, *fault) for pod, fault in zip(asked, found, strict=True) if fault), None)

    async def _first_fault(
        self, watched: Watched, pod: verdicts.Pod, checks: Sequence[Check]
    ) -> tuple[Check, str] | None:
        for check in checks:
            if fault := await self._reaching.ask(check, watched.namespace, pod, watched.facts.port):
                return check, fault
        return None

    async def _verdict(self, watched: Watched, fault: verdicts.Fault) -> KnarrError:
        if fault.blame == "pull":
            return Unavailable(
                fault.what,
                why=f"{watched.facts.reference}: {fault.why}",
                todo="KNARR_RUNTIME_REGISTRY names the registry for the nodes, KNARR_REGISTRY_USER and"
                " KNARR_REGISTRY_PASSWORD the login.",
            )
        if fault.blame != "app":
            return NoCapacity(fault.what, why=fault.why, todo=_ROOM[fault.blame])
        tail = await self.tail(watched.namespace, fault.pod, watched.release) if fault.pod else ()
        said = await self.failed_probe(watched.namespace, fault.pod) if fault.pod else ""
        why = f"{fault.why}; the kubelet says: {said}" if said else fault.why
        return AppDoesNotStart(fault.what, why=why, todo=AGAIN, log_tail=tail)

    async def _given_up(
        self, watched: Watched, standing: verdicts.Standing, unready: tuple[verdicts.Pod, Check, str] | None
    ) -> KnarrError:
        """Our patience is over: why, as far as the cluster says."""
        waited = f"waited {watched.start_s:g} s"
        if fault := standing.fault:
            why = f"{fault.why}; {waited}" if fault.why else waited
            return await self._verdict(
                watched, verdicts.Fault(what=fault.what, why=why, pod=fault.pod, blame=fault.blame)
            )
        pod = unready[0] if unready else next((each for each in standing.pods if not each.ready), None)
        if pod is None:
            why = f"{standing.note}; {waited}"
            return Unavailable("The cluster makes no pods of the release", why=why, todo=_ROOM["node"])
        if not pod.runs and not pod.ended:
            why = await self._warning(watched.namespace, pod.name) or pod.waiting or "it does not say why"
            return NoCapacity(f"The node does not start {pod.label}", why=f"{why}; {waited}", todo=_ROOM["node"])
        what, todo = _in_words(pod, unready[1], unready[2]) if unready else await self._by_probe(watched, pod)
        tail = await self.tail(watched.namespace, pod.name, watched.release)
        return AppDoesNotStart(what, why=f"{waited} for it", todo=f"{todo} {LONGER}", log_tail=tail)

    async def _by_probe(self, watched: Watched, pod: verdicts.Pod) -> tuple[str, str]:
        """What a kubelet's probe says of a pod that does not become ready."""
        said = await self.failed_probe(watched.namespace, pod.name)
        made = watched.probes.get(pod.process)
        check = (made.startup if said.startswith("Startup") else made.readiness) if made else None
        if "statuscode:" in said and check:
            return _in_words(pod, check, f"GET {check.path} answered {said.rpartition(':')[2].strip()}")
        if "connection refused" in said and (check is None or check.port is None):
            return (
                f"{pod.label} refuses connections on PORT",
                "Make it listen on 0.0.0.0 and on the port that the environment variable PORT names.",
            )
        if check:
            return _in_words(pod, check, said or "it has not passed yet")
        return f"{pod.label} does not become ready" + (f" ({said})" if said else ""), AGAIN


class _Patience:
    """How long a release may take: from the start of its containers, and longer while a node pulls."""

    def __init__(self, start_s: float, pull_s: float, began: float) -> None:
        self._start_s = start_s
        self._pull_s = pull_s
        self._began = began
        self._running_since: float | None = None

    def is_over(self, standing: verdicts.Standing, now: float) -> bool:
        pulling = [each for each in standing.pods if not each.runs and each.waiting == "ContainerCreating"]
        if pulling:
            return now - self._began > max(self._pull_s, self._start_s)
        if self._running_since is None and any(each.runs for each in standing.pods):
            self._running_since = now
        return now - (self._running_since or self._began) > self._start_s


def _in_words(pod: verdicts.Pod, check: Check, fault: str) -> tuple[str, str]:
    if check.path is not None:
        todo = "Make the path of its health check answer 2xx or 3xx, or change the check in app.json."
        if check.any_status:
            todo = "Make it answer HTTP requests on the port that the environment variable PORT names."
        return f"{pod.label} does not pass its health check: {fault}", todo
    return (
        f"{pod.label} does not pass {check.what}: {fault}",
        "Make its health check pass, or change the check in app.json.",
    )


async def _change(seen: Followed, *, limit_s: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await seen.change()
