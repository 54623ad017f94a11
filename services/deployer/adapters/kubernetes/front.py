"""What an app has in the cluster beside its releases: a namespace, the Service that says who serves, the ways in.

The Service is the route: its selector names the saga whose pods get the traffic, an annotation the fence under which it
was moved last. Both change in one write, which the API refuses if the Service is not the one that was read.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

import structlog

from seedwork.clock import Clock
from seedwork.errors import Conflict, FinalError, Misconfigured, NotFound, Unavailable
from seedwork.side_by_side import side_by_side
from services.deployer.adapters.kubernetes import comparing, objects, verdicts
from services.deployer.adapters.kubernetes.cluster import (
    CLAIM,
    DEPLOYMENT,
    ENDPOINTS,
    INGRESS,
    JOB,
    NAMESPACE,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    Cluster,
    Object,
    Stale,
)
from services.deployer.adapters.kubernetes.reaching import leads_to_a_pod
from services.deployer.adapters.naming import label as valid
from services.deployer.adapters.naming import unique
from services.deployer.errors import Fenced
from services.deployer.ports import Address

log = structlog.get_logger(__name__)

_RACES = 20
_NODE_PORTS_END = 32_768
_GONE_LOOKS, _GONE_LOOK_S = 1200, 0.25
"""How often, and at which interval in seconds, is looked whether a namespace is gone."""
_BOUND_MS = 60_000
"""For so long an app's RoleBinding counts as there; somebody may have deleted it."""
_LOOKS_S = (0.01, 0.02, 0.04, 0.08, *(0.1,) * 100)
"""Pauses between looks whether a Service has its addresses; the first are short, since a deployment waits for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How apps are reached."""

    host: str = "127.0.0.1"
    """Of a node, for URLs with a node port."""
    node_port_base: int = 30_000
    domain: str | None = None
    """With it each app has an Ingress `<app>.<domain>`, and no node port."""
    ingress_class: str | None = None
    tls_secret: str | None = None
    """Of the Ingress; empty: TLS with the controller's own certificate; None: no TLS."""


class Front:
    """The namespaces and Services of all apps.

    Args:
        cluster: Has them.
        clock: For waiting.
        shape: Quotas and the like.
        ways: How apps are reached.
    """

    def __init__(self, cluster: Cluster, clock: Clock, shape: objects.Shape, ways: Ways) -> None:
        self._cluster = cluster
        self._clock = clock
        self._shape = shape
        self._ways = ways
        self._bound_ms: dict[str, int] = {}
        """When the RoleBinding of a namespace was applied."""

    def labels(self, app_id: str, saga_id: str | None = None, *, step: str | None = None) -> dict[str, str]:
        """By which an app's (a saga's, a step's) objects are found."""
        labels = {objects.INSTALLATION: self._shape.installation, objects.APP_ID: app_id}
        if saga_id:
            labels[objects.SAGA] = saga_id
        if step:
            labels[objects.STEP] = step
        return labels

    # ── namespaces ───────────────────────────────────────────────────────────────────────────────────────────────

    async def namespace(self, app_id: str) -> str | None:
        """The app's namespace, unless it is on its way out."""
        listed = await self._cluster.list(NAMESPACE, None, self.labels(app_id))
        found = [each["metadata"] for each in listed.items if "deletionTimestamp" not in each["metadata"]]
        if not found:
            return None
        metadata = min(found, key=lambda each: str(each["name"]))
        await self._enter(metadata["name"], metadata.get("labels") or {})
        return str(metadata["name"])

    async def namespaces(self) -> list[str]:
        """Those of all apps of this installation."""
        listed = await self._cluster.list(NAMESPACE, None, {objects.INSTALLATION: self._shape.installation})
        found = [each["metadata"] for each in listed.items if "deletionTimestamp" not in each["metadata"]]
        for each in found:
            await self._enter(each["name"], each.get("labels") or {})
        return [str(each["name"]) for each in found]

    async def _enter(self, namespace: str, labels: Mapping[str, str], *, anew: bool = False) -> None:
        """Have our rights in the namespace, where our account has them by a RoleBinding.

        Raises:
            Misconfigured: We may not bind the role, or the binding gives no rights.
        """
        account, now_ms = self._shape.account, self._clock.now_ms()
        if account is None or (not anew and now_ms - self._bound_ms.get(namespace, -_BOUND_MS) < _BOUND_MS):
            return
        try:
            await self._cluster.apply(objects.binding(namespace, labels, account))
        except NotFound:
            return  # the namespace goes at this moment
        for pause_s in _LOOKS_S:
            if await self._cluster.allows("create", SECRET, namespace):
                self._bound_ms[namespace] = now_ms
                return
            await self._clock.sleep(pause_s)
        raise Misconfigured(
            f"The RoleBinding {account.role} of {namespace} gives no rights",
            why=f"the account {account.namespace}/{account.name} may not create Secrets there",
            todo="Compare KNARR_KUBERNETES_SERVICE_ACCOUNT with the service account of the deployer's pod.",
        )

    async def is_going(self, app_id: str) -> bool:
        """Whether a namespace of the app is being deleted and not gone yet."""
        listed = await self._cluster.list(NAMESPACE, None, self.labels(app_id))
        return any("deletionTimestamp" in each["metadata"] for each in listed.items)

    async def make_namespace(self, app_id: str, app: str) -> str:
        """The one that it has, else a new one, if nobody makes it at this moment."""
        return await self.namespace(app_id) or await self._new_namespace(app_id, app)

    async def _new_namespace(self, app_id: str, app: str) -> str:
        """A new one; one of its name that is being deleted is waited for.

        Raises:
            Unavailable: The cluster does not get rid of it.
        """
        name = objects.namespace_name(self._shape.installation, app, app_id)
        labels = objects.app_labels(self._shape.installation, app, app_id)
        for _ in range(_GONE_LOOKS):
            known = await self._cluster.get(NAMESPACE, None, name)
            if known is None or "deletionTimestamp" not in known["metadata"]:
                break
            await self._clock.sleep(_GONE_LOOK_S)
        await self._cluster.create(objects.namespace(name, labels, app=app))
        await self._enter(name, labels, anew=True)
        return name

    async def surround(self, app_id: str, app: str, team: str, *, also: Callable[[str], Object] | None = None) -> str:
        """The app's namespace with quota, limits and policies as our settings want them now.

        Args:
            app_id: Whose it is.
            app: The app's name.
            team: The app's team.
            also: Makes of the namespace's name what else is to be in it.
        """
        namespace = await self.make_namespace(app_id, app)
        labels = objects.app_labels(self._shape.installation, app, app_id, team)
        wanted = [objects.namespace(namespace, labels, app=app)]
        wanted += objects.surroundings(namespace, labels, self._shape)
        if also is not None:
            wanted.append(also(namespace))
        await side_by_side(*(partial(self._cluster.apply, each) for each in wanted))
        return namespace

    async def leave(self, app_id: str) -> str:
        """Remove the app's namespace if nothing is in it but what every app has; its name, if so.

        A first deployment that failed leaves none. An app with traffic, an instance, an add-on or a volume keeps it.
        """
        namespace = await self.namespace(app_id)
        if namespace is None or await self.serves(namespace) != objects.NOBODY:
            return ""
        for kind in (DEPLOYMENT, STATEFUL_SET, JOB, POD, CLAIM, SECRET):
            there = (await self._cluster.list(kind, namespace, {})).items
            if any(_is_of_the_app(each) for each in there):
                return ""
        await self.forget(namespace)
        return namespace

    async def forget(self, namespace: str) -> None:
        """Remove it with everything in it, volumes included."""
        await self._cluster.delete(NAMESPACE, None, namespace)
        for _ in range(_GONE_LOOKS):
            if await self._cluster.get(NAMESPACE, None, namespace) is None:
                return
            await self._clock.sleep(_GONE_LOOK_S)
        raise Unavailable("The cluster does not remove a namespace", why=namespace)

    # ── the way in ───────────────────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """The address that the app has, else a new one under none of these ports."""
        known, services = await side_by_side(partial(self.namespace, app_id), self._services)
        namespace = known or await self._new_namespace(app_id, app)
        for each in services:
            if (each["metadata"]["namespace"], each["metadata"]["name"]) == (namespace, objects.WEB):
                return _address(each)
        return await self._first_free(namespace, app_id, app, taken=taken | self._ports(services))

    async def address(self, namespace: str) -> Address | None:
        """Where the app is reached, if it has its Service."""
        service = await self._cluster.get(SERVICE, namespace, objects.WEB)
        return _address(service) if service and _is_ours(service) else None

    async def open_again(self, namespace: str, app_id: str, app: str, *, port: int) -> None:
        """Make the app's Service under the port that it had before.

        Raises:
            Conflict: Somebody else has it.
        """
        await self._first_free(namespace, app_id, app, taken=self._ports(await self._services()), port=port)

    async def _first_free(
        self, namespace: str, app_id: str, app: str, *, taken: AbstractSet[int], port: int | None = None
    ) -> Address:
        labels = objects.app_labels(self._shape.installation, app, app_id)
        host = await self._host(app_id, app)
        if host:
            way = objects.ingress(
                namespace,
                labels,
                host=host,
                ingress_class=self._ways.ingress_class,
                tls_secret=self._ways.tls_secret,
            )
            await self._cluster.apply(way)
        for candidate in [port] if port else range(self._ways.node_port_base, _NODE_PORTS_END):
            if candidate not in taken and await self._open(namespace, labels, host, candidate):
                return Address(url=self._url(host, candidate), port=candidate)
        raise Conflict(
            "There is no free port for the app",
            why=f"{port} is taken" if port else f"from {self._ways.node_port_base} on all are taken",
            todo="Set KNARR_KUBERNETES_DOMAIN to reach apps by name, or KNARR_KUBERNETES_NODE_PORT_BASE lower.",
        )

    async def _open(self, namespace: str, labels: Mapping[str, str], host: str | None, port: int) -> bool:
        wanted = objects.service(
            namespace, labels, saga_id=None, fence=0, port=port, url=self._url(host, port), node_port=host is None
        )
        try:
            await self._cluster.apply(wanted)
        except FinalError as error:
            if "already allocated" not in error.why:
                raise
            return False
        return True

    async def _services(self) -> Sequence[Object]:
        """Of anybody."""
        return (await self._cluster.list(SERVICE, None, {})).items

    def _ports(self, services: Sequence[Object]) -> set[int]:
        """Those that are used, so that few guesses are needed."""
        nodes = {port.get("nodePort", 0) for each in services for port in each["spec"].get("ports") or ()}
        ours = [
            each["metadata"].get("annotations") or {}
            for each in services
            if (each["metadata"].get("labels") or {}).get(objects.INSTALLATION) == self._shape.installation
        ]
        return nodes | {int(each[objects.PORT]) for each in ours if objects.PORT in each}

    async def _host(self, app_id: str, app: str) -> str | None:
        """The app's name in the domain; another app that has it (of another team) keeps it."""
        if self._ways.domain is None:
            return None
        host = f"{valid(app)}.{self._ways.domain}"
        listed = await self._cluster.list(INGRESS, None, {objects.INSTALLATION: self._shape.installation})
        others = {
            rule.get("host")
            for each in listed.items
            if each["metadata"]["labels"].get(objects.APP_ID) != app_id
            for rule in each["spec"].get("rules") or ()
        }
        return f"{unique(app, app_id)}.{self._ways.domain}" if host in others else host

    def _url(self, host: str | None, port: int) -> str:
        if host:
            return f"{'http' if self._ways.tls_secret is None else 'https'}://{host}/"
        node = self._ways.host
        return f"http://{f'[{node}]' if ':' in node else node}:{port}/"

    # ── traffic ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def serves(self, namespace: str) -> str:
        """The saga whose pods the Service selects; `objects.NOBODY`."""
        service = await self._cluster.get(SERVICE, namespace, objects.WEB)
        return _selected(service) if service else objects.NOBODY

    async def select(self, namespace: str, saga_id: str | None, *, fence: int | None) -> str:
        """Move the traffic; whose it was. `fence` None: compare none, and keep the one that stands.

        Raises:
            Fenced: It was moved under a higher fence.
            Unavailable: There is no Service to move it to that saga.
        """
        for _ in range(_RACES):
            service = await self._cluster.get(SERVICE, namespace, objects.WEB)
            if service is None and saga_id is None:
                return objects.NOBODY
            if service is None or not _is_ours(service):
                raise Unavailable("The app has no Service in the cluster", why=f"somebody removed it from {namespace}")
            stands = _fence(service)
            if fence is not None and fence < stands:
                raise Fenced(
                    "The traffic stays where it is",
                    why=f"it was moved under the fence {stands}, and this is {fence}",
                    todo="A newer deployment of the app is live; nothing is to be done.",
                )
            with contextlib.suppress(Stale):  # somebody wrote in between: read and compare again
                await self._cluster.apply(_moved(service, saga_id, stands if fence is None else fence))
                return _selected(service)
        raise Unavailable("The app's Service changes all the time", why=f"namespace {namespace}")

    async def standing(self, namespace: str) -> tuple[int, str, bool]:
        """The fence under which the traffic was moved last, whose it is, and whether the Service is as we wrote it.

        Fence -1: there is no Service of ours.
        """
        service = await self._cluster.get(SERVICE, namespace, objects.WEB)
        if service is None or not _is_ours(service):
            return -1, objects.NOBODY, False
        fence, saga_id = _fence(service), _selected(service)
        wanted = _moved(service, None if saga_id == objects.NOBODY else saga_id, fence)
        return fence, saga_id, not comparing.differs(wanted, service)

    async def deselect(self, namespace: str, saga_id: str) -> bool:
        """Nobody serves, if this saga's pods did; whether they did."""
        for _ in range(_RACES):
            service = await self._cluster.get(SERVICE, namespace, objects.WEB)
            if service is None or _selected(service) != saga_id:
                return False
            with contextlib.suppress(Stale):
                await self._cluster.apply(_moved(service, None, _fence(service)))
                return True
        raise Unavailable("The app's Service changes all the time", why=f"namespace {namespace}")

    async def until_routed(self, namespace: str, app_id: str, saga_id: str) -> None:
        """Until the Service has the addresses of the saga's ready pods: a matter of moments."""
        listed = await self._cluster.list(POD, namespace, self.labels(app_id, saga_id, step="deploy"))
        pods = verdicts.read_pods(listed.items)
        wanted = {each.name for each in pods if each.ready and each.process == objects.WEB and not each.stopping}
        for pause_s in _LOOKS_S:
            if not wanted or _routed(await self._cluster.get(ENDPOINTS, namespace, objects.WEB)) >= wanted:
                return
            await self._clock.sleep(pause_s)
        log.warning("a Service has no addresses yet", namespace=namespace)

    async def until_open(self, namespace: str, *, limit_s: float) -> None:
        """Until the app's first node port leads to a pod, which is some 0.1 s later than the Service's addresses.

        Not every node can be reached from here, so that it is not waited for longer than that.
        """
        address = await self.address(namespace)
        if address is None or self._ways.domain is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not await leads_to_a_pod(self._ways.host, address.port):
                    await self._clock.sleep(0.01)


def _moved(service: Object, saga_id: str | None, fence: int) -> Object:
    """The Service as it is to be; the write counts only if it is still as it was read."""
    address, metadata = _address(service), service["metadata"]
    return objects.service(
        metadata["namespace"],
        metadata["labels"],
        saga_id=saga_id,
        fence=fence,
        port=address.port,
        url=address.url,
        node_port=service["spec"]["type"] == "NodePort",
        version=metadata["resourceVersion"],
    )


def _address(service: Object) -> Address:
    annotations = service["metadata"]["annotations"]
    return Address(url=annotations[objects.URL], port=int(annotations[objects.PORT]))


def _fence(service: Object) -> int:
    return int((service["metadata"].get("annotations") or {}).get(objects.FENCE, "0"))


def _is_ours(service: Object) -> bool:
    """Whether it says the app's address: one that somebody else made in its place does not."""
    return {objects.URL, objects.PORT} <= set(service["metadata"].get("annotations") or {})


def _is_of_the_app(item: Object) -> bool:
    """Whether it is more than what every namespace and every app has."""
    if item.get("type") == "kubernetes.io/service-account-token":
        return False
    metadata = item["metadata"]
    return bool(metadata["name"] != objects.PULL_SECRET and "deletionTimestamp" not in metadata)


def _selected(service: Object) -> str:
    return str(service["spec"].get("selector", {}).get(objects.SAGA, objects.NOBODY))


def _routed(endpoints: Object | None) -> set[str]:
    """The pods to which a Service sends requests."""
    return {
        address.get("targetRef", {}).get("name", "")
        for subset in (endpoints or {}).get("subsets") or ()
        for address in subset.get("addresses") or ()
    }
