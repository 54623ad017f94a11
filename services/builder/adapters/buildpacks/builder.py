"""The `ImageBuilder` of Cloud Native Buildpacks: archive in, image in the registry out, by the public lifecycle.

The phases run in containers of the builder image on a Docker engine; `phases.py` says how. The exporter pushes to
`staging/incoming:build-<saga>`; from there it goes as with buildx: knarr's own config above the layers that are there,
and the tag is removed (ADR 16). Buildpacks keep what they want to reuse in a volume per app with an unguessable name.

Cancelled or killed, a build leaves containers and volumes with its saga's label, which `stop` removes.
"""

import asyncio
import hashlib
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from dockerengine import EngineApi
from dockerengine.client import filters
from ocistore import manifest
from ocistore.distribution import DistributionStore
from ocistore.store import Image
from ocistore.upkeep import Upkeep
from seedwork import bounded_toml
from seedwork.archives import disk_errors
from seedwork.errors import FinalError, KnarrError, NotFound, Unavailable
from services.builder.adapters.buildpacks import phases
from services.builder.adapters.buildpacks.disk import BuildpackCaches
from services.builder.adapters.buildpacks.faults import explained
from services.builder.adapters.buildpacks.image import processes_of, rebased_config, stands_on, through_the_launcher
from services.builder.adapters.buildpacks.phases import BuilderImage, Phase
from services.builder.adapters.buildpacks.workspace import (
    kept_secret,
    one_folder,
    only_file,
    platform_files,
    read_in_pieces,
    write_workspace,
)
from services.builder.adapters.buildx.builder import INCOMING, surely
from services.builder.adapters.buildx.image import stored_config, stored_layers
from services.builder.contract import BuiltLayer
from services.builder.errors import CannotBuild
from services.builder.ports import BuildOrder, BuildOutput, Built, Rebased, RebaseOrder

LABEL_HOME = "io.knarr.builder-home"
_REPORT_BYTES = 1024 * 1024
_NOTES: Mapping[Phase, str] = {
    "analyzer": "looking at the registry",
    "detector": "choosing buildpacks",
    "restorer": "restoring the cache",
    "builder": "running buildpacks",
    "exporter": "exporting the image",
    "rebaser": "rebasing the image",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildpacksOptions:
    """Where and how to build."""

    builder: str
    """The builder image."""
    run_image: str | None
    """In place of the one that the builder image names."""
    registry: str
    """`host[:port][/prefix]` as containers on the engine's own network reach our image store."""
    login: str | None
    insecure: bool
    memory_bytes: int
    processes: int
    proxies: Mapping[str, str] = field(default_factory=dict)


class BuildpacksBuilder:
    """Builds with buildpacks.

    Args:
        home: Keeps the secret by which cache volumes are named, and each app's last digest.
        engine: Makes the connection to the engine, at the first build.
        images: The registry.
        upkeep: Of the registry.
        options: Where and how.
    """

    def __init__(
        self,
        home: Path,
        *,
        engine: Callable[[], EngineApi],
        images: DistributionStore,
        upkeep: Upkeep,
        options: BuildpacksOptions,
    ) -> None:
        self._home = home / "buildpacks"
        self._secret_file = self._home / "secret"
        self._connect = engine
        self._engine_now: EngineApi | None = None
        self._images = images
        self._upkeep = upkeep
        self._options = options

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
            note("preparing the builder image")
            image = await self._builder_image(output)
            try:
                digest = await self._run_phases(order, image, output, note)
                note("storing the image")
                return await self._stored(order, digest, output, hold)
            finally:
                await surely(self._tidied(order.saga_id))

    async def rebase(
        self,
        order: RebaseOrder,
        *,
        output: BuildOutput,
        note: Callable[[str], None],
        hold: Callable[[str], Awaitable[None]],
    ) -> Rebased:
        """See `ImageRebaser.rebase`."""
        async with self._upkeep.writing():
            note("preparing the builder image")
            image = await self._builder_image(output)
            before = await self._images.get(order.repository, order.digest, tagged=False)
            try:
                note(_NOTES["rebaser"])
                digest = await self._run_rebaser(order, before, image, output)
                note("storing the image")
                pushed = await self._images.get(INCOMING, digest, tagged=False)
                unchanged = pushed.config["rootfs"]["diff_ids"] == before.config["rootfs"]["diff_ids"]
                if unchanged:
                    await hold(before.digest)
                    made = await self._images.copy(order.repository, before.digest, to=order.staging)
                else:
                    made = await self._kept(rebased_config(pushed), pushed, order.staging, hold)
            finally:
                await surely(self._tidied(order.saga_id))
        await asyncio.to_thread(self._last_file(order.app_id).write_text, made.digest)
        done = "the image stands on it already" if unchanged else f"image {made.repository}@{made.digest}"
        await asyncio.to_thread(output.say, f"Run image {image.run_image}: {done}")
        return Rebased(repository=made.repository, digest=made.digest, run_image=image.run_image, unchanged=unchanged)

    async def stop(self, saga_id: str | None = None) -> int:
        """See `ImageBuilder.stop`; also the volumes of those builds, and the tag of that saga."""
        if not await asyncio.to_thread(self._secret_file.exists):
            return 0  # no app of this home was ever built so, and there may be no engine
        label = f"{phases.LABEL_BUILD}={saga_id}" if saga_id else phases.LABEL_BUILD
        wanted = filters(label=[label, f"{LABEL_HOME}={await self._home_id()}"])
        found = await self._engine.call("GET", "containers/json", params={"all": "true", **wanted})
        for each in found:
            await self._engine.remove_container(each["Id"])
        volumes = await self._engine.call("GET", "volumes", params=wanted)
        for each in volumes.get("Volumes") or ():
            await self._engine.call("DELETE", f"volumes/{each['Name']}", params={"force": "true"})
        if saga_id:
            digest = await self._images.resolve(INCOMING, f"build-{saga_id}")
            if digest is not None:
                await self._images.remove(INCOMING, digest)
        return len(found)

    def caches(self, *, limit_bytes: int) -> BuildpackCaches:
        """Return the volumes of all apps as a part of `knarr disk`."""

        async def label() -> str | None:
            used = await asyncio.to_thread(self._secret_file.exists)
            return f"{LABEL_HOME}={await self._home_id()}" if used else None

        return BuildpackCaches(
            engine=lambda: self._engine, label=label, last_built=self._last_file, limit_bytes=limit_bytes
        )

    async def close(self) -> None:
        """Close the connection to the engine."""
        if self._engine_now is not None:
            await self._engine_now.close()

    # --- the steps of a build -----------------------------------------------------------------------------------------

    async def _builder_image(self, output: BuildOutput) -> BuilderImage:
        name = self._options.builder
        try:
            found = await self._engine.call("GET", f"images/{name}/json")
        except NotFound:
            await asyncio.to_thread(output.say, f"Pulling the builder image {name}")
            try:
                await self._engine.pull(name)
            except NotFound as error:
                raise CannotBuild(
                    f"The builder image {name} cannot be pulled",
                    why=error.why,
                    todo=f"Run `docker pull {name}` where the engine is, or set KNARR_BUILDPACKS_BUILDER.",
                ) from error
            found = await self._engine.call("GET", f"images/{name}/json")
        image = phases.read_builder(name, found, run_image=self._options.run_image)
        await asyncio.to_thread(output.say, f"Builder {name}, run image {image.run_image}")
        return image

    async def _run_phases(
        self, order: BuildOrder, image: BuilderImage, output: BuildOutput, note: Callable[[str], None]
    ) -> str:
        """Return the digest that the exporter pushed."""
        plan = await self._plan(order)
        workspace = order.folder / "workspace.tar"
        with disk_errors():
            await asyncio.to_thread(write_workspace, order.archive, workspace, image.uid, image.gid)
        for phase in phases.PHASES:
            note(_NOTES[phase])
            name = await self._made(phase, image, plan)
            if phase == "analyzer":
                await self._engine.put_tar(name, phases.APP, read_in_pieces(workspace))
                await self._engine.call(
                    "PUT",
                    f"containers/{name}/archive",
                    params={"path": phases.LAYERS},
                    content=one_folder(image.uid, image.gid),
                )
            if phase not in phases.TRUSTED:
                files = platform_files(order.variables, image.uid, image.gid)
                await self._engine.call("PUT", f"containers/{name}/archive", params={"path": "/"}, content=files)
            await self._run(phase, name, image, output)
        return await self._reported(f"knarr-cnb-{order.saga_id}-exporter")

    async def _run_rebaser(self, order: RebaseOrder, before: Image, image: BuilderImage, output: BuildOutput) -> str:
        """Return the digest that the rebaser pushed."""
        options = self._options
        name = await self._made(
            "rebaser",
            image,
            phases.Order(
                saga_id=order.saga_id,
                target=f"{options.registry}/{INCOMING}:build-{order.saga_id}",
                previous=f"{options.registry}/{order.repository}@{order.digest}",
                forced=stands_on(before, image.run_image),
                login=options.login,
                insecure=options.insecure,
                memory_bytes=options.memory_bytes,
                processes=options.processes,
                proxies=options.proxies,
            ),
        )
        folder = one_folder(image.uid, image.gid, phases.LAYERS)
        await self._engine.call("PUT", f"containers/{name}/archive", params={"path": "/"}, content=folder)
        await self._run("rebaser", name, image, output)
        return await self._reported(name)

    async def _made(self, phase: Phase, image: BuilderImage, plan: phases.Order) -> str:
        """Create the phase's container, in place of one that an earlier attempt left, and return its name."""
        name = f"knarr-cnb-{plan.saga_id}-{phase}"
        await self._engine.remove_container(name)
        config = phases.container(phase, image, plan)
        config["Labels"] |= await self._labels(plan.saga_id)
        await self._engine.call("POST", "containers/create", params={"name": name}, body=config)
        return name

    async def _run(self, phase: Phase, container: str, image: BuilderImage, output: BuildOutput) -> None:
        """Run the container to its end; raise what a failure means."""
        if exit_code := await self._followed(container, output):
            raise explained(
                phase,
                exit_code,
                output.tail(60),
                builder=image.name,
                run_image=image.run_image,
                memory_bytes=self._options.memory_bytes,
            )

    async def _plan(self, order: BuildOrder) -> phases.Order:
        """Make the volumes of this build, and say where everything is."""
        options, base = self._options, f"knarr-cnb-{order.saga_id}"
        cache = f"knarr-cnb-cache-{await self._cache_name(order.app_id)}"
        ours = await self._labels(order.saga_id)
        lasting = {phases.LABEL_CACHE: order.app, "io.knarr.app-id": order.app_id, LABEL_HOME: ours[LABEL_HOME]}
        for name, labels in ((f"{base}-layers", ours), (f"{base}-app", ours), (cache, lasting)):
            await self._engine.call("POST", "volumes/create", body={"Name": name, "Labels": labels})
        return phases.Order(
            saga_id=order.saga_id,
            target=f"{options.registry}/{INCOMING}:build-{order.saga_id}",
            previous=await self._previous(order),
            login=options.login,
            insecure=options.insecure,
            layers_volume=f"{base}-layers",
            app_volume=f"{base}-app",
            cache_volume=cache,
            memory_bytes=options.memory_bytes,
            processes=options.processes,
            proxies=options.proxies,
        )

    async def _followed(self, container: str, output: BuildOutput) -> int:
        """Start the container, pass on what it prints, and return how it ended."""
        await self._engine.call("POST", f"containers/{container}/start")
        params = {"stdout": "true", "stderr": "true", "follow": "true"}
        held = b""
        async for piece in self._engine.pieces(f"containers/{container}/logs", params=params):
            text = held + piece
            held = b"\r" if text.endswith(b"\r") else b""  # a terminal ends its lines with both
            await asyncio.to_thread(output.write, text[: len(text) - len(held)].replace(b"\r\n", b"\n"))
        ended = await self._engine.call("POST", f"containers/{container}/wait")
        return int(ended["StatusCode"])

    async def _reported(self, container: str) -> str:
        """Return the digest of the image from the exporter's report."""
        packed = bytearray()
        async for piece in self._engine.pieces(f"containers/{container}/archive", params={"path": phases.REPORT}):
            packed += piece
            if len(packed) > _REPORT_BYTES:
                break
        try:
            return manifest.check_digest(str(bounded_toml.loads(only_file(bytes(packed)))["image"]["digest"]))
        except (KeyError, TypeError, ValueError, tarfile.TarError, KnarrError) as error:
            raise Unavailable(
                "The exporter of the buildpacks did not say which image it pushed",
                why=f"{type(error).__name__}: {error}",
            ) from error

    async def _stored(
        self, order: BuildOrder, digest: str, output: BuildOutput, hold: Callable[[str], Awaitable[None]]
    ) -> Built:
        pushed = await self._images.get(INCOMING, digest, tagged=False)
        known = processes_of(pushed)
        config = stored_config(pushed, through_the_launcher(order, known), known)
        image = await self._kept(config, pushed, order.repository, hold)
        await asyncio.to_thread(self._last_file(order.app_id).write_text, image.digest)
        await asyncio.to_thread(output.say, f"Image {image.repository}@{image.digest}")
        built = tuple(BuiltLayer(digest=each.digest, size_bytes=each.size_bytes, cached=False) for each in image.layers)
        return Built(repository=image.repository, digest=image.digest, layers=built)

    async def _kept(
        self, config: bytes, pushed: Image, repository: str, hold: Callable[[str], Awaitable[None]]
    ) -> Image:
        """Store the pushed layers under that config."""
        layers = stored_layers(pushed)
        await hold(manifest.draft(config, layers).manifest_digest)
        return await self._images.put(repository, config=config, layers=layers)

    async def _previous(self, order: BuildOrder) -> str | None:
        """Return the app's last image, as it was published, where it is still there.

        Without it the lifecycle restores no layer that is part of the image, whatever the cache has.
        """
        try:
            digest = await asyncio.to_thread(self._last_file(order.app_id).read_text)
        except FileNotFoundError:
            return None
        repository = order.app if order.team == "default" else f"{order.team}/{order.app}"
        try:
            await self._images.get(repository, digest, tagged=False)
        except FinalError:  # it went with its release, or the app has another name now
            return None
        return f"{self._options.registry}/{repository}@{digest}"

    def _last_file(self, app_id: str) -> Path:
        return self._home / f"{app_id}.last"

    async def _tidied(self, saga_id: str) -> None:
        """Remove everything of this build; what cannot be removed now, `DiscardBuild` or the next start removes."""
        try:
            await self.stop(saga_id)
        except KnarrError as error:
            log.warning("buildpacks.leftovers", saga_id=saga_id, error=error.message)

    # --- names --------------------------------------------------------------------------------------------------------

    async def _labels(self, saga_id: str) -> dict[str, str]:
        return {phases.LABEL_BUILD: saga_id, LABEL_HOME: await self._home_id()}

    async def _home_id(self) -> str:
        return await self._cache_name("this home")

    async def _cache_name(self, what: str) -> str:
        """Return a name that depends on the home's secret: another app cannot mount what it cannot name."""
        secret = await asyncio.to_thread(kept_secret, self._secret_file)
        return hashlib.blake2b(what.encode(), key=secret.encode(), digest_size=16).hexdigest()

    @property
    def _engine(self) -> EngineApi:
        if self._engine_now is None:
            self._engine_now = self._connect()
        return self._engine_now
