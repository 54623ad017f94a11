"""An image as the engine pushed it, in; the config under which knarr stores it, out. Pure.

The engine's config says when each step ran and, by a label, for which saga; with those taken out the same layers give
the same image. What the app's Dockerfile says (environment, user, command …) stays; `io.knarr.…` labels are ours alone.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from ocistore.store import Descriptor, Image, LayerFile
from services.builder.adapters.layers.image import CREATED, image_labels
from services.builder.contract import BuiltLayer
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder

LABEL_BUILD = "io.knarr.build"
"""Which saga's build an image of the engine is; never on an image that is stored."""
_OURS = "io.knarr."
_KEPT = ("architecture", "os", "os.version", "os.features", "variant", "rootfs")
_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_MEDIA_TYPES = {"application/vnd.docker.image.rootfs.diff.tar.gzip": _GZIP}
"""The bytes are the same; an OCI manifest names them its own way."""


def stored_config(pushed: Image, order: BuildOrder, processes: Mapping[str, tuple[str, ...]]) -> bytes:
    """The config as canonical JSON.

    Args:
        pushed: What the engine pushed.
        order: For whom.
        processes: Where the description names none of that type; without any, the image's own command is `web`.

    Raises:
        CannotBuild: Nothing is to be started.
    """
    config = {name: value for name, value in (pushed.config.get("config") or {}).items() if value is not None}
    started = {**(processes or _own_command(config)), **order.description.processes}
    if not started:
        raise CannotBuild(
            "The app does not say how it starts",
            why="it has no process, and its image no command",
            todo="Add a Procfile with a line such as `web: python app.py`, or CMD to the Dockerfile.",
        )
    if order.description.runtime.kind != "dockerfile" and "web" in started:
        config = {**config, "Cmd": list(started["web"])}
        config.pop("Entrypoint", None)
    labels = {name: text for name, text in (config.get("Labels") or {}).items() if not name.startswith(_OURS)}
    record = {
        **{name: pushed.config[name] for name in _KEPT if name in pushed.config},
        "config": {**config, "Labels": {**labels, **image_labels(order, started)}},
        "created": CREATED,
        "history": [{**each, "created": CREATED} for each in pushed.config.get("history") or ()],
    }
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def stored_layers(pushed: Image) -> list[LayerFile]:
    """The layers, which are in the store already, where the engine pushed them."""
    diff_ids = pushed.config["rootfs"]["diff_ids"]
    return [
        LayerFile(
            descriptor=Descriptor(
                media_type=_MEDIA_TYPES.get(layer.media_type, layer.media_type),
                digest=layer.digest,
                size_bytes=layer.size_bytes,
            ),
            diff_id=diff_id,
            from_repository=pushed.repository,
        )
        for layer, diff_id in zip(pushed.layers, diff_ids, strict=True)
    ]


def built_layers(pushed: Image, began: datetime | None) -> tuple[BuiltLayer, ...]:
    """The layers for the event: what was made before this build began came from the cache or the base image."""
    history = [each for each in pushed.config.get("history") or () if not each.get("empty_layer")]
    times = [_time(each.get("created")) for each in history]
    if len(times) != len(pushed.layers):
        times = [None] * len(pushed.layers)
    return tuple(
        BuiltLayer(
            digest=layer.digest,
            size_bytes=layer.size_bytes,
            cached=bool(made and began and made < began),
        )
        for layer, made in zip(pushed.layers, times, strict=True)
    )


def _own_command(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    command = (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))
    return {"web": command} if command else {}


def _time(text: Any) -> datetime | None:
    """RFC 3339 with nanoseconds."""
    try:
        whole, dot, fraction = str(text).removesuffix("Z").partition(".")
        return datetime.fromisoformat(f"{whole}{dot}{fraction[:6]}+00:00")
    except ValueError:
        return None
