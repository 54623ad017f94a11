"""A release in, the manifests of its objects out. Pure.

Of an app: a namespace with quota, limits and network policies, and the Service that selects whose pods serve.
Of a release: a Secret with its config, a Deployment per process type (with a PodDisruptionBudget where it has two or
more instances), a Job for its release command, a pod for each one-off process.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ocistore.store import Image
from services.deployer.adapters.environment import environment
from services.deployer.adapters.images import port_of
from services.deployer.adapters.kubernetes import probes, volumes
from services.deployer.adapters.kubernetes.cluster import (
    DEPLOYMENT,
    INGRESS,
    JOB,
    LIMITS,
    NAMESPACE,
    POD,
    POLICY,
    QUOTA,
    ROLE_BINDING,
    SECRET,
    SERVICE,
    Kind,
    Object,
)
from services.deployer.adapters.naming import label as valid
from services.deployer.adapters.naming import short_hash, unique
from services.deployer.checks import Patience, checks_of
from services.deployer.ports import Release

INSTALLATION = "knarr.io/installation"
"""Whose things these are, where several platforms share a cluster."""
APP_ID = "knarr.io/app-id"
APP = "knarr.io/app"
TEAM = "knarr.io/team"
SAGA = "knarr.io/saga"
RELEASE = "knarr.io/release"
STEP = "knarr.io/step"
"""`deploy`: an instance and what it needs; `release`: the release command; `run`: a one-off process."""
PROCESS = "knarr.io/process"
"""The process type as a valid label; its own name is in the annotation of that name."""
DIGEST = "knarr.io/digest"
CONFIG_DIGEST = "knarr.io/config-digest"
"""Of the image's config: engines that have an image name it so, or by `DIGEST`."""
REPLICAS = "knarr.io/replicas"
"""On a Deployment: instances that the release wants, whatever its spec says now."""
ALIVE = "knarr.io/alive"
"""On the pod of a one-off process: when its deployer was there last, in seconds since 1970."""
FENCE = "knarr.io/fence"
"""On the Service: under which fence its traffic was moved last."""
PORT = "knarr.io/port"
URL = "knarr.io/url"
ADDON = "knarr.io/addon"
ADDON_SAGA = "knarr.io/addon-saga"

WEB = "web"
"""The name of the Service and of the process type that it selects."""
NOBODY = "none"
"""The saga that a Service selects while nobody serves."""
CONTAINER = "app"
PULL_SECRET = "registry"  # noqa: S105  an object's name
_PORT_NAME = "http"
_TMP = "tmp"
_DEPLOYER = {"app.kubernetes.io/name": "deployer", "app.kubernetes.io/component": "service"}
"""Labels of the deployer's pods, as in `deploy/k8s`."""
_JOB_RESERVE_S = 900
"""The cluster ends a Job, and its log, when we did not: its image may have to be pulled first."""
_HOST_ENV = "HOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The deployer's service account, and the ClusterRole that it has in the namespaces of apps and nowhere else."""

    namespace: str
    name: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all instances have in common."""

    installation: str
    memory_mb: int = 512
    cpus: float = 1.0
    requested_memory_mb: int = 64
    requested_cpus: float = 0.05
    quota_cpus: float = 16
    quota_memory_mb: int = 16 * 1024
    quota_pods: int = 100
    run_as_user: int = 10_001
    volume_owner_image: str | None = None
    """Image with `chown`, for storage classes that ignore `fsGroup`."""
    grace_s: int = 10
    settle_s: int = 1
    release_command_timeout_s: int = 600
    run_limit_s: int = 24 * 3600
    """Longest time of a one-off process in seconds."""
    patience: Patience = field(default_factory=Patience)
    """Limits for health checks."""
    egress_except: tuple[str, ...] = ()
    """Networks that apps must not reach."""
    dns_networks: tuple[str, ...] = ()
    """Networks of DNS servers that are no pods labelled `k8s-app: kube-dns`."""
    tmp_mb: int | None = None
    """MiB of `/tmp`, where the other files of an instance are read-only; None: an instance may write to all of them."""
    account: Account | None = None
    """Whose rights in an app's namespace come from a RoleBinding there; None: we have them in all namespaces."""
    pull_login: tuple[str, str, str] | None = field(default=None, repr=False)
    """Registry host, user and password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an image says that a pod must be told."""

    reference: str
    port: int
    run_as_user: int | None
    """None: the image's own user, which is a number and not root."""
    has_home: bool


def facts_of(image: Image, reference: str, *, default_user: int, port: int | None = None) -> Facts:
    """Read the image's config; `port` is the one that the app fixes.

    Kubernetes runs as non-root only what it knows by number: an image of root or of a named user gets `default_user`.
    """
    config = image.config.get("config", {})
    user = str(config.get("User") or "").partition(":")[0]
    return Facts(
        reference=reference,
        port=port or port_of(image),
        run_as_user=None if user.isdigit() and int(user) else default_user,
        has_home=any(str(each).startswith("HOME=") for each in config.get("Env") or ()),
    )


# ── of an app ────────────────────────────────────────────────────────────────────────────────────────────────────────


def namespace_name(installation: str, app: str, app_id: str) -> str:
    """Of a new app; found by its label later, since an app may be renamed."""
    return f"{installation}-{unique(app, app_id)}"


def app_labels(installation: str, app: str, app_id: str, team: str | None = None) -> dict[str, str]:
    """On everything of an app."""
    labels = {INSTALLATION: installation, APP_ID: app_id, APP: valid(app)}
    return {**labels, TEAM: valid(team)} if team else labels


def namespace(name: str, labels: Mapping[str, str], *, app: str) -> Object:
    """The app's own. Its pods are restricted by their own manifests; add-ons start as root to own their volume."""
    rules = {f"pod-security.kubernetes.io/{mode}": level for mode, level in _POD_SECURITY.items()}
    return manifest(NAMESPACE, None, name, {**labels, **rules}, annotations={APP: app})


_POD_SECURITY = {"enforce": "baseline", "warn": "restricted"}


def surroundings(namespace: str, labels: Mapping[str, str], shape: Shape) -> list[Object]:
    """Quota, limits, network policies, and the login at the registry."""
    found = [
        manifest(
            QUOTA,
            namespace,
            "knarr",
            labels,
            spec={
                "hard": {
                    "limits.cpu": cpus(shape.quota_cpus),
                    "limits.memory": f"{shape.quota_memory_mb}Mi",
                    "pods": str(shape.quota_pods),
                }
            },
        ),
        manifest(
            LIMITS,
            namespace,
            "knarr",
            labels,
            spec={
                "limits": [
                    {
                        "type": "Container",
                        "default": {"cpu": cpus(shape.cpus), "memory": f"{shape.memory_mb}Mi"},
                        "defaultRequest": {
                            "cpu": cpus(shape.requested_cpus),
                            "memory": f"{shape.requested_memory_mb}Mi",
                        },
                    }
                ]
            },
        ),
        *_policies(namespace, labels, shape),
    ]
    if shape.pull_login:
        found.append(_pull_secret(namespace, labels, shape.pull_login))
    return found


def _policies(namespace: str, labels: Mapping[str, str], shape: Shape) -> list[Object]:
    """Who reaches the app's pods, and whom they reach.

    In: anybody at the HTTP port of `web`; the deployer's own pods at each port, since a health check may name another
    one. Out: the app's own pods, the cluster's DNS servers at port 53, and the internet without `egress_except`.
    """
    outside = {
        "ipBlock": {"cidr": "0.0.0.0/0", **({"except": list(shape.egress_except)} if shape.egress_except else {})}
    }
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    web = {
        "podSelector": {"matchLabels": {PROCESS: WEB, STEP: "deploy"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"protocol": "TCP", "port": _PORT_NAME}]},
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": _DEPLOYER}}]},
        ],
    }
    inside = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}]}],
        "egress": [{"to": [{"podSelector": {}}]}, _to_resolvers(shape.dns_networks)],
    }
    storage = {
        "podSelector": {"matchLabels": {STEP: volumes.STORAGE}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": _DEPLOYER}}]}],
    }
    internet = {
        "podSelector": {"matchExpressions": [{"key": SAGA, "operator": "Exists"}]},
        "policyTypes": ["Egress"],
        "egress": [{"to": [outside]}],
    }
    named: dict[str, Object] = {"deny-all": deny, "allow-web": web, "allow-own": inside, "allow-internet": internet}
    named["allow-storage"] = storage
    return [manifest(POLICY, namespace, name, labels, spec=spec) for name, spec in named.items()]


def _to_resolvers(networks: Sequence[str]) -> Object:
    """Egress to the cluster's DNS servers and to nobody else at port 53: an open port 53 is a way out for any data."""
    pods = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    return {
        "to": [pods, *({"ipBlock": {"cidr": network}} for network in networks)],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }


def binding(namespace: str, labels: Mapping[str, str], account: Account) -> Object:
    """What lets the deployer work in an app's namespace."""
    made = manifest(ROLE_BINDING, namespace, account.role, labels)
    made["roleRef"] = {"apiGroup": ROLE_BINDING.group, "kind": "ClusterRole", "name": account.role}
    made["subjects"] = [{"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}]
    return made


def _pull_secret(namespace: str, labels: Mapping[str, str], login: tuple[str, str, str]) -> Object:
    host, user, password = login
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    said = orjson.dumps({"auths": {host: {"username": user, "password": password, "auth": auth}}})
    made = manifest(SECRET, namespace, PULL_SECRET, labels)
    data = {".dockerconfigjson": base64.b64encode(said).decode()}
    return {**made, "type": "kubernetes.io/dockerconfigjson", "data": data}


def service(
    namespace: str,
    labels: Mapping[str, str],
    *,
    saga_id: str | None,
    fence: int,
    port: int,
    url: str,
    node_port: bool,
    version: str | None = None,
) -> Object:
    """Who serves. `version`: the write counts only if the Service is still the one that was read."""
    annotations = {FENCE: str(fence), PORT: str(port), URL: url}
    made = manifest(SERVICE, namespace, WEB, labels, annotations=annotations)
    if version:
        made["metadata"]["resourceVersion"] = version
    entry: Object = {"name": _PORT_NAME, "protocol": "TCP", "port": 80, "targetPort": _PORT_NAME}
    if node_port:
        entry["nodePort"] = port
    made["spec"] = {
        "type": "NodePort" if node_port else "ClusterIP",
        "selector": {SAGA: saga_id or NOBODY, PROCESS: WEB, STEP: "deploy"},
        "ports": [entry],
    }
    return made


def ingress(
    namespace: str, labels: Mapping[str, str], *, host: str, ingress_class: str | None, tls_secret: str | None
) -> Object:
    """The way in by name."""
    backend = {"service": {"name": WEB, "port": {"name": _PORT_NAME}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    spec: Object = {"rules": [rule]}
    if ingress_class:
        spec["ingressClassName"] = ingress_class
    if tls_secret is not None:
        spec["tls"] = [{"hosts": [host], **({"secretName": tls_secret} if tls_secret else {})}]
    return manifest(INGRESS, namespace, WEB, labels, spec=spec)


# ── of a release ─────────────────────────────────────────────────────────────────────────────────────────────────────


def release_labels(installation: str, release: Release, *, step: str) -> dict[str, str]:
    """On everything of a release."""
    return {
        **app_labels(installation, release.app, release.app_id, release.team),
        SAGA: release.saga_id,
        RELEASE: str(release.number),
        STEP: step,
        **volumes.labels(release),
    }


def name_of(release: Release, what: str) -> str:
    """Of an object of the release: the same for the same saga, and short enough for its pods' names."""
    return f"{valid(what, chars=24)}-r{release.number}-{short_hash(release.saga_id)}"


def config_secret(namespace: str, release: Release, shape: Shape) -> Object:
    """The config vars and who the release is; a release's config never changes."""
    values = environment(release, "", port=None)
    del values["KNARR_INSTANCE"]
    data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    labels = release_labels(shape.installation, release, step="deploy")
    made = manifest(SECRET, namespace, name_of(release, "config"), labels)
    return {**made, "type": "Opaque", "immutable": True, "data": data}


def probes_of(release: Release, process: str, shape: Shape) -> probes.Probes:
    """How the health checks of a process type are made."""
    return probes.plan(checks_of(process, release.checks, patience=shape.patience))


def deployment(namespace: str, release: Release, process: str, facts: Facts, shape: Shape) -> Object:
    """The instances of one process type."""
    labels = {**release_labels(shape.installation, release, step="deploy"), PROCESS: valid(process)}
    selector = _selector(labels)
    digests = {DIGEST: release.digest, CONFIG_DIGEST: release.image.manifest["config"]["digest"]}
    replicas = release.formation[process]
    pod = _pod(release, process, release.processes[process], facts, shape)
    if replicas > 1:
        pod["topologySpreadConstraints"] = [_spread(key, selector) for key in _SPREAD_OVER]
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": 3600,  # we say ourselves when our patience ends, and why
        "minReadySeconds": probes_of(release, process, shape).settle_s,
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": labels, "annotations": {PROCESS: process, **digests}}, "spec": pod},
    }
    annotations = {PROCESS: process, DIGEST: release.digest, REPLICAS: str(replicas)}
    return manifest(DEPLOYMENT, namespace, name_of(release, process), labels, annotations=annotations, spec=spec)


_SPREAD_OVER = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


def _spread(key: str, selector: Mapping[str, str]) -> Object:
    """Nodes and zones get as many of them as others, as far as there is room."""
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(selector)},
    }


def _selector(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: labels[name] for name in (SAGA, PROCESS, STEP)}


def disruption_budget(namespace: str, release: Release, process: str, shape: Shape, kind: Kind) -> Object | None:
    """At most one instance is taken away at a time, such as by a node that is drained; None: there is only one."""
    if release.formation[process] < 2:
        return None
    labels = {**release_labels(shape.installation, release, step="deploy"), PROCESS: valid(process)}
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _selector(labels)}}
    return manifest(kind, namespace, name_of(release, process), labels, spec=spec)


def run_pod(
    namespace: str,
    release: Release,
    argv: Sequence[str],
    facts: Facts,
    shape: Shape,
    *,
    name: str,
    label: str,
    now: str,
) -> Object:
    """A one-off process: a pod that is not started again."""
    labels = {**release_labels(shape.installation, release, step="run"), PROCESS: valid(label)}
    annotations = {PROCESS: label, ALIVE: now}
    spec = {
        **_pod(release, "run", argv, facts, shape),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": shape.run_limit_s,
    }
    (container,) = spec["containers"]
    container["env"] = [each for each in container["env"] if each["name"] != "KNARR_INSTANCE"]
    container["env"].append({"name": "KNARR_INSTANCE", "value": label})
    return manifest(POD, namespace, name, labels, annotations=annotations, spec=spec)


def release_job(namespace: str, release: Release, facts: Facts, shape: Shape) -> Object:
    """The release command: one pod, not tried again by the cluster."""
    labels = {**release_labels(shape.installation, release, step="release"), PROCESS: "release"}
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": shape.release_command_timeout_s + _JOB_RESERVE_S,
        "template": {
            "metadata": {"labels": labels, "annotations": {PROCESS: "release"}},
            "spec": {
                **_pod(release, "release", release.release_command or (), facts, shape),
                "restartPolicy": "Never",
            },
        },
    }
    return manifest(JOB, namespace, name_of(release, "release"), labels, spec=spec)


def _pod(release: Release, process: str, command: Sequence[str], facts: Facts, shape: Shape) -> Object:
    security: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if facts.run_as_user is not None:
        security |= {"runAsUser": facts.run_as_user, "runAsGroup": facts.run_as_user}
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # the pause process reaps; SIGTERM ends programs that have no handler for it
        "terminationGracePeriodSeconds": shape.grace_s,
        "securityContext": security,
        "containers": [_container(release, process, command, facts, shape)],
    }
    if shape.tmp_mb is not None:
        pod["volumes"] = [{"name": _TMP, "emptyDir": {"sizeLimit": f"{shape.tmp_mb}Mi"}}]
    if shape.pull_login:
        pod["imagePullSecrets"] = [{"name": PULL_SECRET}]
    return volumes.mounted(
        pod, release, app_label={APP_ID: release.app_id}, group=shape.run_as_user, owner_image=shape.volume_owner_image
    )


def _container(release: Release, process: str, command: Sequence[str], facts: Facts, shape: Shape) -> Object:
    container: Object = {
        "name": CONTAINER,
        "image": facts.reference,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "envFrom": [{"secretRef": {"name": name_of(release, "config")}}],
        "env": _env(release, process, facts),
        "resources": {
            "limits": {"cpu": cpus(shape.cpus), "memory": f"{shape.memory_mb}Mi"},
            "requests": {"cpu": cpus(shape.requested_cpus), "memory": f"{shape.requested_memory_mb}Mi"},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if shape.tmp_mb is not None:
        container["securityContext"]["readOnlyRootFilesystem"] = True
        container["volumeMounts"] = [{"name": _TMP, "mountPath": "/tmp"}]  # noqa: S108  in the container
    if process == WEB:
        container["ports"] = [{"name": _PORT_NAME, "containerPort": facts.port, "protocol": "TCP"}]
    if process in release.formation:
        port = _PORT_NAME if process == WEB else facts.port
        container |= probes.manifest(probes_of(release, process, shape), web=process == WEB, port=port)
    return container


def _env(release: Release, process: str, facts: Facts) -> list[Object]:
    env: list[Object] = [{"name": "KNARR_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    if process == WEB:
        env.append({"name": "PORT", "value": str(facts.port)})
        if _HOST_ENV not in release.env:
            env.append({"name": _HOST_ENV, "value": "0.0.0.0"})  # noqa: S104  the pod's own addresses
    if facts.run_as_user is not None and not facts.has_home and "HOME" not in release.env:
        env.append({"name": "HOME", "value": "/tmp"})  # noqa: S108  the user has no entry in the image's passwd
    return env


# ── for all ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def manifest(
    kind: Kind,
    namespace: str | None,
    name: str,
    labels: Mapping[str, str],
    *,
    annotations: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Object:
    """An object of that kind."""
    metadata: Object = {"name": name, "labels": dict(labels)}
    if namespace:
        metadata["namespace"] = namespace
    if annotations:
        metadata["annotations"] = dict(annotations)
    made: Object = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
    return {**made, "spec": dict(spec)} if spec is not None else made


def cpus(count: float) -> str:
    """As quantities are written: `250m` is a quarter of a processor."""
    return f"{round(count * 1000)}m"
