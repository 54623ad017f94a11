"""Settings in, a `BuildxBuilder` out."""

import os
from collections.abc import Mapping
from pathlib import Path

from ocistore import is_registry
from ocistore.distribution import DistributionStore
from ocistore.manifest import check_digest
from ocistore.store import ImageStore
from ocistore.upkeep import upkeep_of
from seedwork.errors import InvalidInput, Misconfigured
from services.builder.adapters.buildx.builder import BuildxBuilder
from services.builder.adapters.buildx.engine import Engine, EngineOptions
from services.builder.adapters.buildx.kitchen import BaseImages, Kitchen
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.settings import BuilderSettings


def make_buildx_builder(
    settings: BuilderSettings,
    home: Path,
    images: ImageStore,
    sandbox: Sandbox,
    *,
    environ: Mapping[str, str] | None = None,
) -> BuildxBuilder:
    """The builder; nothing is asked before the first build.

    Raises:
        Misconfigured: Images are kept in a folder, to which no engine can push; or a pin is none.
    """
    place = settings.image_store_place()
    if not is_registry(place) or not isinstance(images, DistributionStore):
        raise Misconfigured(
            "KNARR_BUILDER is `buildx`, and images are kept in a folder",
            why="an engine pushes to a registry",
            todo="Set KNARR_IMAGE_STORE=https://host[:port] to a registry, or KNARR_BUILDER=layers.",
        )
    scheme, _, address = place.partition("://")
    registry = (settings.buildx_registry or address).rstrip("/")
    engine = Engine(
        home,
        sandbox=sandbox,
        options=EngineOptions(
            registry=registry,
            insecure=scheme == "http",
            user=settings.registry_user,
            password=settings.registry_password,
            builder=settings.buildx_builder,
            buildkit_host=settings.buildkit_host,
            cache_in_registry=settings.buildx_cache == "registry",
            cgroup_parent=settings.buildx_cgroup_parent,
            memory_bytes=settings.build_memory_bytes,
            network=settings.buildx_network,
            dockerfile_registries=settings.build_dockerfile_registries,
            environ=os.environ if environ is None else environ,
        ),
    )
    kitchen = Kitchen(
        images=BaseImages(
            python=settings.buildx_python_image,
            python_version=settings.buildx_python_version,
            node=settings.buildx_node_image,
            node_versions=settings.buildx_node_versions,
            compilers=settings.buildx_compilers,
            go=settings.buildx_go_image,
            go_version=settings.buildx_go_version,
            other=settings.buildx_base_image,
            pins=_pins(settings.buildx_pins),
        ),
        secrets=engine.secrets(),
        memory_bytes=settings.build_memory_bytes,
    )
    return BuildxBuilder(
        images=images,
        engine=engine,
        sandbox=sandbox,
        kitchen=kitchen,
        registry=registry,
        home=home,
        upkeep=upkeep_of(place),
    )


def _pins(pins: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pin in pins:
        image, _, digest = pin.partition("@")
        try:
            found[image] = check_digest(digest)
        except InvalidInput as error:
            raise Misconfigured(f"KNARR_BUILDX_PINS has {pin[:100]!r}", why=error.what, todo=error.todo) from error
    return found
