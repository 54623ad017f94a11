"""The end of a release's objects: first its controllers want no pod, then its pods end, then their records go."""

import asyncio
from collections.abc import Mapping

from seedwork.clock import Clock
from seedwork.errors import Unavailable
from services.deployer.adapters.kubernetes import verdicts
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, JOB, POD, REPLICA_SET, SECRET, Cluster
from services.deployer.adapters.kubernetes.followed import WATCH_S

_LATE_S = 120.0
"""A kubelet before 1.22 sees after one to one and a half minutes that a pod is to go which was just being started."""
_HEARD_S, _LOOK_S = 10.0, 0.05
"""How long the cluster's controllers may take to hear of a change before we go on, and how often to look."""
_RELEASE_KINDS = (DEPLOYMENT, JOB, REPLICA_SET, POD, SECRET)
"""In this order: who would make the next one goes before it."""


class Ending:
    """Removes the objects that carry given labels.

    Args:
        cluster: Has the objects.
        clock: For waiting.
        grace_s: Seconds that a pod has to end.
        late_s: Seconds for which pods go on serving after the traffic was moved away from them: so long may the
            kube-proxy of a node still send them new connections.
    """

    def __init__(self, cluster: Cluster, clock: Clock, *, grace_s: float, late_s: float) -> None:
        self._cluster = cluster
        self._clock = clock
        self._grace_s = grace_s
        self._late_s = late_s
        self._moved_ms: dict[str, int] = {}
        """When traffic was moved away by this process, by saga."""

    def moved_away(self, saga_id: str) -> None:
        """Traffic was moved away from this saga's pods just now."""
        now_ms = self._clock.now_ms()
        recent = {each: at for each, at in self._moved_ms.items() if 0 <= now_ms - at < self._late_s * 1000}
        self._moved_ms = {**recent, saga_id: now_ms}

    async def until_unused(self, saga_id: str) -> None:
        """Wait until no node sends new connections to this saga's pods."""
        moved_ms = self._moved_ms.pop(saga_id, None)
        if moved_ms is not None:
            passed_s = max(0.0, (self._clock.now_ms() - moved_ms) / 1000)
            await self._clock.sleep(max(0.0, self._late_s - passed_s))

    async def remove(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Remove everything with these labels; returns when no container of it runs.

        Raises:
            Unavailable: A node does not end its pods.
        """
        await self._have_none_wanted(namespace, labels)
        for kind in (*_RELEASE_KINDS, await self._cluster.budgets()):
            await self._cluster.delete_all(kind, namespace, labels)
        await self._until_pods_ended(namespace, labels)

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
        until = asyncio.get_running_loop().time() + self._grace_s + _LATE_S
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
