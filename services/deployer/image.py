"""What an image says of itself: labels in, checked facts out. Pure.

The builder writes the labels (`ocistore.store.LABEL_…`); an image that somebody else put into the store may carry
anything, so each one is checked here, once.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from ocistore.store import (
    LABEL_ADDONS,
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
    Image,
)
from services.deployer.errors import CannotRun
from services.source.contract import AddOn, Cron, EnvVar, HealthCheck, Storage, is_platforms

T = TypeVar("T")

_LIFECYCLE = "io.buildpacks.lifecycle.metadata"
"""Label of the buildpacks lifecycle: JSON, which layer is whose. https://github.com/buildpacks/spec, "Platform"."""

_PROCESSES = TypeAdapter(dict[str, tuple[str, ...]])
_COMMAND = TypeAdapter(tuple[str, ...])
_FORMATION = TypeAdapter(dict[str, int])
_ENV = TypeAdapter(dict[str, EnvVar])
_ADDONS = TypeAdapter(tuple[AddOn, ...])
_CHECKS = TypeAdapter(dict[str, tuple[HealthCheck, ...]])
_PORT = TypeAdapter(Annotated[int, Field(ge=1, le=65_535)])
_STORAGE = TypeAdapter(tuple[Storage, ...])
_CRONS = TypeAdapter(tuple[Cron, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """How the image is to be run."""

    processes: Mapping[str, tuple[str, ...]]
    release_command: tuple[str, ...] | None
    formation: Mapping[str, int]
    """By process type, complete: one `web` and no other where the image says nothing."""
    health_path: str | None
    """Superseded by `checks`."""
    checks: Mapping[str, tuple[HealthCheck, ...]]
    """Health checks by process type, as declared."""
    port: int | None
    """Port on which `web` listens whatever PORT says; None: PORT."""
    storage: tuple[Storage, ...]
    crons: tuple[Cron, ...]
    env: Mapping[str, EnvVar]
    addons: tuple[AddOn, ...]
    base: str
    """`host`: it holds no operating system of its own."""
    layers: tuple[str, ...]
    """Digests, bottom first."""


def facts_of(image: Image) -> ImageFacts:
    """Read the labels.

    Raises:
        CannotRun: A label is not what it must be, or there is nothing to run; the text names it.
    """
    labels = image.config.get("config", {}).get("Labels") or {}
    processes = {
        name: command
        for name, command in (_read(labels, LABEL_PROCESSES, _PROCESSES) or {}).items()
        if name != "release"
    }
    if not processes or not all(processes.values()):
        raise CannotRun(
            "The image says of no process how to start it",
            why=f"its label {LABEL_PROCESSES} is missing or empty",
            todo="Add a Procfile with a line such as `web: python app.py`.",
        )
    declared = _read(labels, LABEL_FORMATION, _FORMATION) or {}
    health_path = labels.get(LABEL_HEALTH_PATH) or None
    if health_path is not None and (not health_path.startswith("/") or any(c in health_path for c in "\r\n ")):
        raise CannotRun(
            "The image's health path is no path", why=f"{health_path!r}", todo="Give one such as `/health` in app.json."
        )
    declared_env: dict[str, EnvVar] = _read(labels, LABEL_ENV, _ENV) or {}
    env = {name: declared_env[name] for name in declared_env if not is_platforms(name)}
    checks = _read(labels, LABEL_CHECKS, _CHECKS)
    return ImageFacts(
        processes=processes,
        release_command=_read(labels, LABEL_RELEASE, _COMMAND) or None,
        formation={name: max(0, declared.get(name, int(name == "web"))) for name in sorted(processes)},
        health_path=health_path,
        checks=checks if checks is not None else _only_path(health_path),
        port=_read(labels, LABEL_PORT, _PORT),
        storage=_read(labels, LABEL_STORAGE, _STORAGE) or (),
        crons=_read(labels, LABEL_CRONS, _CRONS) or (),
        env=env,
        addons=_read(labels, LABEL_ADDONS, _ADDONS) or (),
        base=labels.get(LABEL_BASE, ""),
        layers=tuple(each.digest for each in image.layers),
    )


def buildpacks_layers(image: Image) -> Mapping[str, Any] | None:
    """Return what the lifecycle of buildpacks says of the image's layers; None: no buildpacks built it."""
    labels = image.config.get("config", {}).get("Labels") or {}
    try:
        found = orjson.loads(labels.get(_LIFECYCLE) or "null")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("runImage"), dict) else None


def manifest_hash(
    *, digest: str, config_version: int, formation: Mapping[str, int], processes: Mapping[str, tuple[str, ...]]
) -> str:
    """`sha256:…` over canonical JSON of what runs: two releases with one hash run the same."""
    what = {
        "digest": digest,
        "config_version": config_version,
        "formation": dict(formation),
        "processes": {name: list(command) for name, command in processes.items()},
    }
    return "sha256:" + hashlib.sha256(orjson.dumps(what, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _only_path(health_path: str | None) -> dict[str, tuple[HealthCheck, ...]]:
    """Return the checks of an image that was built before `LABEL_CHECKS`."""
    return {"web": (HealthCheck(path=health_path),)} if health_path else {}


def _read(labels: Mapping[str, Any], name: str, shape: TypeAdapter[T]) -> T | None:
    text = labels.get(name)
    if not text:
        return None
    try:
        return shape.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CannotRun(
            f"The image's label {name} cannot be read",
            why=f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'its top'}",
            todo="Build the image again with this version of knarr.",
        ) from error
