"""An image as the lifecycle exported it, in; its processes for knarr out. Pure.

The launcher in the image sets up the environment that buildpacks made, so every process is started through it:
`/cnb/process/TYPE` starts one that the image knows, `/cnb/lifecycle/launcher -- ARGV` any other program.
"""

from collections.abc import Mapping
from dataclasses import replace

import orjson

from ocistore.store import Image
from services.builder.adapters.layers.image import CREATED
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder

_METADATA = "io.buildpacks.build.metadata"
_KEPT = ("architecture", "os", "os.version", "os.features", "variant", "rootfs", "config")
_LIFECYCLE = "io.buildpacks.lifecycle.metadata"
_REBASABLE = "io.buildpacks.rebasable"
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


def rebased_config(pushed: Image) -> bytes:
    """Return the config of a rebased image as canonical JSON: what knarr wrote at the build stays, labels included.

    The same image on the same run image gives the same bytes.
    """
    record = {
        **{name: pushed.config[name] for name in _KEPT if name in pushed.config},
        "created": CREATED,
        "history": [{**each, "created": CREATED} for each in pushed.config.get("history") or ()],
    }
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def stands_on(image: Image, run_image: str) -> bool:
    """Whether the image was built on a run image of that repository, and may be rebased.

    The lifecycle compares names with those that the builder image had at the build, which a run image of the settings
    is not among.

    Args:
        image: As knarr stores it.
        run_image: Name with a tag or digest.
    """
    labels = (image.config.get("config") or {}).get("Labels") or {}
    try:
        reference = str(orjson.loads(labels[_LIFECYCLE])["runImage"]["reference"])
    except (KeyError, TypeError, orjson.JSONDecodeError):
        return False
    return labels.get(_REBASABLE) != "false" and _repository(reference) == _repository(run_image)


def _repository(name: str) -> str:
    """Without tag and digest, and Docker Hub as people leave it out."""
    before = name.partition("@")[0]
    folder, slash, last = before.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}".removeprefix("index.docker.io/").removeprefix("library/")
