"""Pods of an app in, instances as people see them out: also those that should be there and are not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from seedwork.clock import Clock
from services.deployer.adapters.kubernetes import comparing, objects, verdicts
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, POD, Cluster
from services.deployer.adapters.kubernetes.front import Front
from services.deployer.adapters.kubernetes.observing import Observing
from services.deployer.adapters.naming import label as valid
from services.deployer.ports import Instance, InstanceState, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is remembered of a release."""

    number: int
    formation: Mapping[str, int]
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    """Values of its config vars, which no line that is shown may hold."""


class Shown:
    """Reads instances.

    Args:
        cluster: Has the pods.
        front: Knows the apps' namespaces.
        observing: Knows what kubelets said.
        clock: Since when something is missing is not known: it is now.
    """

    def __init__(self, cluster: Cluster, front: Front, observing: Observing, clock: Clock) -> None:
        self._cluster = cluster
        self._front = front
        self._observing = observing
        self._clock = clock

    async def instances(self, app_id: str, standing: Standing | None, releases: Mapping[str, Known]) -> list[Instance]:
        """Those that there are, and those that there should be.

        Args:
            app_id: Whose.
            standing: What the database says of the app; None: it is not known.
            releases: Those that are known, by saga.
        """
        known = releases.get(standing.saga_id or "") if standing else None
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return self._down(standing, known, {}, "its namespace was deleted outside of knarr; it is made again")
        listed = await self._cluster.list(POD, namespace, {**self._front.labels(app_id), objects.STEP: "deploy"})
        pods = [each for each in verdicts.read_pods(listed.items) if not each.over]
        found = [await self._instance(namespace, each, releases.get(each.saga_id)) for each in pods]
        if standing is None or standing.saga_id is None:
            return found
        there = {
            process: sum(
                each.process == process and each.saga_id == standing.saga_id and not (each.stopping or each.failed)
                for each in pods
            )
            for process in _wanted(standing, known)
        }
        if all(there[process] >= count for process, count in _wanted(standing, known).items()):
            return found
        return [*found, *await self._missing(namespace, standing, known, there)]

    async def _instance(self, namespace: str, pod: verdicts.Pod, known: Known | None) -> Instance:
        shown = verdicts.instance(pod)
        if pod.stopping or not (pod.restarts or shown.state == "crashed"):
            return shown
        if known is not None:
            previous = bool(pod.restarts and pod.runs)
            tail = await self._observing.last_lines(namespace, pod.name, known.secrets, previous=previous)
            shown = replace(shown, log_tail=tail)
        # why it was restarted, not that it starts again
        if said := await self._observing.failed_probe(namespace, pod.name, first="Liveness"):
            note = f"{shown.note}; the kubelet says: {said}" if shown.note else f"restarted; the kubelet said: {said}"
            shown = replace(shown, note=note)
        return shown

    async def _missing(
        self, namespace: str, standing: Standing, known: Known | None, there: Mapping[str, int]
    ) -> list[Instance]:
        """Instances without a pod, by what became of their Deployments; none, where another release serves by now."""
        labels = self._front.labels(standing.app_id, standing.saga_id, step="deploy")
        deployments = (await self._cluster.list(DEPLOYMENT, namespace, labels)).items
        if await self._front.serves(namespace) not in {standing.saga_id, objects.NOBODY}:
            return []
        by_process = {each["metadata"]["labels"][objects.PROCESS]: each for each in deployments}
        found: list[Instance] = []
        for process, count in _wanted(standing, known).items():
            deployment = by_process.get(valid(process))
            state: InstanceState = "down"
            if deployment is None:
                note = "its Deployment was deleted outside of knarr; it is made again"
            elif what := comparing.tampered(deployment):
                note = f"its Deployment {what} outside of knarr; it is repaired"
            else:
                state, note = "starting", "the cluster makes its pod"
            only = replace(standing, processes=frozenset({process}))
            formation = Known(number=known.number if known else 0, formation={process: count})
            found += self._down(only, formation, there, note, state=state)
        return found

    def _down(
        self,
        standing: Standing | None,
        known: Known | None,
        there: Mapping[str, int],
        note: str,
        *,
        state: InstanceState = "down",
    ) -> list[Instance]:
        if standing is None or standing.saga_id is None:
            return []
        return [
            Instance(
                id=f"{standing.saga_id}.{process}.{number}",
                app_id=standing.app_id,
                saga_id=standing.saga_id,
                release=known.number if known else 0,
                process=f"{process}.{number}",
                state=state,
                since_ms=self._clock.now_ms(),
                note=note,
            )
            for process, count in _wanted(standing, known).items()
            for number in range(there.get(process, 0) + 1, count + 1)
        ]


def _wanted(standing: Standing, known: Known | None) -> Mapping[str, int]:
    return known.formation if known else dict.fromkeys(standing.processes, 1)
