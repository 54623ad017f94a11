"""The `ImageBuilder` that needs no daemon: archive in, OCI image in the store out.

Unpack the archive; let the app's language bring its layers; pack the app as a layer of its own; write the config;
store. Safe to repeat: the image's name is its content, and dependency layers come from the cache.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from ocistore import manifest
from ocistore.store import ImageStore
from seedwork.archives import NORMAL_MTIME, ArchiveLimits, extract_tar, pack_tar
from seedwork.errors import InvalidInput, Unavailable
from seedwork.threads import in_thread
from services.builder.adapters.layers import node, procfile, python, static
from services.builder.adapters.layers.cache import LayerCache
from services.builder.adapters.layers.image import Prepared, ReadyLayer, image_config, layer_file
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.adapters.layers.workshop import Workshop
from services.builder.contract import BuiltLayer
from services.builder.errors import CannotBuild
from services.builder.install.python import assumed_packages
from services.builder.ports import BuildOrder, BuildOutput, Built
from services.source.contract import Packages


class LayersBuilder:
    """Builds by itself what the languages know.

    Args:
        home: Holds `cache/`: layers, and what package managers keep.
        images: Where images go.
        sandbox: Runs the tools.
        cache_bytes: Dependency layers kept.
        interpreters: The Pythons of this machine; found on the sandbox's path, if not given.
        fetch_toolchains: Whether interpreters that are not on this machine are fetched.
        python_mirror: Where Python is fetched from, in place of its publisher.
    """

    def __init__(
        self,
        home: Path,
        *,
        images: ImageStore,
        sandbox: Sandbox,
        cache_bytes: int,
        interpreters: Interpreters | None = None,
        fetch_toolchains: bool = False,
        python_mirror: str | None = None,
    ) -> None:
        self._caches = home / "cache"
        self._layers = LayerCache(self._caches / "layers", max_bytes=cache_bytes)
        self._images = images
        self._sandbox = sandbox
        self._interpreters = interpreters or Interpreters(
            sandbox.path, fetched=self._caches / "pythons" if fetch_toolchains else None, environ=os.environ
        )
        self._python_mirror = python_mirror
        self._node_tools = node.NodeTools()

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """See `ImageBuilder.build`."""
        shop = Workshop(
            order=order,
            root=order.folder / "image",
            scratch=order.folder / "scratch",
            caches=self._caches,
            sandbox=self._sandbox,
            layers=self._layers,
            output=output,
            note=note,
        )
        note("unpacking the source")
        await in_thread(lambda stop: extract_tar(order.archive, shop.app, limits=ArchiveLimits(), stop=stop))
        prepared = await self._prepared(shop)
        note("packing the app")
        layers = (*prepared.layers, await in_thread(lambda stop: _app_layer(shop, stop)))
        config = image_config(order, prepared, layers)
        note("storing the image")
        digest = await self._store(order, config, layers, hold)
        await shop.say(f"Image {order.repository}@{digest}")
        return Built(
            repository=order.repository,
            digest=digest,
            layers=tuple(
                BuiltLayer(
                    digest=each.file.descriptor.digest, size_bytes=each.file.descriptor.size_bytes, cached=each.cached
                )
                for each in layers
            ),
        )

    async def stop(self, saga_id: str | None = None) -> int:
        """See `ImageBuilder.stop`."""
        return await self._sandbox.stop(saga_id)

    async def _prepared(self, shop: Workshop) -> Prepared:
        match shop.order.description.runtime.kind:
            case "python":
                packages = await asyncio.to_thread(_packages_of, shop, "python")
                return await python.prepare(shop, self._interpreters, packages, mirror=self._python_mirror)
            case "node":
                return await node.prepare(shop, self._node_tools)
            case "static":
                return await static.prepare(shop, self._interpreters)
            case "procfile":
                return await procfile.prepare(shop, self._interpreters)
            case "dockerfile":
                raise CannotBuild(
                    "The app is built from a Dockerfile, and this builder runs without Docker",
                    why="KNARR_BUILDER is `layers`",
                    todo="Set KNARR_BUILDER=buildx on a machine with a Docker engine, or describe the app without the "
                    "Dockerfile: a Procfile with requirements.txt, pyproject.toml or package.json.",
                    code="needs_docker",
                )
            case kind:
                raise CannotBuild(f"The builder `layers` cannot build {kind} apps", code="no_interpreter")

    async def _store(
        self,
        order: BuildOrder,
        config: bytes,
        layers: tuple[ReadyLayer, ...],
        hold: Callable[[str], Awaitable[None]],
    ) -> str:
        """The reference, then the bytes."""
        files = [layer.file for layer in layers]
        await hold(manifest.draft(config, files).manifest_digest)
        try:
            image = await self._images.put(order.repository, config=config, layers=files)
        except InvalidInput as error:
            for layer in layers:
                if layer.cached and layer.file.path is not None:
                    await self._layers.forget(layer.file.path)
            raise Unavailable(
                "The image could not be stored; its dependency layers will be made anew", why=error.message
            ) from error
        return image.digest


def _packages_of(shop: Workshop, language: str) -> Packages | None:
    """How the packages of a language are installed."""
    description = shop.order.description
    found = next((each for each in description.packages if each.language == language), None)
    return found or assumed_packages(description.runtime.kind, shop.read)


def _app_layer(shop: Workshop, stop: threading.Event) -> ReadyLayer:
    path = shop.root / "app.tar"
    digest, size_bytes = pack_tar(shop.app, path, prefix="app", mtime=NORMAL_MTIME, stop=stop)
    path.chmod(0o444)
    return ReadyLayer(file=layer_file(path, digest, size_bytes), created_by="the app", cached=False)
