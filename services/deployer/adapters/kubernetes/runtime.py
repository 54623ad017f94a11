"""Releases as Deployments of a Kubernetes cluster: everything that is known is in the cluster, nothing in this process.

So any number of our processes may work at the same time. A release has Deployments of its own beside those of the one
before; its pods get the traffic by one write of the Service's selector, which compares the fence that stands on the
Service and the version that was read: an older deployment never overwrites a newer one, however late it wakes.
"""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial

import structlog

from seedwork.clock import Clock
from seedwork.errors import Conflict, Unavailable
from services.deployer.adapters.images import Pullable, runnable_anywhere
from services.deployer.adapters.kubernetes import jobs, objects, oneoff, verdicts
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, JOB, POD, SECRET, Cluster
from services.deployer.adapters.kubernetes.ending import Ending
from services.deployer.adapters.kubernetes.front import Front
from services.deployer.adapters.kubernetes.observing import AGAIN, Observing, Watched
from services.deployer.adapters.kubernetes.restoring import Manifests, Restoring
from services.deployer.adapters.kubernetes.shown import Shown
from services.deployer.adapters.kubernetes.volumes import KubernetesVolumes
from services.deployer.adapters.merged_log import Source, merged
from services.deployer.checks import Patience
from services.deployer.errors import NoCapacity, ReleaseCommandFailed
from services.deployer.ports import (
    AddOns,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how much, and under which names."""

    shape: objects.Shape
    start_timeout_s: float = 60.0
    start_timeout_max_s: float = 600.0
    pull_timeout_s: float = 600.0
    settle_after_switch_s: float = 2.0
    """Until nearly every node's kube-proxy sends new connections to the new pods: it writes its rules once a second at
    most, and takes a moment for it."""
    late_proxy_s: float = 6.0
    """Until the last one does. For so long old pods go on serving, and a new app's port is waited for."""


class KubernetesRuntime:
    """See `Runtime`.

    Args:
        cluster: Runs the pods.
        front: Namespaces and Services of the apps.
        pullable: How the cluster names them.
        clock: For waiting.
        options: How long, how much.
        provider: Of add-ons, for an app whose namespace was deleted; None: there is none.
        volumes: Makes claims; None: in the cluster's default storage class.
    """

    name = "kubernetes"
    addons: AbstractSet[str] = frozenset({"mongodb", "mysql", "postgres", "redis"})

    def __init__(
        self,
        *,
        cluster: Cluster,
        front: Front,
        pullable: Pullable,
        clock: Clock,
        options: Options,
        provider: AddOns | None = None,
        volumes: KubernetesVolumes | None = None,
    ) -> None:
        self._volumes = volumes or KubernetesVolumes(
            cluster,
            app_label=objects.APP_ID,
            installation_label={objects.INSTALLATION: options.shape.installation},
            storage_class=None,
        )
        self._cluster = cluster
        self._pullable = pullable
        self._clock = clock
        self._options = options
        patience = Patience(
            start_s=options.start_timeout_s,
            start_max_s=options.start_timeout_max_s,
            settle_s=options.shape.settle_s,
        )
        self._shape = replace(options.shape, patience=patience)
        self._front = front
        self._observing = Observing(cluster, pull_timeout_s=options.pull_timeout_s)
        self._restoring = Restoring(
            cluster,
            front,
            clock,
            Manifests(facts=self._facts, shape=self._shape),
            stop=self.stop,
            provider=provider,
            volumes=self._volumes,
        )
        self._shown = Shown(cluster, front, self._observing, clock)
        self._ending = Ending(cluster, clock, grace_s=self._shape.grace_s, late_s=options.late_proxy_s)
        self._ports: dict[str, tuple[int, str]] = {}
        """Port and name of an app, as far as they are known: a Service that is gone is made again with them."""
        self._prepared: dict[str, str] = {}
        """The namespace, by saga: between `prepare` and `start` it is not surrounded a second time."""
        self._commands: set[oneoff.OneOff] = set()

    # ── a release, step by step ──────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """See `Runtime.expose`."""
        address = await self._front.expose(app_id, app, taken=taken)
        self._ports[app_id] = (address.port, app)
        return address

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
            tail = await self._observing.tail(namespace, end.pod, release) if end.pod else ()
            if end.still_there:
                await self._cluster.delete_all(JOB, namespace, labels)
            if end.platform:
                raise NoCapacity(
                    f"The release command {end.fault}",
                    why="nothing was switched over",
                    todo="Add a node, or look at `kubectl describe nodes`; then `knarr sagas retry ID`.",
                )
            raise ReleaseCommandFailed(
                f"The release command {end.fault}", why="nothing was switched over", todo=AGAIN, log_tail=tail
            )

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        facts = self._facts(release)
        namespace = self._prepared.pop(release.saga_id, None) or await self._surround(release)
        for process in release.formation:
            await self._cluster.apply(objects.deployment(namespace, release, process, facts, self._shape))
        for budget in await self._restoring.budgets(namespace, release):
            await self._cluster.apply(budget)
        self._restoring.know(release)

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        namespace = await self._front.namespace(release.app_id)
        if namespace is None:
            raise Conflict("The release was stopped meanwhile", why="the app's namespace is gone")
        watched = Watched(
            release=release,
            namespace=namespace,
            labels=self._front.labels(release.app_id, release.saga_id, step="deploy"),
            facts=self._facts(release),
            probes={each: objects.probes_of(release, each, self._shape) for each in release.formation},
            digests=frozenset({release.digest, release.image.manifest["config"]["digest"]}),
            kept=await self._front.serves(namespace) == release.saga_id,
        )
        await self._observing.until_it_runs(watched, note=note)

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """See `Runtime.switch`."""
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            if saga_id is None:
                return  # nobody serves
            raise Unavailable("The app has no namespace in the cluster", why="somebody removed it")
        if saga_id is not None:
            await self._have_service(namespace, app_id)
        before = await self._front.select(namespace, saga_id, fence=fence)
        if saga_id is not None and before != saga_id:
            routed = self._front.until_routed(namespace, app_id, saga_id)
            if before == objects.NOBODY:
                await asyncio.gather(routed, self._front.until_open(namespace, limit_s=self._options.late_proxy_s))
            else:
                await routed
                self._ending.moved_away(before)
                await self._clock.sleep(self._options.settle_after_switch_s)

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`: a pod's record stays for some seconds after its containers, until nothing is mounted."""
        await self._ending.until_unused(saga_id)
        self._prepared.pop(saga_id, None)
        self._restoring.known.pop(saga_id, None)
        namespace = await self._front.namespace(app_id)
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
        await self._ending.remove(namespace, labels)
        if found and (left := await self._front.leave(app_id)):
            found.append(f"namespace {left}")
        return found

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        self._restoring.forgetting.add(app_id)
        try:
            await self._restoring.end(app_id)
            return await self._forget(app_id)
        finally:
            self._restoring.forgetting.discard(app_id)

    async def _forget(self, app_id: str) -> Sequence[str]:
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return []
        pods = verdicts.read_pods((await self._cluster.list(POD, namespace, self._front.labels(app_id))).items)
        found = [_called(each) for each in pods]
        if address := await self._front.address(namespace):
            found.append(f"port {address.port}")
        if await self._volumes.holds(namespace):
            await self._volumes.clear(namespace)
            return found
        await self._front.forget(namespace)
        return [*found, f"namespace {namespace}"]

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        return await self._shown.instances(app_id, self._restoring.standing.get(app_id), self._restoring.known)

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:
        """See `Runtime.run_once`."""
        facts = self._facts(release)
        namespace = await self._surround(release)
        command = oneoff.OneOff(
            self._cluster,
            self._clock,
            objects.run_pod(
                namespace,
                release,
                argv,
                facts,
                self._shape,
                name=f"{objects.name_of(release, 'run')}-{uuid.uuid4().hex[:8]}",
                label=label,
                now=oneoff.now_s(self._clock),
            ),
            start_limit_s=self._options.pull_timeout_s,
            ended=self._commands.discard,
        )
        self._commands.add(command)
        await command.start()
        return command

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
        self._ports |= {each.app_id: (each.port, each.app) for each in standing}
        self._restoring.standing = {each.app_id: each for each in standing}
        for each in standing:
            self._restoring.begin(each, thorough=False)

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:
        """See `Runtime.reconcile`: the work goes on beside the call, which returns what was found so far."""
        self._ports |= {each.app_id: (each.port, each.app) for each in standing}
        await self._restoring.follow()
        self._restoring.look(standing)
        return self._restoring.ledger.take()

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """See `Runtime.sweep`: objects that carry the id of a saga which nobody knows."""
        ours = {objects.INSTALLATION: self._shape.installation, objects.SAGA: ""}
        found: dict[tuple[str, str], str] = {}
        namespaces = await self._front.namespaces()
        for namespace, kind in itertools.product(namespaces, (DEPLOYMENT, JOB, SECRET)):
            for item in (await self._cluster.list(kind, namespace, ours, metadata_only=True)).items:
                labels = item["metadata"]["labels"]
                found[labels[objects.APP_ID], labels[objects.SAGA]] = namespace
        keep = (await needed()).sagas
        for (app_id, saga_id), namespace in found.items():
            if saga_id not in keep and await self._front.serves(namespace) != saga_id:
                log.warning("objects without an owner are removed", namespace=namespace, saga_id=saga_id)
                await self.stop(app_id, saga_id)
        for namespace in namespaces:
            await oneoff.sweep(self._cluster, self._clock, namespace, {**ours, objects.STEP: "run"})
            await self._volumes.sweep(namespace)

    async def close(self) -> None:
        """See `Runtime.close`: the cluster goes on."""
        for command in list(self._commands):
            await command.close()
        await self._restoring.close()
        await self._cluster.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _surround(self, release: Release) -> str:
        """The app's namespace with everything that the release's pods need."""
        namespace = await self._front.surround(
            release.app_id,
            release.app,
            release.team,
            also=lambda namespace: objects.config_secret(namespace, release, self._shape),
        )
        await self._volumes.ensure(namespace, release)
        return namespace

    async def _have_service(self, namespace: str, app_id: str) -> None:
        """Make the app's Service again where somebody removed it, under the port that the app had."""
        if await self._front.address(namespace) is None and app_id in self._ports:
            port, app = self._ports[app_id]
            await self._front.open_again(namespace, app_id, app, port=port)

    def _facts(self, release: Release) -> objects.Facts:
        """What the image says.

        Raises:
            CannotRun: It is no image for containers.
        """
        runnable_anywhere(release.image, runtime=self.name)
        reference = self._pullable.reference(release.repository, release.digest)
        return objects.facts_of(release.image, reference, default_user=self._shape.run_as_user, port=release.port)


def _called(pod: verdicts.Pod) -> str:
    if addon := pod.labels.get(objects.ADDON):
        return f"add-on {addon}"
    if pod.labels.get(objects.STEP) == "release":
        return f"the release command's pod of release {pod.labels.get(objects.RELEASE)}"
    if pod.labels.get(objects.STEP) == "run":
        return f"the one-off process {pod.label} of release {pod.labels.get(objects.RELEASE)}"
    return f"instance {pod.label} of release {pod.labels.get(objects.RELEASE)}"
