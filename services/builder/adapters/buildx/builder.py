"""The `ImageBuilder` on a Docker engine or a BuildKit: archive in, image in the registry out.

Unpack the archive; take the app's Dockerfile or write one; let buildx build and push to a place of its own,
`staging/incoming:build-<saga>`; give the image a config that says nothing of when and for whom it was built, and store
it under the app by putting that config above the layers that are there; take away what the engine pushed.

So the digest is known, and held, before the image is visible; only digests are deployed; and a build that was killed
leaves at most one tag, named by its saga, which `stop` removes. The cache stays with the engine (or in the registry).

Limits: time by the caller. Memory per process (`ulimit -d`) in every step of a generated Dockerfile; for the app's own,
`--ulimit` and `--cgroup-parent`, which engines before Docker 23 do not heed.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import orjson
import structlog

from ocistore import manifest
from ocistore.distribution import DistributionStore
from ocistore.store import Image
from ocistore.upkeep import Upkeep
from seedwork.archives import ArchiveLimits, disk_errors, extract_tar
from seedwork.errors import KnarrError, NotFound, StorageFull, Unavailable
from seedwork.threads import in_thread
from services.builder.adapters.buildx.archive import read_archive
from services.builder.adapters.buildx.engine import RESERVED, BuildInputs, Engine
from services.builder.adapters.buildx.faults import explained, lacks_compiler
from services.builder.adapters.buildx.image import built_layers, stored_config, stored_layers
from services.builder.adapters.buildx.kitchen import Explain, Kitchen, Recipe, file_time, ignored_by_app
from services.builder.adapters.buildx.progress import LOOK_S, Progress
from services.builder.adapters.buildx.recipes import recipe_for
from services.builder.adapters.layers.caches import AppCaches
from services.builder.adapters.layers.sandbox import Sandbox, ToolFailed
from services.builder.adapters.layers.workshop import read_file
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, BuildOutput, Built

INCOMING = "staging/incoming"
"""Where engines push to, for all apps: what one of them pushed, no other pushes again."""
log = structlog.get_logger(__name__)


class _LacksCompiler(Exception):
    """A package is compiled, and the stage that installs it has no compiler."""


class BuildxBuilder:
    """Builds with buildx.

    Args:
        images: The registry.
        engine: Where steps run.
        sandbox: Runs the docker command line.
        kitchen: What generated Dockerfiles stand on.
        registry: The registry's name, for people.
        home: The builder's folder: holds the key under which caches of apps are named.
        upkeep: Of the registry: it is not under way while an image is pushed.
    """

    def __init__(
        self,
        *,
        images: DistributionStore,
        engine: Engine,
        sandbox: Sandbox,
        kitchen: Kitchen,
        registry: str,
        home: Path,
        upkeep: Upkeep | None = None,
    ) -> None:
        self._upkeep = upkeep or Upkeep()
        self._images = images
        self._engine = engine
        self._sandbox = sandbox
        self._kitchen = kitchen
        self._registry = registry
        self._names = AppCaches(home / "app-caches", max_bytes=0)

    async def build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        """See `ImageBuilder.build`."""
        async with self._upkeep.writing():
            return await self._build(order, output=output, note=note, hold=hold)

    async def _build(
        self,
        order: BuildOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        note("unpacking the source")
        marker = self._names.named(order.app_id).folder / "compilers"
        with_compilers = await asyncio.to_thread(marker.is_file)
        try:
            return await self._attempt(order, compilers=with_compilers, output=output, note=note, hold=hold)
        except _LacksCompiler:
            await asyncio.to_thread(output.say, "A package is compiled: the build is repeated with compilers")
            await asyncio.to_thread(_touch, marker)
        return await self._attempt(order, compilers=True, output=output, note=note, hold=hold)

    async def _attempt(
        self,
        order: BuildOrder,
        *,
        compilers: bool,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Built:
        context, dockerfile, recipe = await self._prepared(order, compilers=compilers)
        scratch = order.folder / "scratch"
        await asyncio.to_thread(scratch.mkdir, mode=0o700, exist_ok=True)
        progress = Progress(output, note)
        digest: str | None = None
        forgetting: asyncio.Task[None] | None = None
        try:
            async with _shown(progress):
                digest = await self._run_engine(
                    order,
                    context,
                    dockerfile,
                    scratch,
                    progress,
                    explain=recipe.explain,
                    may_repeat=bool(self._kitchen.images.compilers) and not compilers,
                )
            forgetting = asyncio.create_task(self._clear_engine(order.saga_id, scratch))  # while we store
            pushed = await self._pushed(digest)
            note("storing the image")
            config, layers = stored_config(pushed, order, recipe.processes), stored_layers(pushed)
            await hold(manifest.draft(config, layers).manifest_digest)
            image = await self._images.put(order.repository, config=config, layers=layers)
        finally:
            forgotten = forgetting or self._clear_engine(order.saga_id, scratch)
            await surely(self._tidied(order.saga_id, digest, forgotten))
        await asyncio.to_thread(output.say, f"Image {image.repository}@{image.digest}")
        return Built(repository=image.repository, digest=image.digest, layers=built_layers(pushed, progress.began))

    async def stop(self, saga_id: str | None = None) -> int:
        """See `ImageBuilder.stop`; also what a killed build of that saga left in the registry and the engine."""
        processes = await self._sandbox.stop(saga_id)
        if saga_id is not None:
            await self._clear_registry(saga_id)
            scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="knarr-"))
            try:
                await self._clear_engine(saga_id, scratch)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        return processes

    # --- the steps of a build -----------------------------------------------------------------------------------------

    async def _prepared(self, order: BuildOrder, *, compilers: bool = False) -> tuple[Path, Path, Recipe]:
        """The build context, the Dockerfile, and the recipe that it was made from."""
        context = order.folder / "context"
        app = context / "root" / "app"
        if not await asyncio.to_thread(app.exists):  # the first of two attempts
            await in_thread(lambda stop: _unpack(order, app, stop))
        if order.description.runtime.kind == "dockerfile":
            dockerfile = await asyncio.to_thread(_own_dockerfile, app, order.description.dockerfile)
            return app, dockerfile, Recipe(dockerfile="")
        named, kitchen = await asyncio.to_thread(self._kitchen_for, order)
        kitchen = replace(kitchen, compilers=compilers and bool(kitchen.images.compilers))
        recipe = await asyncio.to_thread(recipe_for, named, lambda name: read_file(app, name), kitchen)
        dockerfile = context / "knarr" / "Dockerfile"
        own = await asyncio.to_thread(ignored_by_app, lambda name: read_file(app, name), "root/app")
        ignored = "\n".join([*own, *recipe.ignore]) + "\n"
        files = {"knarr/Dockerfile": recipe.dockerfile.encode(), ".dockerignore": ignored.encode(), **recipe.files}
        await in_thread(lambda stop: _lay_out(context, files, order.source_digest, stop))
        return context, dockerfile, recipe

    def _kitchen_for(self, order: BuildOrder) -> tuple[BuildOrder, Kitchen]:
        """The order under a name that no other app can compute, for caches; and what its steps get."""
        names = self._names.named(order.app_id)
        values = {name: value for name, value in order.variables.items() if name not in RESERVED}

        def key_of(chosen: Collection[str]) -> str | None:
            text = orjson.dumps({name: values[name] for name in chosen}, option=orjson.OPT_SORT_KEYS).decode()
            return names.digest(f"variables:{text}")[:32] if chosen else None

        variables = tuple(sorted(values))
        kitchen = replace(self._kitchen, variables=variables, variables_key=key_of(variables), key_of=key_of)
        return replace(order, app_id=names.digest("engine")[:32]), kitchen

    async def _run_engine(
        self,
        order: BuildOrder,
        context: Path,
        dockerfile: Path,
        scratch: Path,
        progress: Progress,
        *,
        explain: Explain | None,
        may_repeat: bool,
    ) -> str:
        """The digest of what the engine pushed, or what we stored of what it exported."""
        own = order.description.runtime.kind == "dockerfile"
        try:
            made = await self._engine.build(
                context,
                dockerfile,
                saga_id=order.saga_id,
                app_id=order.app_id,
                image=self._engine.image(INCOMING, _tag(order.saga_id)),
                scratch=scratch,
                progress=progress,
                inputs=BuildInputs(
                    variables=order.variables,
                    arguments=order.description.docker_args if own else (),
                    target=order.description.docker_target if own else None,
                    own_dockerfile=own,
                    cache_namespace=self._names.named(order.app_id).digest("dockerfile")[:32] if own else "",
                ),
            )
        except ToolFailed as error:
            if may_repeat and explain is not None and lacks_compiler(progress):
                raise _LacksCompiler from error
            raise explained(
                error,
                progress,
                registry=self._registry,
                memory_bytes=self._kitchen.memory_bytes,
                explain=explain,
            ) from error
        except StorageFull as error:
            raise StorageFull(
                "There is no room left for the build", why=error.why, todo="Make room here or where the engine builds."
            ) from error
        return made.digest or await self._bring(made.archive, order.saga_id, scratch)

    async def _bring(self, archive: Path | None, saga_id: str, scratch: Path) -> str:
        """Store an exported image as if the engine had pushed it; its digest."""
        if archive is None:
            raise Unavailable("The build made no image", todo="It is tried again.")
        config, layers = await asyncio.to_thread(read_archive, archive, scratch)
        await asyncio.to_thread(archive.unlink)
        image = await self._images.put(INCOMING, config=config, layers=layers, tags=[_tag(saga_id)])
        return image.digest

    async def _pushed(self, digest: str) -> Image:
        """It, as the registry has it."""
        try:
            return await self._images.get(INCOMING, digest, tagged=False)
        except NotFound as error:
            raise Unavailable(
                f"The engine pushed {digest}, and the registry does not have it",
                why=error.message,
                todo="Do KNARR_BUILDX_REGISTRY and KNARR_IMAGE_STORE name the same registry?",
            ) from error

    async def _tidied(self, saga_id: str, digest: str | None, forgetting: Awaitable[None]) -> None:
        """Nothing of this build stays under its saga's name; what cannot be removed now, `stop` removes."""
        results = await asyncio.gather(self._clear_registry(saga_id, digest), forgetting, return_exceptions=True)
        for error in results:
            if isinstance(error, KnarrError):
                log.warning("a build's tag was left behind", saga_id=saga_id, error=error.message)
            elif error is not None:
                raise error

    async def _clear_registry(self, saga_id: str, digest: str | None = None) -> None:
        """What an engine pushed, and whose `digest` nobody knows perhaps."""
        digest = digest or await self._images.resolve(INCOMING, _tag(saga_id))
        if digest is not None:
            await self._images.remove(INCOMING, digest)

    async def _clear_engine(self, saga_id: str, scratch: Path) -> None:
        await self._engine.forget(self._engine.image(INCOMING, _tag(saga_id)), saga_id=saga_id, scratch=scratch)


@contextlib.asynccontextmanager
async def _shown(progress: Progress) -> AsyncIterator[None]:
    """Show output without a line's end, for as long as the engine builds. `write` reports a full disk, not this."""

    async def look() -> None:
        with contextlib.suppress(StorageFull):
            while True:
                await asyncio.sleep(LOOK_S)
                await asyncio.to_thread(progress.show_unfinished)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def _touch(path: Path) -> None:
    with disk_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()


def _tag(saga_id: str) -> str:
    return f"build-{saga_id}"


def _unpack(order: BuildOrder, app: Path, stop: threading.Event) -> None:
    extract_tar(order.archive, app, limits=ArchiveLimits(), stop=stop)
    _set_times(app, order.source_digest, stop)


def _own_dockerfile(app: Path, name: str | None) -> Path:
    """The app's Dockerfile, which must be a file of the app."""
    path = app / (name or "Dockerfile")
    if not path.resolve().is_relative_to(app.resolve()) or read_file(app, name or "Dockerfile") is None:
        raise CannotBuild(f"There is no {name or 'Dockerfile'}", todo="Commit one, or choose another runtime.")
    return path


def _lay_out(context: Path, files: Mapping[str, bytes], source_digest: str, stop: threading.Event) -> None:
    """Write the files that the recipe brings, each with a time that its content decides.

    An engine takes a file of the context for unchanged that has the size and the time of the build before.
    """
    with disk_errors():
        for name, content in files.items():
            path = context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        _set_times(context, source_digest, stop)
        for name, content in files.items():
            at = file_time(hashlib.sha256(content).hexdigest())
            os.utime(context / name, (at, at))


def _set_times(root: Path, source_digest: str, stop: threading.Event) -> None:
    at = file_time(source_digest)
    for folder, folders, names in os.walk(root, topdown=False):
        if stop.is_set():
            return
        for name in (*names, *folders):
            os.utime(Path(folder) / name, (at, at), follow_symlinks=False)
    os.utime(root, (at, at))


async def surely(work: Awaitable[None]) -> None:
    """Also when we are cancelled: what it does is done before the build is said to have ended."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            log.exception("a cancelled build was not tidied up", exc_info=error)
        raise
