"""The phases of the buildpacks lifecycle as containers: what a builder image says in, container configs out. Pure.

Specification: https://github.com/buildpacks/spec, "Platform Interface", versions 0.10 to 0.13. The five phases run one
after the other in containers of the builder image that share volumes. Those that talk to the registry get its
credentials and run nothing of the app; those that run buildpacks, and with them the app's own code, get none.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from services.builder.errors import CannotBuild

LABEL_BUILD = "io.knarr.build"
LABEL_CACHE = "io.knarr.build-cache"
APP, LAYERS, CACHE, PLATFORM = "/workspace", "/layers", "/cache", "/platform"
REPORT = f"{LAYERS}/report.toml"
_KNOWN_APIS = ("0.13", "0.12", "0.11", "0.10")
_METADATA = "io.buildpacks.builder.metadata"
_APIS = "io.buildpacks.lifecycle.apis"

Phase = Literal["analyzer", "detector", "restorer", "builder", "exporter", "rebaser"]
PHASES: tuple[Phase, ...] = ("analyzer", "detector", "restorer", "builder", "exporter")
"""Of a build, in their order; a rebase is the `rebaser` alone."""
TRUSTED: frozenset[str] = frozenset({"analyzer", "restorer", "exporter", "rebaser"})
"""Run no code of the app, as root, on the engine's network, and know the registry's password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderImage:
    """What a builder image says of itself."""

    name: str
    image_id: str
    uid: int
    gid: int
    run_image: str
    api: str
    """The newest version of the platform interface that both sides know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One build for the phases."""

    saga_id: str
    target: str
    """`host/repository:tag` to which the image is exported."""
    previous: str | None = None
    """The app's last image: buildpacks reuse its layers; one that is gone is no error. Rebaser: what it rebases."""
    forced: bool = False
    """Rebaser: the run image need not be one of those that the builder image named at the build."""
    login: str | None
    """The value of an `Authorization` header at the target's registry."""
    insecure: bool
    layers_volume: str = ""
    app_volume: str = ""
    cache_volume: str = ""
    memory_bytes: int
    processes: int
    proxies: Mapping[str, str] = field(default_factory=dict)


def read_builder(name: str, inspected: Mapping[str, Any], *, run_image: str | None) -> BuilderImage:
    """Return what the image says of itself.

    Args:
        name: As it was asked for.
        inspected: The engine's answer about it.
        run_image: In place of the one that it names.

    Raises:
        CannotBuild: It is no builder of buildpacks, or too old or new.
    """
    config = inspected.get("Config") or {}
    env = dict(pair.split("=", 1) for pair in config.get("Env") or () if "=" in pair)
    labels = config.get("Labels") or {}
    uid, gid = env.get("CNB_USER_ID", ""), env.get("CNB_GROUP_ID", "")
    if not uid.isdecimal() or not gid.isdecimal():
        raise _no_builder(name, "CNB_USER_ID or CNB_GROUP_ID is not set in it")
    try:
        metadata = orjson.loads(labels.get(_METADATA, "{}"))
        supported = orjson.loads(labels.get(_APIS, "{}")).get("platform", {}).get("supported") or ()
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise _no_builder(name, "its labels cannot be read") from error
    api = next((each for each in _KNOWN_APIS if not supported or each in supported), None)
    if api is None:
        raise _no_builder(name, f"its lifecycle knows the platform interfaces {', '.join(supported)} only")
    run = run_image or _run_image(metadata)
    if not run:
        raise _no_builder(name, "it names no run image; KNARR_BUILDPACKS_RUN_IMAGE can")
    return BuilderImage(
        name=name, image_id=str(inspected.get("Id", "")), uid=int(uid), gid=int(gid), run_image=run, api=api
    )


def container(phase: Phase, image: BuilderImage, order: Order) -> dict[str, Any]:
    """Return the configuration of the phase's container."""
    trusted = phase in TRUSTED
    env = {"CNB_PLATFORM_API": image.api, **order.proxies}
    if trusted and order.login:
        host = order.target.partition("/")[0]
        env["CNB_REGISTRY_AUTH"] = orjson.dumps({host: order.login}).decode()
    return {
        "Image": image.image_id or image.name,
        "Entrypoint": [f"/cnb/lifecycle/{phase}"],
        "Cmd": list(_arguments(phase, image, order)),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "User": "0:0" if trusted else f"{image.uid}:{image.gid}",
        "WorkingDir": LAYERS,
        "Tty": True,
        "Labels": {LABEL_BUILD: order.saga_id},
        "HostConfig": {
            "NetworkMode": "host" if trusted else "bridge",
            "Mounts": [
                {"Type": "volume", "Source": source, "Target": target} for source, target in _mounts(phase, order)
            ],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": order.memory_bytes,
            "MemorySwap": order.memory_bytes,
            "PidsLimit": order.processes,
            "Init": True,
        },
    }


def _mounts(phase: Phase, order: Order) -> Sequence[tuple[str, str]]:
    if phase == "rebaser":
        return []
    mounts = [(order.layers_volume, LAYERS), (order.app_volume, APP)]
    return [*mounts, (order.cache_volume, CACHE)] if phase in {"restorer", "exporter"} else mounts


def _arguments(phase: Phase, image: BuilderImage, order: Order) -> Sequence[str]:
    layers, app, owner = f"-layers={LAYERS}", f"-app={APP}", (f"-uid={image.uid}", f"-gid={image.gid}")
    cache, platform = f"-cache-dir={CACHE}", f"-platform={PLATFORM}"
    match phase:
        case "analyzer":
            previous = [f"-previous-image={order.previous}"] if order.previous else []
            run_image = f"-run-image={image.run_image}"
            return [layers, *owner, *_insecure(image, order), *previous, run_image, order.target]
        case "detector":
            return [layers, app, platform]
        case "restorer":
            return [layers, cache, *owner, *_insecure(image, order)]
        case "builder":
            return [layers, app, platform]
        case "exporter":
            return [layers, app, cache, f"-report={REPORT}", *owner, *_insecure(image, order), order.target]
        case "rebaser":
            images = [f"-previous-image={order.previous}", f"-run-image={image.run_image}", order.target]
            forced = ["-force"] if order.forced and image.api in {"0.12", "0.13"} else []
            return [f"-report={REPORT}", *owner, *_insecure(image, order), *forced, *images]


def _insecure(image: BuilderImage, order: Order) -> Sequence[str]:
    """Plain http, where the registry is not on loopback, which needs no word for it."""
    known = order.insecure and image.api == "0.13" and not order.target.startswith(("127.0.0.1:", "localhost:"))
    return [f"-insecure-registry={order.target.partition('/')[0]}"] if known else []


def basic(user: str, password: str) -> str:
    """Return the header by which a registry knows us."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _run_image(metadata: Mapping[str, Any]) -> str:
    images = metadata.get("images") or [(metadata.get("stack") or {}).get("runImage") or {}]
    return str(images[0].get("image") or "")


def _no_builder(name: str, why: str) -> CannotBuild:
    return CannotBuild(
        f"{name} is no builder image that knarr can use",
        why=why,
        todo="Set KNARR_BUILDPACKS_BUILDER to one, such as heroku/builder:24.",
    )
