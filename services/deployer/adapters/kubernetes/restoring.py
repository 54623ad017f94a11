"""The cluster against what the database says: what differs is told, and made as it should be.

Everything is compared with the fence first: an app whose traffic was moved under a newer one is another process's
business. What is applied is what a deployment applies, so a repair and a deployment never want different things.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import structlog

from seedwork.clock import Clock
from seedwork.errors import FinalError, KnarrError, Unavailable
from services.deployer.adapters.drifts import Ledger, Pace
from services.deployer.adapters.kubernetes import comparing, objects, verdicts
from services.deployer.adapters.kubernetes.changes import Changes
from services.deployer.adapters.kubernetes.cluster import (
    DEPLOYMENT,
    LIMITS,
    NAMESPACE,
    POD,
    POLICY,
    QUOTA,
    SECRET,
    SERVICE,
    Cluster,
    Object,
)
from services.deployer.adapters.kubernetes.front import Front
from services.deployer.adapters.kubernetes.shown import Known
from services.deployer.adapters.kubernetes.volumes import KubernetesVolumes
from services.deployer.errors import Fenced, NotWarm
from services.deployer.ports import AddOns, Drift, Release, Standing, Warm

log = structlog.get_logger(__name__)

_AT_ONCE = 8
_REMEMBERED = 2_000
_RESYNC_MS = 300_000
"""Every app is looked at so often, whatever the watches say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """How objects are made."""

    facts: Callable[[Release], objects.Facts]
    shape: objects.Shape


class Restoring:
    """Compares and repairs.

    Args:
        cluster: Has the objects.
        front: Namespaces and Services of the apps.
        clock: For waiting.
        manifests: How objects are made.
        stop: Removes everything of a release.
        provider: Of add-ons; None: there is none.
    """

    def __init__(
        self,
        cluster: Cluster,
        front: Front,
        clock: Clock,
        manifests: Manifests,
        *,
        stop: Callable[[str, str], object],
        provider: AddOns | None,
        volumes: KubernetesVolumes,
    ) -> None:
        self.ledger = Ledger()
        self.standing: dict[str, Standing] = {}
        """What the database said last, by app."""
        self.forgetting: set[str] = set()
        """Apps that are being removed by this process."""
        self.known: dict[str, Known] = {}
        """Releases that were seen, by saga; the oldest of very many are forgotten."""
        self._cluster = cluster
        self._front = front
        self._clock = clock
        self._manifests = manifests
        self._stop = stop
        self._provider = provider
        self._volumes = volumes
        self._changes = Changes(cluster, clock, {objects.INSTALLATION: manifests.shape.installation})
        self._paces: dict[str, Pace] = {}
        self._looked_ms: dict[str, int] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def know(self, release: Release) -> None:
        """Remember how many instances a release wants, and what its lines may not hold."""
        self.known[release.saga_id] = Known(
            number=release.number, formation=dict(release.formation), secrets=frozenset(release.env.values())
        )
        for saga_id in list(self.known)[:-_REMEMBERED]:
            del self.known[saga_id]

    async def follow(self) -> None:
        """Begin to watch what somebody may change."""
        kinds = (NAMESPACE, SERVICE, DEPLOYMENT, POLICY, await self._cluster.budgets())
        self._changes.follow(kinds)

    def look(self, standing: Sequence[Standing]) -> None:
        """Begin to look at the apps that were changed, and from time to time at each."""
        now = self._clock.now_ms()
        self.standing = {each.app_id: each for each in standing}
        changed = self._changes.take()
        for each in standing:
            looked_ms = self._looked_ms.setdefault(each.app_id, now)
            sagas = {"", each.saga_id or "", each.warm.saga_id if each.warm else ""}
            thorough = not changed.isdisjoint({(each.app_id, saga_id) for saga_id in sagas})
            if (thorough or now - looked_ms > _RESYNC_MS) and each.app_id not in self.forgetting:
                self.begin(each, thorough=thorough)
        for gone in self._looked_ms.keys() - self.standing.keys():
            del self._looked_ms[gone]
            self._paces.pop(gone, None)

    def begin(self, standing: Standing, *, thorough: bool) -> None:
        """Look at one app, unless that is under way: then again afterwards."""
        if standing.app_id in self.tasks:
            self._changes.add(standing.app_id)
            return
        self._looked_ms[standing.app_id] = self._clock.now_ms()
        work = self._until_looked_at(standing, thorough=thorough)
        self.tasks[standing.app_id] = asyncio.create_task(work, name=f"kubernetes-{standing.app_id}")

    async def end(self, app_id: str) -> None:
        """Look at it no more."""
        task = self.tasks.pop(app_id, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Look at nothing any more."""
        await self._changes.close()
        for app_id in list(self.tasks):
            await self.end(app_id)

    async def _until_looked_at(self, standing: Standing, *, thorough: bool) -> None:
        """Until the cluster has what the database says, however long it takes."""
        pace = self._paces.setdefault(standing.app_id, Pace())
        try:
            while True:
                try:
                    async with self._gate:
                        with contextlib.suppress(Fenced):  # a newer deployment is at work
                            await self._once(standing, pace, thorough=thorough)
                        return
                except KnarrError as error:
                    log.warning("an app was not compared with the cluster", app=standing.app, why=error.message)
                pace.made(self._clock.now_ms())
                await self._wait(pace)
                current = self.standing.get(standing.app_id)
                if current is None:
                    return  # the app was removed
                standing, thorough = current, True
        finally:
            self.tasks.pop(standing.app_id, None)

    async def _wait(self, pace: Pace) -> None:
        wait_ms = pace.due_ms(self._clock.now_ms()) - self._clock.now_ms()
        if wait_ms > 0:
            await self._clock.sleep(wait_ms / 1000)

    # ── one look ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _once(self, standing: Standing, pace: Pace, *, thorough: bool) -> None:
        found: list[str] = []
        namespace = await self._namespace(standing, found)
        if namespace is None:
            return
        fence, serves, as_written = await self._front.standing(namespace)
        if fence > standing.fence:
            return  # a newer deployment has the traffic
        if fence < 0:
            found.append("the app's Service is gone")
            self._tell(standing, found)
            await self._front.open_again(namespace, standing.app_id, standing.app, port=standing.port)
        elif not as_written or (standing.saga_id and serves not in {standing.saga_id, objects.NOBODY}):
            found.append("the app's Service was changed")
        if standing.saga_id is None:
            self._tell(standing, found, repaired=True)
            return
        # First: what is gone because another process has put a newer release in its place must stay away.
        await self._front.select(namespace, standing.saga_id, fence=standing.fence)
        await self._restore_live(namespace, standing, pace, found, thorough=thorough)
        if standing.warm is not None:
            await self._restore_warm(namespace, standing, standing.warm)

    async def _restore_live(
        self, namespace: str, standing: Standing, pace: Pace, found: list[str], *, thorough: bool
    ) -> None:
        """Compare the release that serves, and repair it."""
        if not (
            thorough or found or await self._lacks(namespace, standing.app_id, standing.saga_id, standing.processes)
        ):
            return
        release = await standing.load()
        self.know(release)
        differing = await self._differing(namespace, release)
        found += [each.what for each in differing]
        if found:
            self._tell(standing, found)
            await self._wait(pace)
            pace.made(self._clock.now_ms())
        if differing:
            await self._repair(namespace, standing, release, differing)
        found += await self._clear_pods(namespace, standing)
        self._tell(standing, found, repaired=True)

    async def _namespace(self, standing: Standing, found: list[str]) -> str | None:
        """The app's namespace, made anew where it is gone; None: it needs none."""
        namespace = await self._front.namespace(standing.app_id)
        if namespace is not None or standing.saga_id is None:
            return namespace
        if await self._front.is_going(standing.app_id):
            raise Unavailable("The app's namespace is being deleted", why="somebody, or its removal, deletes it")
        release = await standing.load()  # nobody's any more, where the app was removed meanwhile
        lost = [*(["add-ons"] if release.addons else []), *(["volumes"] if release.volumes else [])]
        data = f", and the data of its {' and '.join(lost)} with it" if lost else ""
        found.append(f"the app's namespace is gone{data}")
        self._tell(standing, found)
        namespace = await self._front.make_namespace(standing.app_id, standing.app)
        await self._front.open_again(namespace, standing.app_id, standing.app, port=standing.port)
        if self._provider is not None:
            for addon in release.addons:
                await self._provider.provide(addon, note=lambda _: None)
        return namespace

    async def _restore_warm(self, namespace: str, standing: Standing, warm: Warm) -> None:
        """Make the release before again where it is gone while the one that serves is observed."""
        if not await self._lacks(namespace, standing.app_id, warm.saga_id):
            return
        try:
            release = await warm.load()
            for each in await self._differing(namespace, release):
                await self._cluster.apply(each.wanted)
            await warm.load()
        except NotWarm:  # whoever ended the observation stopped what was there: what was made since goes too
            await self._removed(standing.app_id, warm.saga_id)

    async def _lacks(
        self, namespace: str, app_id: str, saga_id: str | None, processes: AbstractSet[str] = frozenset()
    ) -> bool:
        """Whether it can be seen, without the release, that it is not all there."""
        labels = self._front.labels(app_id, saga_id, step="deploy")
        secrets = await self._cluster.list(SECRET, namespace, labels, metadata_only=True)
        deployments = (await self._cluster.list(DEPLOYMENT, namespace, labels)).items
        return (
            not secrets.items
            or len(deployments) < (len(processes) or 1)
            or any(comparing.tampered(each) for each in deployments)
        )

    async def _differing(self, namespace: str, release: Release) -> list[comparing.Difference]:
        budgets = await self._cluster.budgets()
        wanted = await self.wanted(namespace, release)
        kinds = (QUOTA, LIMITS, POLICY, SECRET, DEPLOYMENT, budgets)
        labels = {objects.APP_ID: release.app_id}
        listed = await asyncio.gather(*(self._cluster.list(kind, namespace, labels) for kind in kinds))
        there = [{**item, "kind": kind.name} for kind, each in zip(kinds, listed, strict=True) for item in each.items]
        return comparing.differences(wanted, there)

    async def wanted(self, namespace: str, release: Release) -> list[Object]:
        """Everything that a release that serves has in its namespace, beside its Service."""
        shape = self._manifests.shape
        app = objects.app_labels(shape.installation, release.app, release.app_id, release.team)
        facts = self._manifests.facts(release)
        made = [
            *objects.surroundings(namespace, app, shape),
            objects.config_secret(namespace, release, shape),
            *(objects.deployment(namespace, release, each, facts, shape) for each in release.formation),
        ]
        return [*made, *await self.budgets(namespace, release)]

    async def budgets(self, namespace: str, release: Release) -> list[Object]:
        """PodDisruptionBudgets of the release."""
        if not any(count > 1 for count in release.formation.values()):
            return []
        kind, shape = await self._cluster.budgets(), self._manifests.shape
        made = (objects.disruption_budget(namespace, release, each, shape, kind) for each in release.formation)
        return [each for each in made if each is not None]

    async def _repair(
        self, namespace: str, standing: Standing, release: Release, differing: Sequence[comparing.Difference]
    ) -> None:
        await self._volumes.ensure(namespace, release)
        for each in differing:
            log.warning("drift.repair", app=standing.app, release=release.number, what=each.what)
            try:
                await self._cluster.apply(each.wanted)
            except FinalError:
                if each.wanted["kind"] != SECRET.name:
                    raise
                await self._cluster.delete(SECRET, namespace, each.wanted["metadata"]["name"])  # it cannot be changed
                await self._cluster.apply(each.wanted)
        try:
            await self._front.select(namespace, standing.saga_id, fence=standing.fence)
        except Fenced:  # replaced meanwhile, perhaps cleared away before it was made again; unless it was put back
            if await self._front.serves(namespace) != standing.saga_id:
                await self._removed(standing.app_id, standing.saga_id or "")
            raise

    async def _removed(self, app_id: str, saga_id: str) -> None:
        result = self._stop(app_id, saga_id)
        if asyncio.iscoroutine(result):
            await result

    async def _clear_pods(self, namespace: str, standing: Standing) -> list[str]:
        """Records of pods that their nodes ended go, and pods whose image somebody changed."""
        labels = self._front.labels(standing.app_id, standing.saga_id, step="deploy")
        found = []
        for pod in verdicts.read_pods((await self._cluster.list(POD, namespace, labels)).items):
            if pod.stopping or not (pod.failed or verdicts.is_strange(pod)):
                continue
            found.append(f"{pod.label} {'was ended by its node' if pod.failed else 'runs another image'}")
            log.warning("drift.repair", app=standing.app, what=found[-1])
            await self._cluster.delete(POD, namespace, pod.name)
        return found

    def _tell(self, standing: Standing, found: Sequence[str], *, repaired: bool = False) -> None:
        saga_id = standing.saga_id or ""
        if repaired:
            self.ledger.keep_only(standing.app_id, saga_id, found)
        drift = Drift(app_id=standing.app_id, saga_id=saga_id, what="", repaired=repaired, at_ms=self._clock.now_ms())
        for what in found:
            self.ledger.add(replace(drift, what=what))
