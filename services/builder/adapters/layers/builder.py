"""The `ImageBuilder` that needs no daemon: archive in, OCI image in the store out.

Unpack the archive; let the app's language bring its layers; pack the app as a layer of its own; write the config;
store. Safe to repeat: the image's name is its content, and dependency layers come from the cache.
"""

import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from ocistore import manifest
from ocistore.store import ImageStore
from seedwork.archives import NORMAL_MTIME, ArchiveLimits, extract_tar, pack_tar
from seedwork.errors import InvalidInput, Unavailable
from seedwork.threads import in_thread
from services.builder.adapters.layers import go, node, procfile, python, static
from services.builder.adapters.layers.cache import LayerCache
from services.builder.adapters.layers.caches import AppCache, AppCaches
from services.builder.adapters.layers.image import HOST_PATH, Prepared, ReadyLayer, image_config, layer_file
from services.builder.adapters.layers.installed import Installed, installed_layers
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.adapters.layers.node_tools import NodeTools
from services.builder.adapters.layers.sandbox import Sandbox
from services.builder.adapters.layers.steps import run_step
from services.builder.adapters.layers.workshop import Workshop
from services.builder.contract import BuiltLayer
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, BuildOutput, Built
from services.source.contract import Packages


class LayersBuilder:
    """Builds by itself what the languages know.

    Args:
        home: Holds `cache/`: layers, and what package managers keep; `app-caches/`; `toolchains/`.
        images: Where images go.
        sandbox: Runs the tools.
        cache_bytes: Dependency layers kept.
        app_caches_bytes: Build caches of all apps kept.
        interpreters: The Pythons of this machine; found on the sandbox's path, if not given.
        fetch_toolchains: Whether interpreters and tools that are not on this machine are fetched.
        python_mirror: Where Python is fetched from, in place of its publisher.
    """

    def __init__(
        self,
        home: Path,
        *,
        images: ImageStore,
        sandbox: Sandbox,
        cache_bytes: int,
        app_caches_bytes: int = 8 * 1024**3,
        interpreters: Interpreters | None = None,
        fetch_toolchains: bool = False,
        python_mirror: str | None = None,
    ) -> None:
        self._caches = home / "cache"
        self._layers = LayerCache(self._caches / "layers", max_bytes=cache_bytes)
        self.app_caches = AppCaches(home / "app-caches", max_bytes=app_caches_bytes)
        self._images = images
        self._sandbox = sandbox
        self._interpreters = interpreters or Interpreters(
            sandbox.path, fetched=self._caches / "pythons" if fetch_toolchains else None, environ=os.environ
        )
        self._python_mirror = python_mirror
        self._node_tools = NodeTools(home / "toolchains" / "node", fetch=fetch_toolchains)
        self._fetch_toolchains = fetch_toolchains

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """See `ImageBuilder.build`."""
        with self.app_caches.of(order.app_id) as app_cache:
            return await self._build(order, app_cache, output=output, note=note, hold=hold)

    async def _build(
        self,
        order: BuildOrder,
        app_cache: AppCache,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        shop = Workshop(
            order=order,
            app_cache=app_cache,
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
        """Carry out the description: packages, then build steps, then what the image keeps of them."""
        description, kind = shop.order.description, shop.order.description.runtime.kind
        _check_kind(kind)
        in_steps = {step.language for step in description.build}
        installed: dict[str, Installed] = {}
        for packages in description.packages:
            has_steps = packages.language in in_steps
            installed[packages.language] = await self._installed(shop, packages, has_steps=has_steps)
        if kind == "python" and "python" not in installed:
            installed["python"] = await self._python(shop, None, has_steps="python" in in_steps)
        for step in description.build:
            if step.language not in installed:
                raise CannotBuild(f"{step.name} needs {step.language}, which the description does not install")
            await run_step(shop, step, installed[step.language].step_env)
        layers: list[ReadyLayer] = []
        env: dict[str, str] = {}
        for language, each in installed.items():
            layers += await each.finish()
            if _in_image(kind, language):
                env |= {**each.env, "PATH": _path(each.env["PATH"], env.get("PATH"))}
        if kind == "static":
            return await static.prepare(shop, self._interpreters)
        if kind == "procfile" and not installed:
            return await procfile.prepare(shop, self._interpreters)
        return Prepared(layers=tuple(layers), env=env)

    async def _installed(self, shop: Workshop, packages: Packages, *, has_steps: bool) -> Installed:
        in_image = _in_image(shop.order.description.runtime.kind, packages.language)
        match packages.language:
            case "python":
                return await self._python(shop, packages, has_steps=has_steps)
            case "node":
                return await node.prepare(shop, packages, self._node_tools, has_steps=has_steps, in_image=in_image)
            case "go":
                return await go.prepare(shop, packages, fetch=self._fetch_toolchains)

    async def _python(self, shop: Workshop, packages: Packages | None, *, has_steps: bool) -> Installed:
        prepared = await python.prepare(shop, self._interpreters, packages, mirror=self._python_mirror)
        return await installed_layers(shop, prepared, has_steps=has_steps)

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


def _check_kind(kind: str) -> None:
    """Refuse what this builder cannot build."""
    if kind == "dockerfile":
        raise CannotBuild(
            "The app is built from a Dockerfile, and this builder runs without Docker",
            why="KNARR_BUILDER is `layers`",
            todo="Set KNARR_BUILDER=buildx on a machine with a Docker engine, or describe the app without the "
            "Dockerfile: a Procfile with requirements.txt, pyproject.toml or package.json.",
            code="needs_docker",
        )
    if kind not in {"python", "node", "go", "static", "procfile"}:
        raise CannotBuild(f"The builder `layers` cannot build {kind} apps", code="no_interpreter")


def _in_image(kind: str, language: str) -> bool:
    """Whether the packages of a language are needed when the app runs, and not only when it is built."""
    return kind in {language, "procfile"}


def _path(first: str, second: str | None) -> str:
    """Both languages' programs, then those of the machine."""
    return first if second is None else f"{second.removesuffix(f':{HOST_PATH}')}:{first}"


def _app_layer(shop: Workshop, stop: threading.Event) -> ReadyLayer:
    path = shop.root / "app.tar"
    digest, size_bytes = pack_tar(shop.app, path, prefix="app", mtime=NORMAL_MTIME, stop=stop)
    path.chmod(0o444)
    return ReadyLayer(file=layer_file(path, digest, size_bytes), created_by="the app", cached=False)
