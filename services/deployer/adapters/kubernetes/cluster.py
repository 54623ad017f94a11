"""The Kubernetes API: manifests in, objects as plain JSON or errors of knarr's tree out.

Credentials, TLS and their renewal are kubernetes-asyncio's; requests go through its dynamic client. Everything that we
want so is server-side applied under the field manager `knarr`, so fields that others manage stay theirs.
Reference: https://kubernetes.io/docs/reference/using-api/ (1.20 and later).
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from seedwork.errors import Conflict, FinalError, KnarrError, Misconfigured, NotFound, Unavailable
from services.deployer.adapters.lines import Lines

if TYPE_CHECKING:
    import aiohttp
    from kubernetes_asyncio.client.api_client import ApiClient
    from kubernetes_asyncio.dynamic import DynamicClient

FIELD_MANAGER = "knarr"
CONNECT_S = 5.0
CALL_S = 30.0
KEEPALIVE_S = 45.0
"""For an idle connection, where aiohttp has 15: a TLS handshake takes as long as three requests. Proxies before an API
server close theirs after 50 s or later."""
_READ_BYTES = 64 * 1024
_OBJECT_BYTES = 16 * 1024 * 1024
"""More than etcd takes for one."""
_ANSWER_BYTES = 256 * 1024
"""Of the answer of a pod that is asked through the API server."""
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Objects without spec, data and status: https://kubernetes.io/docs/reference/using-api/api-concepts/"""
_CHANGES = frozenset({"ADDED", "MODIFIED", "DELETED"})
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of objects, and where the API has them."""

    name: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """Such as `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Of all of them, those of a namespace, or one."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        return "/".join([*parts, name] if name else parts)


NAMESPACE = Kind("Namespace", "namespaces", namespaced=False)
SERVICE = Kind("Service", "services")
ENDPOINTS = Kind("Endpoints", "endpoints")
SECRET = Kind("Secret", "secrets")
POD = Kind("Pod", "pods")
EVENT = Kind("Event", "events")
QUOTA = Kind("ResourceQuota", "resourcequotas")
LIMITS = Kind("LimitRange", "limitranges")
CLAIM = Kind("PersistentVolumeClaim", "persistentvolumeclaims")
DEPLOYMENT = Kind("Deployment", "deployments", "apps")
REPLICA_SET = Kind("ReplicaSet", "replicasets", "apps")
STATEFUL_SET = Kind("StatefulSet", "statefulsets", "apps")
JOB = Kind("Job", "jobs", "batch")
POLICY = Kind("NetworkPolicy", "networkpolicies", "networking.k8s.io")
INGRESS = Kind("Ingress", "ingresses", "networking.k8s.io")
ROLE_BINDING = Kind("RoleBinding", "rolebindings", "rbac.authorization.k8s.io")
_ACCESS_REVIEW = Kind("SelfSubjectAccessReview", "selfsubjectaccessreviews", "authorization.k8s.io", namespaced=False)
BUDGETS = (
    Kind("PodDisruptionBudget", "poddisruptionbudgets", "policy"),
    Kind("PodDisruptionBudget", "poddisruptionbudgets", "policy", "v1beta1"),
)
"""The newest version first: 1.20 has `v1beta1` only, and 1.25 has it no more."""

_KINDS = {
    each.name: each
    for each in (
        *(NAMESPACE, SERVICE, ENDPOINTS, SECRET, POD, EVENT, QUOTA, LIMITS, CLAIM),
        *(DEPLOYMENT, REPLICA_SET, STATEFUL_SET, JOB, POLICY, INGRESS, ROLE_BINDING, *BUDGETS),
    )
}


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of an object, in the version that it names."""
    known, version = _KINDS[manifest["kind"]], str(manifest["apiVersion"]).rpartition("/")[2]
    return replace(known, version=version)


class Stale(Conflict):
    """The object was changed since it was read: read and compare again."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects, and the version of the list from which a watch goes on."""

    items: list[Object]
    version: str


class Cluster:
    """One cluster.

    Args:
        kubeconfig: A file with address and credentials. None: KUBECONFIG, else those of the pod that we run in, else
            `~/.kube/config`.
    """

    def __init__(self, kubeconfig: Path | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._api: ApiClient | None = None
        self._client: DynamicClient | None = None
        self._connecting = asyncio.Lock()
        self._budgets: Kind | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._api is not None:
            await self._api.close()
            self._api = self._client = None

    async def budgets(self) -> Kind:
        """PodDisruptionBudgets, in the newest version that this cluster has."""
        if self._budgets is None:
            group = await self._json("GET", "/apis/policy")
            there = {each["version"] for each in group["versions"]}
            self._budgets = next(kind for kind in BUDGETS if kind.version in there)
        return self._budgets

    # ── objects ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """That one."""
        try:
            found: Object = await self._json("GET", kind.path(namespace, name))
        except NotFound:
            return None
        return found

    async def list(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        *,
        fields: str = "",
        metadata_only: bool = False,
    ) -> Listed:
        """All with these labels (an empty value: whatever it is), of all namespaces where none is named."""
        query = [("labelSelector", _selector(labels)), ("fieldSelector", fields)]
        accept = _METADATA_LIST if metadata_only else ""
        answer = await self._json("GET", kind.path(namespace), query=[each for each in query if each[1]], accept=accept)
        return Listed(answer.get("items") or [], answer["metadata"].get("resourceVersion", ""))

    async def apply(self, manifest: Mapping[str, Any], *, force: bool = True) -> Object:
        """Let the fields that the manifest names have these values; see the module.

        A `metadata.resourceVersion` in it is compared in the same write.

        Raises:
            Stale: Another version is there.
            InvalidInput-like FinalError: The API refuses the manifest; the text says why.
        """
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"].get("namespace"), manifest["metadata"]["name"])
        query = [("fieldManager", FIELD_MANAGER), ("force", str(force).lower())]
        applied: Object = await self._json(
            "PATCH", path, query=query, body=manifest, content_type="application/apply-patch+yaml"
        )
        return applied

    async def create(self, manifest: Mapping[str, Any]) -> None:
        """Have it there; one that is there already stays as it is.

        Raises:
            Unavailable: It is being deleted.
        """
        path = kind_of(manifest).path(manifest["metadata"].get("namespace"))
        with contextlib.suppress(Stale):
            await self._json("POST", path, query=[("fieldManager", FIELD_MANAGER)], body=manifest)

    async def allows(self, verb: str, kind: Kind, namespace: str) -> bool:
        """Whether our account may do that in the namespace."""
        asked = {"namespace": namespace, "verb": verb, "group": kind.group, "resource": kind.plural}
        review = {
            "apiVersion": _ACCESS_REVIEW.api_version,
            "kind": _ACCESS_REVIEW.name,
            "spec": {"resourceAttributes": asked},
        }
        answer = await self._json("POST", _ACCESS_REVIEW.path(), body=review)
        return bool(answer["status"]["allowed"])

    async def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        """Give it these annotations; nothing, if it is gone."""
        with contextlib.suppress(NotFound):
            await self._json(
                "PATCH",
                kind.path(namespace, name),
                query=[("fieldManager", FIELD_MANAGER)],
                body={"metadata": {"annotations": dict(annotations)}},
                content_type="application/merge-patch+json",
            )

    async def change(self, kind: Kind, namespace: str, name: str, spec: Mapping[str, Any]) -> None:
        """Give these fields of its spec these values and leave the others alone; nothing, if it is gone."""
        with contextlib.suppress(NotFound):
            await self._json(
                "PATCH",
                kind.path(namespace, name),
                query=[("fieldManager", FIELD_MANAGER)],
                body={"spec": spec},
                content_type="application/merge-patch+json",
            )

    async def delete(self, kind: Kind, namespace: str | None, name: str, *, grace_s: int | None = None) -> bool:
        """Have it deleted with all that it owns; whether it was there. It may take its time to go."""
        query = [("propagationPolicy", "Background")]
        if grace_s is not None:
            query.append(("gracePeriodSeconds", str(grace_s)))
        try:
            await self._json("DELETE", kind.path(namespace, name), query=query)
        except NotFound:
            return False
        return True

    async def delete_all(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> None:
        """Have all deleted that carry these labels, with all that they own."""
        query = [("labelSelector", _selector(labels)), ("propagationPolicy", "Background")]
        with contextlib.suppress(NotFound):
            await self._json("DELETE", kind.path(namespace), query=query)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str],
        since: str,
        *,
        limit_s: int,
        metadata_only: bool = False,
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """What happens to them after that version of the list: `ADDED`, `MODIFIED` or `DELETED`, and the object.

        It ends when the time is over, or when the API has forgotten what came after that version: list again then.

        Raises:
            Unavailable: The connection was lost, or there is none.
            NotFound: The version is too old.
        """
        query = [
            ("labelSelector", _selector(labels)),
            ("watch", "true"),
            ("resourceVersion", since),
            ("timeoutSeconds", str(limit_s)),
        ]
        accept = _METADATA if metadata_only else ""
        path = kind.path(namespace)
        async with self._answer("GET", path, query=query, accept=accept, timeout_s=limit_s + CALL_S) as answer:
            cut = Lines(line_bytes=_OBJECT_BYTES)
            async for data in answer.content.iter_any():
                for line in cut.add(data):
                    told = orjson.loads(line)
                    if told["type"] not in _CHANGES:
                        return
                    yield told["type"], told["object"]

    async def changed(self, kind: Kind, namespace: str, labels: Mapping[str, str], since: str, *, limit_s: int) -> None:
        """Wait until one of them may have changed after that version of the list, or the time is over.

        An expired version, a lost connection and whatever else a watch may answer count as a change: who waits lists
        again and compares, so nothing is missed and nothing is believed that a watch alone said.
        """
        with contextlib.suppress(Unavailable, NotFound):
            async with contextlib.aclosing(self.watch(kind, namespace, labels, since, limit_s=limit_s)) as changes:
                await anext(changes, None)

    async def printed(self, namespace: str, pod: str) -> AsyncIterator[bytes]:
        """What a pod prints from its beginning to its end, in pieces as the cluster has them; lines come whole."""
        query = [("follow", "true")]
        async with self._answer("GET", f"{POD.path(namespace, pod)}/log", query=query, timeout_s=None) as answer:
            async for data in answer.content.iter_any():
                yield data

    async def through(
        self, namespace: str, pod: str, port: int, path: str, *, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        """Ask a pod by HTTP through the API server: the status and the first bytes of the answer.

        Raises:
            Misconfigured: Our account may not do that.
        """
        where = f"{POD.path(namespace, f'{pod}:{port}')}/proxy{path}"
        async with self._answer("GET", where, headers=headers, any_status=True, timeout_s=timeout_s) as answer:
            body = await answer.content.read(_ANSWER_BYTES)
            if answer.status in {401, 403} and _is_status(body):
                raise _fault(answer.status, body)
            return answer.status, body

    async def stream_through(
        self, namespace: str, pod: str, port: int, path: str, *, headers: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        """Yield the answer of a pod to GET through the API server; one that breaks off raises `Unavailable`."""
        where = f"{POD.path(namespace, f'{pod}:{port}')}/proxy{path}"
        async with self._answer("GET", where, headers=headers, timeout_s=None) as answer:
            async for data in answer.content.iter_chunked(_READ_BYTES):
                yield data

    async def logs(
        self,
        namespace: str,
        pod: str,
        *,
        lines: int | None,
        follow: bool,
        times: bool,
        after: str = "",
        previous: bool = False,
    ) -> AsyncIterator[bytes]:
        """A pod's lines, each (`times`) with an RFC 3339 time and a space before it; none where it has not begun.

        Args:
            namespace: Where.
            pod: Whose.
            lines: The last ones only, and no more than so many: the answer has no end where a pod prints faster than
                it is read. None: all.
            follow: Go on until it ends.
            times: Whether lines begin with their time.
            after: Only those of this RFC 3339 time (in full seconds) or later.
            previous: Those of the container before the one that runs now.
        """
        query = [("follow", str(follow).lower()), ("timestamps", str(times).lower())]
        if lines is not None:
            query.append(("tailLines", str(lines)))
        if after:
            query.append(("sinceTime", after))
        if previous:
            query.append(("previous", "true"))
        path = f"{POD.path(namespace, pod)}/log"
        left = lines if lines is not None and not follow else sys.maxsize
        try:
            async with self._answer("GET", path, query=query, timeout_s=None if follow else CALL_S) as answer:
                cut = Lines()
                async for data in answer.content.iter_chunked(_READ_BYTES):
                    for line in islice(cut.add(data), left):
                        left -= 1
                        yield line
                    if not left:
                        return
                for line in cut.end():
                    yield line
        except (NotFound, BadRequest):  # it is gone, or no container of it was started yet
            return

    async def version(self) -> str:
        """Of the API server, such as `v1.20.2`."""
        answer = await self._json("GET", "/version")
        return str(answer["gitVersion"])

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "",
    ) -> Any:
        async with self._answer(
            method, path, query=query, body=body, content_type=content_type, accept=accept, timeout_s=CALL_S
        ) as answer:
            return orjson.loads(await answer.read())

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None,
        any_status: bool = False,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """A successful answer; its connection is given back or closed afterwards, read or not."""
        import aiohttp

        client = await self._connected()
        try:
            answer: aiohttp.ClientResponse = await client.request(
                method,
                path,
                body=dict(body) if body is not None else None,
                query_params=list(query),
                content_type=content_type,
                header_params={**(headers or {}), **({"Accept": accept} if accept else {})},
                serialize=False,
                _request_timeout=aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_S),
            )
            async with answer:
                if answer.status >= 400 and not any_status:
                    raise _fault(answer.status, await answer.read())
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                "The Kubernetes API does not answer",
                why=str(error) or type(error).__name__,
                todo="Is the cluster up? `kubectl get --raw /readyz` shows it.",
            ) from error

    async def _connected(self) -> "DynamicClient":
        async with self._connecting:
            if self._client is None:
                self._api, self._client = await self._connect()
            return self._client

    async def _connect(self) -> "tuple[ApiClient, DynamicClient]":
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import Configuration
        from kubernetes_asyncio.client.api_client import ApiClient
        from kubernetes_asyncio.dynamic import DynamicClient

        file = self._kubeconfig or os.environ.get("KUBECONFIG")
        settings = Configuration()
        try:
            if file is None and await asyncio.to_thread(_IN_CLUSTER.exists):
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                await config.load_kube_config(
                    config_file=os.fspath(file) if file else None, client_configuration=settings, persist_config=False
                )
        except (config.ConfigException, OSError) as error:
            raise Misconfigured(
                "No Kubernetes cluster is known",
                why=str(error),
                todo="Set KUBECONFIG to a file with its address and credentials, or run knarr in the cluster.",
            ) from error
        api = ApiClient(configuration=settings)
        _stay_connected(api)
        return api, DynamicClient(api)


def _stay_connected(api: "ApiClient") -> None:
    connector = api.rest_client.pool_manager.connector
    if connector is not None:
        connector._keepalive_timeout = KEEPALIVE_S  # noqa: SLF001  kubernetes-asyncio makes it, and takes no such setting


class BadRequest(FinalError):
    """The API understands the request and sees that it makes no sense now."""


class NoRoom(FinalError):
    """A quota of the namespace is used up."""

    code = "no_room"


def _fault(status: int, body: bytes) -> KnarrError:
    try:
        why = str(orjson.loads(body)["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        why = body[:500].decode(errors="replace").strip() or f"status {status}"
    what = "The Kubernetes API refused a request"
    if "being terminated" in why or "being deleted" in why or status >= 500:
        return Unavailable(what, why=why)
    if "exceeded quota" in why:
        return NoRoom(what, why=why, todo="Raise the namespace's quota (KNARR_KUBERNETES_QUOTA_…), or scale down.")
    return _STATUS.get(status, FinalError)(what, why=why, todo=_TODO.get(status, ""))


def _is_status(body: bytes) -> bool:
    """Whether the API server itself answered, and not the pod."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("kind") == "Status"


_STATUS: Mapping[int, type[KnarrError]] = {
    400: BadRequest,
    401: Misconfigured,
    403: Misconfigured,
    404: NotFound,
    409: Stale,
    410: NotFound,
    429: Unavailable,
}
_RIGHTS = "Give knarr's service account the rights of deploy/k8s, or check the credentials in KUBECONFIG."
_TODO: Mapping[int, str] = {401: _RIGHTS, 403: _RIGHTS}


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" if value else name for name, value in labels.items())
