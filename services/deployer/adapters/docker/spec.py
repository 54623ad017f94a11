"""A release in, what the engine is asked to run out. Pure.

Everything of ours carries labels, since the engine is where we look for what there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from ocistore.store import LABEL_PROCESSES
from services.deployer.adapters.environment import environment
from services.deployer.adapters.naming import label as valid
from services.deployer.adapters.naming import short_hash, unique
from services.deployer.ports import Release
from services.source.contract import HealthCheck

INSTALLATION = "io.knarr.installation"
"""Whose things these are, where several platforms share an engine."""
APP_ID = "io.knarr.app-id"
APP = "io.knarr.app"
TEAM = "io.knarr.team"
SAGA = "io.knarr.saga"
RELEASE = "io.knarr.release"
STEP = "io.knarr.step"
"""`deploy`: an instance; `release`: the release command; `run`: a one-off process."""
PROCESS = "io.knarr.process"
"""`web.1`"""
PORT = "io.knarr.port"
"""Where a web process must listen; empty for others."""
FIXED_PORT = "io.knarr.port-is-fixed"
"""`1`: the app itself names its port, and no other is adopted; empty otherwise."""
CHECKS = "io.knarr.process-checks"
"""Health checks of its process as the app declares them, in JSON; the image's own label has those of all processes."""
ADDON = "io.knarr.addon"
ADDON_SAGA = "io.knarr.addon-saga"
"""The saga that asked for it first. Not `SAGA`: an add-on outlives that saga's release."""

WEB = "web"

IMAGE_MARK = LABEL_PROCESSES
"""A label that only images of apps have."""

_CHECKS = TypeAdapter(tuple[HealthCheck, ...])

_DROPPED = ("AUDIT_WRITE", "MKNOD", "NET_RAW", "SETFCAP", "SYS_CHROOT")
"""Capabilities that an app has no use for; the engine grants few others beside those of changing user and owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an instance may take of the machine."""

    memory_bytes: int = 512 * 1024 * 1024
    cpus: float = 1.0
    processes: int = 512
    log_bytes: int = 16 * 1024 * 1024
    tmp_bytes: int | None = None
    """Of `/tmp`, where the other files of an instance are read-only; None: an instance may write to all of them."""


def network_name(installation: str, app: str, app_id: str) -> str:
    """Of the app's own network."""
    return f"{installation}-{unique(app, app_id)}"


def container_name(installation: str, release: Release, label: str) -> str:
    """The same for the same saga and process: a second delivery finds the first one's container."""
    process, _, number = label.rpartition(".")
    return "-".join(
        (installation, unique(release.app, release.app_id), short_hash(release.saga_id), valid(process), number)
    )


def labels_of(installation: str, release: Release, label: str, *, step: str, port: int) -> dict[str, str]:
    """What makes a container findable, and lets it be served after a restart of ours."""
    return {
        INSTALLATION: installation,
        APP_ID: release.app_id,
        APP: release.app,
        TEAM: release.team,
        SAGA: release.saga_id,
        RELEASE: str(release.number),
        STEP: step,
        PROCESS: label,
        PORT: str(port) if process_of(label) == WEB else "",
        FIXED_PORT: "1" if release.port else "",
        CHECKS: _CHECKS.dump_json(release.checks.get(process_of(label), ()), exclude_defaults=True).decode(),
    }


def process_of(label: str) -> str:
    """Return the process type of an instance: `web` of `web.1`."""
    return label.rpartition(".")[0]


def declared_checks(labels: Mapping[str, str]) -> dict[str, tuple[HealthCheck, ...]]:
    """Return what the labels of a container say of its process type's health checks."""
    text = labels.get(CHECKS)
    return {process_of(labels[PROCESS]): _CHECKS.validate_json(text)} if text else {}


def wanted_labels(release: Release) -> list[str]:
    """Return the names of the instances of a release: `web.1`, `web.2`."""
    return [f"{process}.{number + 1}" for process, count in release.formation.items() for number in range(count)]


def instance(
    installation: str,
    release: Release,
    label: str,
    arguments: Sequence[str],
    *,
    step: str,
    image: str,
    port: int,
    network: str,
    bounds: Bounds,
    mounts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The configuration of a container; it is not started again by itself until the engine is told to."""
    process = process_of(label)
    env = environment(release, label, port=port if process == WEB else None)
    return {
        "Image": image,
        "Entrypoint": list(arguments),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": labels_of(installation, release, label, step=step, port=port),
        "HostConfig": {
            "NetworkMode": network,
            "RestartPolicy": {"Name": "no"},
            "CapDrop": list(_DROPPED),
            **({"Mounts": list(mounts)} if mounts else {}),
            **host_config(bounds),
            **_read_only(bounds.tmp_bytes),
        },
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [process] if step == "deploy" else []}}},
    }


def _read_only(tmp_bytes: int | None) -> Mapping[str, Any]:
    if tmp_bytes is None:
        return {}
    return {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={tmp_bytes}"}}  # noqa: S108  in the container


def host_config(bounds: Bounds) -> Mapping[str, Any]:
    """Limits, and what is the same for every container of ours."""
    return {
        "Init": True,  # reaps what an app leaves behind, and passes SIGTERM on to programs that have no handler
        "SecurityOpt": ["no-new-privileges"],
        "Memory": bounds.memory_bytes,
        "MemorySwap": bounds.memory_bytes,
        "NanoCpus": round(bounds.cpus * 1e9),
        "PidsLimit": bounds.processes,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(bounds.log_bytes // 2), "max-file": "2"}},
    }
