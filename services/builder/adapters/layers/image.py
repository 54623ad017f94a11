"""An image's config: how it starts, what it says about itself. Pure; the same input gives the same bytes.

OCI image-spec 1.1, "Image Configuration". `created` is a fixed time, and no label names the saga or the commit: the
digest depends only on what is built. The commit is a property of the release.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ocistore.store import (
    LABEL_ADDONS,
    LABEL_APP_ID,
    LABEL_BASE,
    LABEL_CHECKS,
    LABEL_CRONS,
    LABEL_ENV,
    LABEL_FORMATION,
    LABEL_HEALTH_PATH,
    LABEL_PORT,
    LABEL_PROCESSES,
    LABEL_RELEASE,
    LABEL_STORAGE,
    Descriptor,
    LayerFile,
)
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder

MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
CREATED = "1980-01-01T00:00:00Z"
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an app finds of the machine that it runs on."""
_ARCHITECTURES = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyLayer:
    """A layer on disk, and what the image's history says of it."""

    file: LayerFile
    created_by: str
    cached: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the layer's maker recorded of it (JSON)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a language adds to the app's own files."""

    layers: tuple[ReadyLayer, ...] = ()
    """Lowest first; the app's layer comes on top."""
    env: Mapping[str, str] | None = None
    processes: Mapping[str, tuple[str, ...]] | None = None
    """Where the description names none of that type."""


def layer_file(path: Any, digest: str, size_bytes: int) -> LayerFile:
    """An uncompressed layer: its digest is its diff id."""
    descriptor = Descriptor(media_type=MEDIA_LAYER, digest=digest, size_bytes=size_bytes)
    return LayerFile(descriptor=descriptor, diff_id=digest, path=path)


def image_config(order: BuildOrder, prepared: Prepared, layers: Sequence[ReadyLayer]) -> bytes:
    """The config as canonical JSON.

    Raises:
        CannotBuild: Nothing is to be started.
    """
    processes = {**(prepared.processes or {}), **order.description.processes}
    if not processes:
        raise CannotBuild(
            "The app does not say how it starts",
            why="it has no process",
            todo="Add a Procfile with a line such as `web: python app.py`, or `entrypoint` to .cupaas.yml.",
        )
    env = {"PATH": HOST_PATH, **(prepared.env or {})}
    config: dict[str, Any] = {
        "Env": [f"{name}={env[name]}" for name in sorted(env)],
        "Labels": {**image_labels(order, processes), LABEL_BASE: "host"},
        "WorkingDir": "/app",
    }
    if "web" in processes:
        config["Cmd"] = list(processes["web"])
    return _json(
        {
            "architecture": _architecture(),
            "config": config,
            "created": CREATED,
            "history": [{"created": CREATED, "created_by": layer.created_by} for layer in layers],
            "os": platform.system().lower(),
            "rootfs": {"type": "layers", "diff_ids": [layer.file.diff_id for layer in layers]},
        }
    )


def image_labels(order: BuildOrder, processes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the labels of an image. They are the same for every builder, and absent where there is nothing to say."""
    description = order.description
    declared: dict[str, Any] = {
        LABEL_RELEASE: list(description.release or ()),
        LABEL_FORMATION: dict(description.formation),
        LABEL_ENV: {name: each.model_dump() for name, each in description.env.items()},
        LABEL_ADDONS: [each.model_dump() for each in description.addons],
        LABEL_CHECKS: {
            name: [check.model_dump() for check in checks] for name, checks in description.checks.items() if checks
        },
        LABEL_PORT: description.port,
        LABEL_STORAGE: [each.model_dump() for each in description.storage],
        LABEL_CRONS: [each.model_dump() for each in description.crons],
    }
    labels = {
        LABEL_APP_ID: order.app_id,
        LABEL_PROCESSES: _text({name: list(argv) for name, argv in processes.items()}),
        **{name: _text(value) for name, value in declared.items() if value},
    }
    if description.health_path:
        labels[LABEL_HEALTH_PATH] = description.health_path
    return labels


def _architecture() -> str:
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _text(value: Any) -> str:
    return _json(value).decode()
