"""A short-lived pod that has a volume mounted, for its export and its import.

The pod runs `storage_server` as the user that apps run as, so no image of an app needs a `tar`. It goes where other
pods with the volume are. The deployer asks it at its address; an export also goes through the API server, which
passes GET on. The deployer enters no pod: its account has neither `pods/exec` nor `pods/attach`. A pod's token is good
for one request.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import structlog

from seedwork.errors import KnarrError, StorageFull, Unavailable
from services.deployer.adapters.kubernetes import storage_server, verdicts
from services.deployer.adapters.kubernetes.cluster import POD, Cluster, Object
from services.deployer.errors import CannotRun, NoCapacity

TOKEN_HEADER = "X-Knarr-Token"  # noqa: S105  a name

_PLACE = "/volume"
_LIVES_S = 6 * 3600
"""An export or import that takes longer is ended by the cluster."""
_LOOK_S = 2
_PIECE_BYTES = 256 * 1024
_TIMEOUT = httpx2.Timeout(600.0, connect=5.0)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """How storage pods are made."""

    user: int
    """User and group that own the content of volumes."""
    image: str = "python:3.11-slim"
    """It has `python3`."""
    start_limit_s: float = 300.0
    """Time for a pod to start, the image's pull included."""
    pull_secret: str | None = None


class StoragePods:
    """Makes storage pods.

    Args:
        cluster: Runs them.
        options: How they are made.
    """

    def __init__(self, cluster: Cluster, options: StorageOptions) -> None:
        self._cluster = cluster
        self._options = options

    async def read(self, pod: Object, claim: str) -> AsyncGenerator[bytes, None]:
        """Yield the content of a claim as pieces of a tar archive.

        Args:
            pod: `metadata` of the pod, and of its `spec` what it has in common with pods of the app.
            claim: Name of the claim.
        """
        async with self._running(pod, claim) as found:
            try:
                async for piece in self._from_its_address(found):
                    yield piece
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                log.info("storage.through_the_api", pod=found.name)
                where = (found.namespace, found.name, storage_server.PORT, "/")
                async for piece in self._cluster.stream_through(*where, headers=found.headers):
                    yield piece
            except httpx2.HTTPError as error:
                raise _cut_off(error) from error

    async def replace(self, pod: Object, claim: str, archive: Path) -> None:
        """Replace the content of a claim; see `read`.

        Raises:
            CannotRun: The deployer does not reach pods.
            StorageFull: The volume has no room for the archive beside its content.
        """
        size = (await asyncio.to_thread(archive.stat)).st_size
        async with self._running(pod, claim) as found:
            headers = {**found.headers, "Content-Length": str(size)}
            try:
                async with found.client() as client:
                    answer = await client.put("/", headers=headers, content=_pieces(archive))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                raise CannotRun(
                    "The archive cannot be sent to the volume",
                    why=f"the deployer does not reach the pods' network ({type(error).__name__})",
                    todo="Run the deployer in the cluster, or let a program of the app fetch the archive:"
                    " `knarr run APP COMMAND`.",
                ) from error
            except httpx2.HTTPError as error:
                raise _cut_off(error) from error
            found.check(answer.status_code, answer.content)

    async def _from_its_address(self, found: "_Found") -> AsyncIterator[bytes]:
        async with found.client() as client, client.stream("GET", "/", headers=found.headers) as answer:
            found.check(answer.status_code, b"")
            async for piece in answer.aiter_bytes(_PIECE_BYTES):
                yield piece

    @contextlib.asynccontextmanager
    async def _running(self, pod: Object, claim: str) -> AsyncIterator["_Found"]:
        token = secrets.token_urlsafe(32)
        made = self._manifest(pod, claim, token)
        namespace, name = made["metadata"]["namespace"], made["metadata"]["name"]
        try:
            await self._cluster.create(made)
            yield _Found(namespace, name, await self._until_it_listens(made), {TOKEN_HEADER: token})
        finally:
            await asyncio.shield(self._remove(namespace, name))

    async def _until_it_listens(self, made: Object) -> str:
        """Return the address of the pod."""
        clock, metadata = asyncio.get_running_loop().time, made["metadata"]
        began = clock()
        while True:
            listed = await self._cluster.list(POD, metadata["namespace"], metadata["labels"])
            item = next((each for each in listed.items if each["metadata"]["name"] == metadata["name"]), None)
            pod = verdicts.read_pods([item])[0] if item else None
            if item and _is_ready(item):
                return str(item["status"]["podIP"])
            fault = verdicts.hopeless(pod) if pod else None
            late = clock() - began > self._options.start_limit_s
            if (fault and fault.at_once) or late or (pod and pod.ended):
                why = (fault.why or fault.what) if fault else (pod and (pod.unschedulable or pod.waiting)) or "it ended"
                raise NoCapacity(
                    "The cluster does not start the pod that reads and writes the volume",
                    why=why,
                    todo="The volume is on the node of the app's instances: make room there, or stop the app. Is"
                    " KNARR_STORAGE_IMAGE an image with python3 that the nodes can pull?",
                )
            await self._cluster.changed(POD, metadata["namespace"], metadata["labels"], listed.version, limit_s=_LOOK_S)

    async def _remove(self, namespace: str, name: str) -> None:
        try:
            await self._cluster.delete(POD, namespace, name, grace_s=0)
        except KnarrError as error:  # it ends by itself, and a sweep removes it
            log.warning("storage.pod_not_removed", pod=name, why=error.message)

    def _manifest(self, pod: Object, claim: str, token: str) -> Object:
        user = self._options.user
        container: Object = {
            "name": "storage",
            "image": self._options.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", _source()],
            "env": [{"name": "TOKEN", "value": token}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
            "ports": [{"name": "http", "containerPort": storage_server.PORT, "protocol": "TCP"}],
            "readinessProbe": {"tcpSocket": {"port": storage_server.PORT}, "periodSeconds": 1},
            "resources": {
                "limits": {"cpu": "1", "memory": "256Mi"},
                "requests": {"cpu": "50m", "memory": "64Mi"},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": claim, "mountPath": _PLACE}],
        }
        spec: dict[str, Any] = {
            **pod["spec"],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIVES_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}}],
        }
        if self._options.pull_secret:
            spec["imagePullSecrets"] = [{"name": self._options.pull_secret}]
        return {"apiVersion": "v1", "kind": POD.name, "metadata": pod["metadata"], "spec": spec}


@dataclass(frozen=True, slots=True)
class _Found:
    """A storage pod that listens."""

    namespace: str
    name: str
    address: str
    headers: Mapping[str, str]

    def client(self) -> httpx2.AsyncClient:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return httpx2.AsyncClient(base_url=f"http://{host}:{storage_server.PORT}", timeout=_TIMEOUT, trust_env=False)

    @staticmethod
    def check(status: int, said: bytes) -> None:
        """Raise what a status means."""
        why = said[:500].decode(errors="replace")
        if status == httpx2.codes.INSUFFICIENT_STORAGE and "No space left" in why:
            raise StorageFull(
                "The volume has no room for the archive",
                why="the old content stays until the new one is complete, so both need room",
                todo="Make the volume larger, or let a program of the app remove files first.",
            )
        if status >= httpx2.codes.BAD_REQUEST:
            raise Unavailable("The volume could not be read or written", why=why or f"status {status}")


def _is_ready(item: Object) -> bool:
    conditions = item.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _source() -> str:
    return Path(storage_server.__file__).read_text()


def _cut_off(error: Exception) -> Unavailable:
    return Unavailable("The volume could not be read or written to its end", why=str(error) or type(error).__name__)


async def _pieces(archive: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(archive.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
    finally:
        await asyncio.to_thread(file.close)
