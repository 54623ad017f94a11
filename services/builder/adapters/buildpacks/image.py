"""An image as the lifecycle exported it, in; its processes for knarr out. Pure.

The launcher in the image sets up the environment that buildpacks made, so every process is started through it:
`/cnb/process/TYPE` starts one that the image knows, `/cnb/lifecycle/launcher -- ARGV` any other program.
"""

from collections.abc import Mapping
from dataclasses import replace

import orjson

from ocistore.store import Image
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder

_METADATA = "io.buildpacks.build.metadata"
_LAUNCHER = "/cnb/lifecycle/launcher"


def processes_of(image: Image) -> dict[str, tuple[str, ...]]:
    """Return the processes that the buildpacks gave the image; the default one is `web` where none has that name.

    Raises:
        CannotBuild: The image does not say what is in it.
    """
    config = image.config.get("config") or {}
    try:
        metadata = orjson.loads((config.get("Labels") or {})[_METADATA])
        types = [str(each["type"]) for each in metadata.get("processes") or ()]
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise CannotBuild(
            "The exported image has no processes that knarr can read",
            why=f"its label {_METADATA} is missing or damaged",
        ) from error
    found: dict[str, tuple[str, ...]] = {name: (f"/cnb/process/{name}",) for name in types}
    (default,) = (config.get("Entrypoint") or [""])[:1] or ("",)
    if "web" not in found and str(default).startswith("/cnb/process/"):
        found["web"] = (str(default),)
    return found


def through_the_launcher(order: BuildOrder, known: Mapping[str, tuple[str, ...]]) -> BuildOrder:
    """Return the order with its own commands started as buildpacks want it."""
    described = order.description
    processes = {name: known.get(name) or (_LAUNCHER, "--", *argv) for name, argv in described.processes.items()}
    release = (_LAUNCHER, "--", *described.release) if described.release else described.release
    return replace(order, description=described.model_copy(update={"processes": processes, "release": release}))
