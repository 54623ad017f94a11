"""Volumes of an app as claims in its namespace, mounted into each of its pods.

A claim is `ReadWriteOnce`, as every storage class can provide: one node has it at a time. So all pods that mount one
run on one node, instances of an old and of a new release included. Its size is what the storage class makes of it.

A claim keeps its namespace: the removal of an app leaves the namespace there until its last claim is deleted.

Content is read and written through a short-lived pod that mounts the claim (`storage_pod`).
"""

import contextlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedwork.archives import ArchiveLimits, read_tar
from seedwork.errors import Unavailable
from seedwork.threads import in_thread
from services.deployer.adapters.kubernetes.cluster import (
    CLAIM,
    DEPLOYMENT,
    INGRESS,
    JOB,
    NAMESPACE,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Cluster,
    Object,
)
from services.deployer.adapters.kubernetes.storage_pod import StorageOptions, StoragePods
from services.deployer.errors import CannotRun
from services.deployer.ports import Release, Volume

VOLUME = "knarr.io/volume"
MOUNTS = "knarr.io/mounts-volumes"
"""On pods that mount volumes; they go where others of the app with this label are."""

STORAGE = "storage"
"""Value of the label `knarr.io/step` of pods that read and write a volume."""

_STEP = "knarr.io/step"
_HOSTNAME = "kubernetes.io/hostname"
_IMPORT = ArchiveLimits(max_bytes=16 * 1024**4, max_entries=10_000_000, max_depth=256, max_path_bytes=4096)
_WAIT_S = 5
_WAITS = 24


def claim_name(volume: Volume) -> str:
    """Return the name of a volume's claim."""
    return f"storage-{volume.name}"


def claim(namespace: str, labels: Mapping[str, str], volume: Volume, *, storage_class: str | None) -> Object:
    """Return the claim of a volume. A claim that exists keeps its size: most storage classes cannot change it."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(volume.size_bytes)}},
    }
    if storage_class:
        spec["storageClassName"] = storage_class
    metadata = {"name": claim_name(volume), "namespace": namespace, "labels": {**labels, VOLUME: volume.name}}
    return {"apiVersion": "v1", "kind": CLAIM.name, "metadata": metadata, "spec": spec}


def labels(release: Release) -> dict[str, str]:
    """Return the labels that a release's objects have because of its volumes."""
    return {MOUNTS: "true"} if release.volumes else {}


def mounted(
    pod: Object, release: Release, *, app_label: Mapping[str, str], group: int, owner_image: str | None
) -> Object:
    """Return a pod's spec whose first container has the release's volumes.

    Args:
        pod: The spec without them.
        release: What the pod is of.
        app_label: Label that all pods of the app have.
        group: Supplementary group that may write to the volumes.
        owner_image: Image with `chown`, for storage classes that ignore `fsGroup`; None: the class heeds it.
    """
    if not release.volumes:
        return pod
    term = {"labelSelector": {"matchLabels": {**app_label, MOUNTS: "true"}}, "topologyKey": _HOSTNAME}
    first, *others = pod["containers"]
    mounts = [{"name": claim_name(each), "mountPath": each.path} for each in release.volumes]
    claims = [
        {"name": claim_name(each), "persistentVolumeClaim": {"claimName": claim_name(each)}} for each in release.volumes
    ]
    owner = [_owner(owner_image, mounts, group)] if owner_image else []
    return {
        **pod,
        **({"initContainers": owner} if owner else {}),
        "containers": [{**first, "volumeMounts": [*first.get("volumeMounts", ()), *mounts]}, *others],
        "volumes": [*pod.get("volumes", ()), *claims],
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
        "securityContext": {**pod.get("securityContext", {}), "fsGroup": group},
    }


def _owner(image: str, mounts: list[dict[str, str]], group: int) -> Object:
    """Return a container that gives the volumes to the group before the app starts. It alone runs as root."""
    return {
        "name": "volume-owner",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["chown", f"{group}:{group}", *(each["mountPath"] for each in mounts)],
        "volumeMounts": mounts,
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        },
    }


class KubernetesVolumes:
    """See `Volumes`; and makes the claims of a release.

    Args:
        cluster: Keeps them.
        app_label: Key of the label with the app's id.
        installation_label: Key and value of the label of this installation.
        storage_class: Name of the storage class; None: the cluster's default.
        pods: Read and write content; None: with the default image, as the group's user.
        owner_image: As in `mounted`.
        group: As in `mounted`.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        app_label: str,
        installation_label: Mapping[str, str],
        storage_class: str | None,
        pods: StoragePods | None = None,
        owner_image: str | None = None,
        group: int = 1000,
    ) -> None:
        self._cluster = cluster
        self._app_label = app_label
        self._installation_label = installation_label
        self._storage_class = storage_class
        self._pods = pods or StoragePods(cluster, StorageOptions(user=group))
        self._owner_image = owner_image
        self._group = group

    async def ensure(self, namespace: str, release: Release) -> None:
        """Make the claims that are not there."""
        for volume in release.volumes:
            if await self._cluster.get(CLAIM, namespace, claim_name(volume)) is None:
                labels = self._labels(volume.app_id)
                made = claim(namespace, labels, volume, storage_class=self._storage_class)
                await self._cluster.apply(made)

    async def holds(self, namespace: str) -> bool:
        """Return whether a namespace has claims of volumes."""
        return bool((await self._cluster.list(CLAIM, namespace, {VOLUME: ""})).items)

    async def clear(self, namespace: str) -> None:
        """Delete all but the claims of volumes from a namespace, and wait until no pod is left."""
        for kind in (SERVICE, INGRESS):
            for item in (await self._cluster.list(kind, namespace, self._installation_label)).items:
                await self._cluster.delete(kind, namespace, item["metadata"]["name"])
        for kind in (DEPLOYMENT, STATEFUL_SET, JOB, SECRET, POD):
            await self._cluster.delete_all(kind, namespace, self._installation_label)
        for item in (await self._cluster.list(CLAIM, namespace, self._installation_label)).items:
            if VOLUME not in item["metadata"]["labels"]:
                await self._cluster.delete(CLAIM, namespace, item["metadata"]["name"])
        for _ in range(_WAITS):
            pods = await self._cluster.list(POD, namespace, self._installation_label)
            if not pods.items:
                return
            await self._cluster.changed(POD, namespace, self._installation_label, pods.version, limit_s=_WAIT_S)
        raise Unavailable("The cluster does not delete pods", why=namespace)

    async def used_bytes(self, volume: Volume) -> int | None:  # noqa: ARG002  the port's signature
        """See `Volumes.used_bytes`: only a node knows."""
        return None

    async def read(self, volume: Volume) -> AsyncGenerator[bytes, None]:
        """See `Volumes.read`."""
        async with contextlib.aclosing(self._pods.read(await self._pod(volume), claim_name(volume))) as pieces:
            async for piece in pieces:
                yield piece

    async def replace(self, volume: Volume, archive: Path) -> None:
        """See `Volumes.replace`. The archive is read to its end before a pod is made."""
        await in_thread(lambda stop: [None for _ in read_tar(archive, limits=_IMPORT, stop=stop)])
        await self._pods.replace(await self._pod(volume), claim_name(volume), archive)

    async def sweep(self, namespace: str) -> None:
        """Delete storage pods of a namespace that have ended: their deployer is gone."""
        for pod in (await self._cluster.list(POD, namespace, {**self._installation_label, _STEP: STORAGE})).items:
            if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
                await self._cluster.delete(POD, namespace, pod["metadata"]["name"])

    async def _pod(self, volume: Volume) -> Object:
        """Return what a storage pod has in common with pods of the app: its namespace, its node, its owner.

        Raises:
            CannotRun: The volume was never mounted.
        """
        for namespace in await self._namespaces(volume.app_id):
            if await self._cluster.get(CLAIM, namespace, claim_name(volume)) is not None:
                break
        else:
            raise CannotRun(
                f"The volume {volume.name} has no content yet",
                why="the cluster makes it with the first release that has it",
                todo="Deploy the app once; `knarr stop APP` stops it again before an import.",
            )
        labels = {**self._labels(volume.app_id), _STEP: STORAGE, MOUNTS: "true"}
        metadata = {"name": f"storage-{uuid.uuid4().hex[:12]}", "namespace": namespace, "labels": labels}
        term = {
            "labelSelector": {"matchLabels": {self._app_label: volume.app_id, MOUNTS: "true"}},
            "topologyKey": _HOSTNAME,
        }
        spec: Object = {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}
        if self._owner_image:
            mounts = [{"name": claim_name(volume), "mountPath": "/volume"}]
            spec["initContainers"] = [_owner(self._owner_image, mounts, self._group)]
        return {"metadata": metadata, "spec": spec}

    async def delete(self, volume: Volume) -> Sequence[str]:
        """See `Volumes.delete`: the namespace of a removed app goes with its last claim."""
        found = []
        for namespace in await self._namespaces(volume.app_id):
            if await self._cluster.delete(CLAIM, namespace, claim_name(volume)):
                found.append(f"claim {namespace}/{claim_name(volume)}")
                await self._until_gone(namespace, volume)
            if not await self._in_use(namespace, volume.app_id) and not await self.holds(namespace):
                await self._cluster.delete(NAMESPACE, None, namespace)
        return found

    async def _until_gone(self, namespace: str, volume: Volume) -> None:
        for _ in range(_WAITS):
            listed = await self._cluster.list(CLAIM, namespace, {VOLUME: volume.name})
            if not listed.items:
                return
            await self._cluster.changed(CLAIM, namespace, {VOLUME: volume.name}, listed.version, limit_s=_WAIT_S)
        raise Unavailable("The cluster does not delete a claim", why=f"{namespace}/{claim_name(volume)}")

    async def _in_use(self, namespace: str, app_id: str) -> bool:
        """Return whether the app is still exposed there: a removed one has no Service."""
        return bool((await self._cluster.list(SERVICE, namespace, self._labels(app_id))).items)

    async def _namespaces(self, app_id: str) -> list[str]:
        listed = await self._cluster.list(NAMESPACE, None, self._labels(app_id))
        return [str(each["metadata"]["name"]) for each in listed.items if "deletionTimestamp" not in each["metadata"]]

    def _labels(self, app_id: str) -> dict[str, str]:
        return {**self._installation_label, self._app_label: app_id}
