"""Releases as Deployments of a Kubernetes cluster: everything that is known is in the cluster, nothing in this process.

So any number of our processes may work at the same time. A release has Deployments of its own beside those of the one
before; its pods get the traffic by one write of the Service's selector, which compares the fence that stands on the
Service and the version that was read: an older deployment never overwrites a newer one, however late it wakes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

import structlog

from seedwork.clock import Clock
from seedwork.errors import Conflict, KnarrError, Unavailable
from services.deployer.adapters.images import Pullable, runnable_anywhere
from services.deployer.adapters.kubernetes import jobs, objects, verdicts
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, EVENT, JOB, POD, REPLICA_SET, SECRET, Cluster
from services.deployer.adapters.kubernetes.followed import WATCH_S, Followed
from services.deployer.adapters.kubernetes.front import Front
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.merged_log import Source, merged
from services.deployer.errors import AppDoesNotStart, CannotRun, Fenced, ReleaseCommandFailed
from services.deployer.ports import (
    Address,
    Drift,
    Instance,
    Needed,
    Note,
    Release,
    RunningCommand,
    Standing,
    Traffic,
)

log = structlog.get_logger(__name__)

AGAIN = "Run the image on your machine with PORT set to see the same."
_TAIL_LINES = 50
_FIRST_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 60.0
_LATE_S = 120.0
"""A kubelet before 1.22 sees after one to one and a half minutes that a pod is to go which was just being started."""
_HEARD_S, _LOOK_S = 10.0, 0.05
"""How long the cluster's controllers may take to hear of a change before we go on, and how often to look."""
_AT_ONCE = 8
_RELEASE_KINDS = (DEPLOYMENT, JOB, REPLICA_SET, POD, SECRET)
"""In this order: who would make the next one goes before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how much, and under which names."""

    shape: objects.Shape
    start_timeout_s: float = 60.0
    pull_timeout_s: float = 600.0
    settle_after_switch_s: float = 2.0
    """Until every node's kube-proxy sends new connections to the new pods, before the old ones end: it writes its rules
    once a second at most, and takes a moment for it."""


class KubernetesRuntime:
    """See `Runtime`.

    Args:
        cluster: Runs the pods.
        front: Namespaces and Services of the apps.
        pullable: How the cluster names them.
        clock: For waiting.
        options: How long, how much.
    """

    name = "kubernetes"
    addons: AbstractSet[str] = frozenset({"mongodb", "mysql", "postgres", "redis"})

    def __init__(self, *, cluster: Cluster, front: Front, pullable: Pullable, clock: Clock, options: Options) -> None:
        self._cluster = cluster
        self._pullable = pullable
        self._clock = clock
        self._options = options
        self._shape = options.shape
        self._front = front
        self._prepared: dict[str, str] = {}
        """The namespace, by saga: between `prepare` and `start` it is not surrounded a second time."""
        self._background: dict[str, asyncio.Task[None]] = {}

    # ── a release, step by step ──────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """See `Runtime.expose`."""
        return await self._front.expose(app_id, app, taken=taken)

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`: the nodes pull when pods start; here is made what they need beside the image."""
        self._facts(release)
        self._prepared[release.saga_id] = await self._surround(release)

    async def run_release_command(self, release: Release) -> None:
        """See `Runtime.run_release_command`: a Job; one that an interrupted run of this saga left is waited for."""
        if release.release_command is None:
            return
        facts = self._facts(release)
        namespace = self._prepared.get(release.saga_id) or await self._surround(release)
        job = objects.release_job(namespace, release, facts, self._shape)
        if await self._cluster.get(JOB, namespace, job["metadata"]["name"]) is None:
            await self._cluster.apply(job)
        labels = self._front.labels(release.app_id, release.saga_id, step="release")
        end = await jobs.ended(
            self._cluster,
            namespace,
            labels,
            limit_s=self._shape.release_command_timeout_s,
            start_limit_s=self._options.pull_timeout_s,
        )
        if end.fault:
            tail = await self._tail(namespace, end.pod, release) if end.pod else ()
            if end.still_there:
                await self._cluster.delete_all(JOB, namespace, labels)
            raise ReleaseCommandFailed(
                f"The release command {end.fault}", why="nothing was switched over", todo=AGAIN, log_tail=tail
            )

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        facts = self._facts(release)
        namespace = self._prepared.pop(release.saga_id, None) or await self._surround(release)
        for process in release.formation:
            await self._cluster.apply(objects.deployment(namespace, release, process, facts, self._shape))

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        namespace = await self._front.namespace(release.app_id)
        if namespace is None:
            raise Conflict("The release was stopped meanwhile", why="the app's namespace is gone")
        labels = self._front.labels(release.app_id, release.saga_id, step="deploy")
        digests = frozenset({release.digest, release.image.manifest["config"]["digest"]})
        kept = await self._front.serves(namespace) == release.saga_id
        patience = _Patience(self._options, asyncio.get_running_loop().time())
        async with Followed(self._cluster, namespace, labels, DEPLOYMENT, POD) as seen:
            while True:
                deployments = seen.of(DEPLOYMENT)
                if len(deployments) < len(release.formation):
                    raise Conflict("The release was stopped meanwhile", why=f"it has {len(deployments)} Deployments")
                standing = verdicts.judge(
                    deployments, seen.of(POD), wanted=release.formation, digests=digests, kept=kept
                )
                if standing.runs:
                    return
                note(standing.note)
                if standing.fault and standing.fault.at_once and not kept:
                    raise await self._verdict(namespace, release, standing.fault)
                if patience.is_over(standing, asyncio.get_running_loop().time()):
                    raise await self._given_up(namespace, release, standing)
                await seen.change()

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """See `Runtime.switch`."""
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            if saga_id is None:
                return  # nobody serves
            raise Unavailable("The app has no namespace in the cluster", why="somebody removed it")
        before = await self._front.select(namespace, saga_id, fence=fence)
        if saga_id is not None and before != saga_id:
            routed = self._front.until_routed(namespace, app_id, saga_id)
            settle_s = self._options.settle_after_switch_s
            if before == objects.NOBODY:
                await asyncio.gather(routed, self._front.until_open(namespace, limit_s=settle_s))
            else:
                await routed
                await self._clock.sleep(settle_s)

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`: a pod's record stays for some seconds after its containers, until nothing is mounted."""
        self._prepared.pop(saga_id, None)
        namespace = await self._front.namespace(app_id)
        await self._end_background(saga_id)
        if namespace is None:
            return []
        labels = self._front.labels(app_id, saga_id)
        pods = verdicts.read_pods((await self._cluster.list(POD, namespace, labels)).items)
        found = [_called(each) for each in pods if not each.over]
        if await self._front.deselect(namespace, saga_id):
            found.append("the route")
        for kind in (DEPLOYMENT, SECRET):
            listed = await self._cluster.list(kind, namespace, labels)
            found += [f"{kind.name} {each['metadata']['name']}" for each in listed.items]
        await self._have_none_wanted(namespace, labels)
        for kind in _RELEASE_KINDS:
            await self._cluster.delete_all(kind, namespace, labels)
        await self._until_pods_ended(namespace, labels)
        return found

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        await self._end_background(app_id)
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return []
        pods = verdicts.read_pods((await self._cluster.list(POD, namespace, self._front.labels(app_id))).items)
        found = [_called(each) for each in pods]
        if address := await self._front.address(namespace):
            found.append(f"port {address.port}")
        await self._front.forget(namespace)
        return [*found, f"namespace {namespace}"]

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return []
        listed = await self._cluster.list(POD, namespace, {**self._front.labels(app_id), objects.STEP: "deploy"})
        return [verdicts.instance(each) for each in verdicts.read_pods(listed.items) if not each.over]

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:  # noqa: ARG002  the port's signature
        """See `Runtime.run_once`."""
        raise CannotRun(f"One-off processes are not available on the runtime `{self.name}`", why="it has none yet")

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:  # noqa: ARG002  the port's signature
        """See `Runtime.traffic`."""
        return None

    async def trouble(self, app_id: str) -> str:
        """See `Runtime.trouble`."""
        try:
            namespace = await self._front.namespace(app_id)
            if namespace is None or await self._front.address(namespace) is None:
                return "Its namespace or Service is gone from the cluster; a deployment makes it again."
        except Unavailable as error:
            return error.message
        return ""

    async def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`: what the cluster keeps of the pods that are there, the release command's included."""
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return

        async def sources() -> Sequence[Source]:
            listed = await self._cluster.list(POD, namespace, {**self._front.labels(app_id), objects.SAGA: ""})
            return [
                Source(id=each.name, label=each.label, read=partial(self._read_log, namespace, each.name))
                for each in verdicts.read_pods(listed.items)
            ]

        async for piece in merged(sources, lines=lines, follow=follow):
            yield piece

    async def _read_log(
        self, namespace: str, pod: str, *, lines: int | None, follow: bool, after: str
    ) -> AsyncIterator[bytes]:
        since = f"{after.partition('.')[0]}Z" if after else ""
        async for line in self._cluster.logs(namespace, pod, lines=lines, follow=follow, times=True, after=since):
            yield line

    # ── from start to stop of knarr ──────────────────────────────────────────────────────────────────────────────

    async def recover(self, standing: Sequence[Standing]) -> None:
        """See `Runtime.recover`: what is live is compared with the cluster, which has gone on without us."""
        gate = asyncio.Semaphore(_AT_ONCE)
        for each in standing:
            self._in_background(each.app_id, self._restore(each, gate))

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:  # noqa: ARG002  the port's signature
        """See `Runtime.reconcile`."""
        return ()

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """See `Runtime.sweep`: objects that carry the id of a saga which nobody knows."""
        ours = {objects.INSTALLATION: self._shape.installation, objects.SAGA: ""}
        found: dict[tuple[str, str], str] = {}
        for kind in (DEPLOYMENT, JOB, SECRET):
            for item in (await self._cluster.list(kind, None, ours)).items:
                labels = item["metadata"]["labels"]
                found[labels[objects.APP_ID], labels[objects.SAGA]] = item["metadata"]["namespace"]
        keep = (await needed()).sagas
        for (app_id, saga_id), namespace in found.items():
            if saga_id not in keep and await self._front.serves(namespace) != saga_id:
                log.warning("objects without an owner are removed", namespace=namespace, saga_id=saga_id)
                await self.stop(app_id, saga_id)

    async def close(self) -> None:
        """See `Runtime.close`: the cluster goes on."""
        for name in list(self._background):
            await self._end_background(name)
        await self._cluster.close()

    async def _restore(self, standing: Standing, gate: asyncio.Semaphore) -> None:
        """Until the cluster has what the database says, however long it takes."""
        wait_s = _FIRST_AGAIN_S
        while True:
            try:
                async with gate:
                    with contextlib.suppress(Fenced):  # a newer deployment is at work
                        await self._restore_once(standing)
                    return
            except KnarrError as error:
                log.warning("an app was not compared with the cluster", app=standing.app, why=error.message)
            await self._clock.sleep(wait_s)
            wait_s = min(_LONGEST_AGAIN_S, wait_s * 2)

    async def _restore_once(self, standing: Standing) -> None:
        namespace = await self._front.make_namespace(standing.app_id, standing.app)
        if await self._front.address(namespace) is None:
            log.warning("an app's Service is made again", app=standing.app, port=standing.port)
            await self._front.open_again(namespace, standing.app_id, standing.app, port=standing.port)
        if standing.saga_id is None:
            return
        # First: what is gone because another process has put a newer release in its place must stay away.
        await self._front.select(namespace, standing.saga_id, fence=standing.fence)
        labels = self._front.labels(standing.app_id, standing.saga_id, step="deploy")
        wanted = {SECRET: 1, DEPLOYMENT: len(standing.processes) or 1}
        there = {kind: len((await self._cluster.list(kind, namespace, labels)).items) for kind in wanted}
        if all(there[kind] >= count for kind, count in wanted.items()):
            return
        release = await standing.load()
        log.warning("a release is started again", app=standing.app, release=release.number)
        await self.start(release)
        try:
            await self._front.select(namespace, standing.saga_id, fence=standing.fence)
        except Fenced:  # replaced meanwhile, perhaps cleared away before it was made again; unless it was put back
            if await self._front.serves(namespace) != standing.saga_id:
                await self.stop(standing.app_id, standing.saga_id)
            raise

    def _in_background(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._background[name] = asyncio.create_task(work, name=f"kubernetes-{name}")

    async def _end_background(self, name: str) -> None:
        task = self._background.pop(name, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    # ── observing ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _verdict(self, namespace: str, release: Release, fault: verdicts.Fault) -> AppDoesNotStart:
        tail = await self._tail(namespace, fault.pod, release) if fault.pod else ()
        return AppDoesNotStart(fault.what, why=fault.why, todo=AGAIN if fault.blame == "app" else "", log_tail=tail)

    async def _given_up(self, namespace: str, release: Release, standing: verdicts.Standing) -> KnarrError:
        """Our patience is over: why, as far as the cluster says."""
        fault, limit_s = standing.fault, self._options.start_timeout_s
        if fault and fault.blame == "pull":
            return Unavailable(
                fault.what, why=fault.why, todo="KNARR_RUNTIME_REGISTRY names the registry for the nodes."
            )
        if fault:
            why = f"{fault.why}; waited {limit_s:g} s" if fault.why else f"waited {limit_s:g} s"
            return await self._verdict(namespace, release, verdicts.Fault(what=fault.what, why=why, pod=fault.pod))
        pod = next((each for each in standing.pods if not each.ready), None)
        if pod is None:
            return AppDoesNotStart("The release does not become ready", why=f"{standing.note}; waited {limit_s:g} s")
        what = await self._unready(namespace, pod, release)
        return AppDoesNotStart(
            what,
            why=f"waited {limit_s:g} s for it",
            todo="Make it listen on 0.0.0.0 and on the port that the environment variable PORT names, and its health"
            " path answer 2xx or 3xx. If it only needs longer, set KNARR_START_TIMEOUT_S higher.",
            log_tail=await self._tail(namespace, pod.name, release),
        )

    async def _unready(self, namespace: str, pod: verdicts.Pod, release: Release) -> str:
        """What its readiness probe says."""
        fields = f"involvedObject.name={pod.name},reason=Unhealthy"
        events = (await self._cluster.list(EVENT, namespace, {}, fields=fields)).items
        said = str(events[-1].get("message", "")) if events else ""
        if "connection refused" in said:
            return f"{pod.label} refuses connections on PORT"
        if "statuscode:" in said:
            return f"{pod.label}: GET {release.health_path} answered {said.rpartition(':')[2].strip()}"
        return f"{pod.label} does not become ready" + (f" ({said})" if said else "")

    async def _tail(self, namespace: str, pod: str, release: Release) -> tuple[str, ...]:
        lines = self._cluster.logs(namespace, pod, lines=_TAIL_LINES, follow=False, times=False)
        return blotted([line async for line in lines], release.env.values())

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _have_none_wanted(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Until the cluster's controllers want no pod: one that has not heard of it makes another for each that goes.

        They hear of what is deleted each in its own time, and the one of ReplicaSets was seen to hear of its pod first;
        a pod that is just being started then takes up to a minute and a half to go.
        """
        for kind, none in ((DEPLOYMENT, {"replicas": 0}), (JOB, {"parallelism": 0})):
            for each in (await self._cluster.list(kind, namespace, labels)).items:
                await self._cluster.change(kind, namespace, each["metadata"]["name"], none)
        until = asyncio.get_running_loop().time() + _HEARD_S
        while asyncio.get_running_loop().time() < until:
            kinds = (DEPLOYMENT, REPLICA_SET, JOB)
            listed = await asyncio.gather(*(self._cluster.list(kind, namespace, labels) for kind in kinds))
            if all(verdicts.wants_none(item) for each in listed for item in each.items):
                return
            await self._clock.sleep(_LOOK_S)

    async def _until_pods_ended(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Then they are cleared away: nodes take 5 s more to do that, and up to 70 s if they missed how one ended."""
        until = asyncio.get_running_loop().time() + self._shape.grace_s + _LATE_S
        while True:
            pods = await self._cluster.list(POD, namespace, labels)
            found = verdicts.read_pods(pods.items)
            if all(each.over for each in found):
                for each in found:
                    await self._cluster.delete(POD, namespace, each.name, grace_s=0)
                return
            if asyncio.get_running_loop().time() > until:
                names = ", ".join(each["metadata"]["name"] for each in pods.items)
                raise Unavailable("The cluster does not end pods", why=f"{names} in {namespace}; is their node away?")
            if not all("deletionTimestamp" in each["metadata"] for each in pods.items):
                await self._cluster.delete_all(POD, namespace, labels)  # made after we had looked
            await self._cluster.changed(POD, namespace, labels, pods.version, limit_s=WATCH_S)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _surround(self, release: Release) -> str:
        """The app's namespace with everything that the release's pods need."""
        return await self._front.surround(
            release.app_id,
            release.app,
            release.team,
            also=lambda namespace: objects.config_secret(namespace, release, self._shape),
        )

    def _facts(self, release: Release) -> objects.Facts:
        """What the image says.

        Raises:
            CannotRun: It is no image for containers.
        """
        runnable_anywhere(release.image, runtime=self.name)
        reference = self._pullable.reference(release.repository, release.digest)
        return objects.facts_of(release.image, reference, default_user=self._shape.run_as_user)


class _Patience:
    """How long a release may take: from the start of its containers, and longer while a node pulls."""

    def __init__(self, options: Options, began: float) -> None:
        self._options = options
        self._began = began
        self._running_since: float | None = None

    def is_over(self, standing: verdicts.Standing, now: float) -> bool:
        pulling = [each for each in standing.pods if not each.runs and each.waiting == "ContainerCreating"]
        if pulling:
            return now - self._began > max(self._options.pull_timeout_s, self._options.start_timeout_s)
        if self._running_since is None and any(each.runs for each in standing.pods):
            self._running_since = now
        return now - (self._running_since or self._began) > self._options.start_timeout_s


def _called(pod: verdicts.Pod) -> str:
    if addon := pod.labels.get(objects.ADDON):
        return f"add-on {addon}"
    if pod.labels.get(objects.STEP) == "release":
        return f"the release command's pod of release {pod.labels.get(objects.RELEASE)}"
    return f"instance {pod.label} of release {pod.labels.get(objects.RELEASE)}"
