"""Add-ons as StatefulSets: one of a single pod with a volume claim for each, behind a Service of the add-on's name.

The pod may be made anew at any time; the claim stays until `withdraw`. Neither carries a saga's label, so no undo of a
release touches them.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence

from seedwork.errors import Unavailable
from services.deployer.adapters.addon_recipes import Means, Recipe, recipe
from services.deployer.adapters.kubernetes import objects, verdicts
from services.deployer.adapters.kubernetes.cluster import (
    CLAIM,
    EVENT,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Cluster,
    Object,
)
from services.deployer.adapters.kubernetes.front import Front
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.naming import label as valid
from services.deployer.errors import AddOnDoesNotStart
from services.deployer.ports import AddOn, Note

_WATCH_S = 5
_TAIL_LINES = 30
_GRACE_S = 30
"""To write what a database has in memory."""
_STARTS = 5
"""So often the cluster starts one again by itself before we give up."""
_VOLUME = "data"
_FOLDER = "data"
"""In the volume: its own top may belong to root alone, and may have a `lost+found`, which databases do not like."""
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What the images need to give their volume to a user of their own, to become that user, and to look after and end the
server with which they fill an empty volume."""
_REQUESTED_CPUS, _REQUESTED_MB = 0.05, 128
_LOOK_S = 2
_NEVER = 1_000_000
"""Checks that may fail at the start: nobody ends a database that is reading its log, we give up by ourselves."""


class KubernetesAddOns:
    """See `AddOns`.

    Args:
        cluster: Runs them.
        front: Of the apps.
        installation: Whose they are.
        means: What an add-on may take.
    """

    def __init__(self, cluster: Cluster, front: Front, *, installation: str, means: Means) -> None:
        self._cluster = cluster
        self._front = front
        self._installation = installation
        self._means = means

    def address(self, app_id: str, name: str, port: int) -> tuple[str, int]:  # noqa: ARG002  the port's signature
        """See `AddOns.address`."""
        return name, port

    async def provide(self, addon: AddOn, *, note: Note) -> None:
        """See `AddOns.provide`."""
        how = recipe(addon, self._means)
        namespace = await self._front.surround(addon.app_id, addon.app, addon.team)
        known = await self._cluster.get(STATEFUL_SET, namespace, addon.name)
        for manifest in self._manifests(
            namespace, addon, how, storage=_storage(known) or f"{self._means.storage_gb}Gi"
        ):
            await self._cluster.apply(manifest)
        await self._until_it_answers(namespace, addon, note)

    async def withdraw(self, app_id: str, name: str) -> Sequence[str]:
        """See `AddOns.withdraw`."""
        namespace = await self._front.namespace(app_id)
        if namespace is None:
            return []
        found = []
        if await self._cluster.delete(STATEFUL_SET, namespace, name):
            found.append(f"add-on {name}")
        labels = {**self._front.labels(app_id), objects.ADDON: name}
        for kind in (SERVICE, SECRET):
            for item in (await self._cluster.list(kind, namespace, labels)).items:
                await self._cluster.delete(kind, namespace, item["metadata"]["name"])
        claims = (await self._cluster.list(CLAIM, namespace, labels)).items
        for claim in claims:
            await self._cluster.delete(CLAIM, namespace, claim["metadata"]["name"])
            found.append(f"the volume of {name}")
        await self._until_gone(namespace, labels)
        return found

    async def _until_it_answers(self, namespace: str, addon: AddOn, note: Note) -> None:
        labels = {**self._front.labels(addon.app_id), objects.ADDON: addon.name}
        clock = asyncio.get_running_loop().time
        began, running_since = clock(), None
        while True:
            sets = await self._cluster.list(STATEFUL_SET, namespace, labels)
            pods = await self._cluster.list(POD, namespace, labels)
            pod = next(iter(verdicts.read_pods(pods.items)), None)
            if pod and pod.ready and sets.items and _is_current(sets.items[0], pods.items[0]):
                return
            running_since = running_since or (clock() if pod and (pod.runs or pod.restarts) else None)
            if pod and (fault := verdicts.hopeless(pod)):
                raise await self._hopeless(namespace, addon, pod, fault)
            if pod and pod.restarts >= _STARTS:
                raise await self._failed(namespace, addon, pod, f"it ended {pod.restarts} times")
            if clock() - (running_since or began) > self._patience_s(starting=running_since is None and bool(pod)):
                raise await self._failed(namespace, addon, pod, await self._what_is_missing(namespace, addon, pod))
            note(f"{addon.name}: {verdicts.state_of(pod)[1] if pod else 'waiting for its pod'}")
            await self._cluster.changed(POD, namespace, labels, pods.version, limit_s=_WATCH_S)

    def _patience_s(self, *, starting: bool) -> float:
        """A pod that does not run yet may wait for its image; where there is none, nothing will come by waiting."""
        return self._means.pull_timeout_s if starting else self._means.start_timeout_s

    async def _what_is_missing(self, namespace: str, addon: AddOn, pod: verdicts.Pod | None) -> str:
        if pod is not None:
            return verdicts.state_of(pod)[1] or "its port does not answer"
        fields = f"involvedObject.kind={STATEFUL_SET.name},involvedObject.name={addon.name},type=Warning"
        events = (await self._cluster.list(EVENT, namespace, {}, fields=fields)).items
        newest = max(events, key=lambda each: each.get("lastTimestamp") or "", default=None)
        return str(newest["message"]) if newest else "the cluster made no pod for it"

    async def _hopeless(
        self, namespace: str, addon: AddOn, pod: verdicts.Pod, fault: verdicts.Fault
    ) -> AddOnDoesNotStart | Unavailable:
        if fault.blame == "app":
            return await self._failed(namespace, addon, pod, fault.why or fault.what)
        return Unavailable(f"The add-on {addon.name} cannot be started", why=f"{fault.what}: {fault.why}")

    async def _failed(self, namespace: str, addon: AddOn, pod: verdicts.Pod | None, why: str) -> AddOnDoesNotStart:
        lines: list[bytes] = []
        if pod:
            said = self._cluster.logs(namespace, pod.name, lines=_TAIL_LINES, follow=False, times=False)
            lines = [line async for line in said]
        tail = blotted(lines, [addon.password])
        return AddOnDoesNotStart(f"The add-on {addon.name} does not take connections", why=why, log_tail=tail)

    async def _until_gone(self, namespace: str, labels: Mapping[str, str]) -> None:
        until = asyncio.get_running_loop().time() + _GRACE_S + 90
        while asyncio.get_running_loop().time() < until:
            pods = await self._cluster.list(POD, namespace, labels)
            claims = await self._cluster.list(CLAIM, namespace, labels)
            if not pods.items and not claims.items:
                return
            kind, version = (POD, pods.version) if pods.items else (CLAIM, claims.version)
            await self._cluster.changed(kind, namespace, labels, version, limit_s=_WATCH_S)
        raise Unavailable("The cluster does not remove an add-on", why=f"its pod or volume is still in {namespace}")

    # ── manifests ────────────────────────────────────────────────────────────────────────────────────────────────

    def _manifests(self, namespace: str, addon: AddOn, how: Recipe, *, storage: str) -> list[Object]:
        labels = {
            **objects.app_labels(self._installation, addon.app, addon.app_id, addon.team),
            objects.ADDON: addon.name,
            objects.ADDON_SAGA: addon.saga_id,
        }
        selector = {objects.APP_ID: addon.app_id, objects.ADDON: addon.name}
        secret = objects.manifest(SECRET, namespace, f"addon-{addon.name}", labels)
        secret["data"] = {name: base64.b64encode(value.encode()).decode() for name, value in how.env.items()}
        service = objects.manifest(
            SERVICE,
            namespace,
            addon.name,
            labels,
            spec={
                "selector": selector,
                "ports": [{"name": addon.kind, "protocol": "TCP", "port": how.port, "targetPort": how.port}],
            },
        )
        claim = {
            "metadata": {"name": _VOLUME, "labels": {**selector, objects.INSTALLATION: self._installation}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": storage}},
                **({"storageClassName": self._means.storage_class} if self._means.storage_class else {}),
            },
        }
        stateful_set = objects.manifest(
            STATEFUL_SET,
            namespace,
            addon.name,
            labels,
            spec={
                "serviceName": addon.name,
                "replicas": 1,
                "revisionHistoryLimit": 0,
                "selector": {"matchLabels": selector},
                "template": {
                    "metadata": {
                        "labels": {**labels, objects.PROCESS: valid(addon.name)},
                        "annotations": {objects.PROCESS: addon.name},
                    },
                    "spec": self._pod(addon, how),
                },
                "volumeClaimTemplates": [claim],
            },
        )
        return [secret, service, stateful_set]

    def _pod(self, addon: AddOn, how: Recipe) -> Object:
        open_port = {"tcpSocket": {"port": how.port}}
        container: Object = {
            "name": addon.kind,
            "image": how.image,
            "imagePullPolicy": "IfNotPresent",
            "envFrom": [{"secretRef": {"name": f"addon-{addon.name}"}}],
            "ports": [{"name": addon.kind, "containerPort": how.port, "protocol": "TCP"}],
            "startupProbe": {
                **({"exec": {"command": list(how.check)}} if how.check else open_port),
                "periodSeconds": _LOOK_S,
                "timeoutSeconds": 10,
                "failureThreshold": _NEVER,
            },
            "readinessProbe": {**open_port, "periodSeconds": _LOOK_S, "timeoutSeconds": 5},
            "resources": {
                "limits": {"cpu": objects.cpus(self._means.cpus), "memory": f"{self._means.memory_mb}Mi"},
                "requests": {
                    "cpu": objects.cpus(min(_REQUESTED_CPUS, self._means.cpus)),
                    "memory": f"{min(_REQUESTED_MB, self._means.memory_mb)}Mi",
                },
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": list(_CAPABILITIES)},
            },
            "volumeMounts": [{"name": _VOLUME, "mountPath": how.data, "subPath": _FOLDER}],
        }
        if how.command:
            container["command"] = list(how.command)
        return {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE_S,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        }


def _is_current(stateful_set: Object, pod: Object) -> bool:
    """Whether the pod is of the set's newest form."""
    status = stateful_set.get("status", {})
    seen = status.get("observedGeneration", 0) >= stateful_set["metadata"]["generation"]
    revision = pod["metadata"]["labels"].get("controller-revision-hash")
    return bool(seen and revision == status.get("updateRevision"))


def _storage(stateful_set: Object | None) -> str:
    """What it asked for when it was made: the cluster lets nobody change that."""
    if stateful_set is None:
        return ""
    (claim,) = stateful_set["spec"]["volumeClaimTemplates"]
    return str(claim["spec"]["resources"]["requests"]["storage"])
