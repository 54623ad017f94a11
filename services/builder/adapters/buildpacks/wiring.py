"""Settings in, a `BuildpacksBuilder` out."""

import os
from collections.abc import Mapping
from pathlib import Path

from dockerengine import EngineApi, find_endpoint
from ocistore import is_registry
from ocistore.distribution import DistributionStore
from ocistore.store import ImageStore
from ocistore.upkeep import upkeep_of
from seedwork.errors import Misconfigured
from services.builder.adapters.buildpacks.builder import BuildpacksBuilder, BuildpacksOptions
from services.builder.adapters.buildpacks.phases import basic
from services.builder.settings import BuilderSettings

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def make_buildpacks_builder(
    settings: BuilderSettings, home: Path, images: ImageStore, *, environ: Mapping[str, str] | None = None
) -> BuildpacksBuilder:
    """Return the builder; the engine is not asked before the first build.

    Raises:
        Misconfigured: Images are kept in a folder, to which the lifecycle cannot push.
    """
    environ = os.environ if environ is None else environ
    place = settings.image_store_place()
    if not is_registry(place) or not isinstance(images, DistributionStore):
        raise Misconfigured(
            "The builder `buildpacks` needs a Docker engine and a registry, and images are kept in a folder",
            why="the lifecycle of buildpacks pushes to a registry",
            todo="Run `knarr up --runtime docker`, or set KNARR_IMAGE_STORE=https://host[:port] to a registry.",
        )
    scheme, _, address = place.partition("://")
    user, password = settings.registry_user, settings.registry_password
    options = BuildpacksOptions(
        builder=settings.buildpacks_builder,
        run_image=settings.buildpacks_run_image,
        registry=(settings.buildx_registry or address).rstrip("/"),
        login=basic(user, password.get_secret_value()) if user and password else None,
        insecure=scheme == "http",
        memory_bytes=settings.build_memory_bytes,
        processes=settings.build_processes,
        proxies={name: environ[name] for name in _PROXIES if environ.get(name)},
    )
    return BuildpacksBuilder(home, engine=_engine, images=images, upkeep=upkeep_of(place), options=options)


def _engine() -> EngineApi:
    endpoint = find_endpoint()
    if endpoint is None:
        raise Misconfigured(
            "No Docker engine was found",
            why="buildpacks run in containers",
            todo="Set DOCKER_HOST to the engine that builds.",
        )
    return EngineApi(endpoint)
