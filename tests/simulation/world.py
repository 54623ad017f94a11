"""The world around the services: Git hosts, the image store, what runs. It survives every crash, and remembers.

Each call takes a while and may fail, so that a worker can be killed, paused or overtaken between any two effects.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from ocistore.store import LABEL_PROCESSES, Image, LayerFile
from ocistore.testing import MemoryImageStore
from seedwork.archives import NormalTar
from seedwork.errors import FinalError, NotFound, Unavailable
from seedwork.participant import Work
from seedwork.testing.simulated_bus import SimulatedBroker
from seedwork.testing.simulated_loop import SimulatedLoop, current_process
from services.builder.contract import BuildImage, ImageBuilt, ImageRebased, RebaseImage
from services.builder.ports import staging_repository
from services.builder.staging import Staging
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import Instance, Note, Release
from services.source.archives import Archives
from services.source.contract import AppDescription, FetchSource, Runtime, SourceFetched, SourceFetchFailed
from services.source.errors import Superseded
from services.source.handlers import _refuse_superseded
from services.source.ports import Brought, PackedTree, Submodule

T = TypeVar("T")
SLOW_S = 20.0
"""What a slow call takes at most."""
Step = Literal["source", "build", "publish", "deploy", "observe"]
What = Literal["refuse", "flaky", "fault", "slow"]


@dataclass(frozen=True, slots=True)
class Fate:
    """How a step of one saga goes, where it does not just work."""

    step: Step
    what: What
    """`refuse`: a fault of the user; `flaky`: no answer from another system; `fault`: a fault of ours; `slow`."""
    times: int = 1
    """The first so many runs; for `slow`, seconds."""
    undo: bool = False
    """Whether it is the undo that goes like that."""


@dataclass(slots=True)
class Faults:
    """Counted by kind; and how often the world's own calls fail."""

    counted: dict[str, int] = field(default_factory=dict)
    world: float = 0.0
    """From 0 to 1; half as often they take long."""
    all_slow: bool = False
    """They all take long."""

    def count(self, kind: str) -> None:
        """One more."""
        self.counted[kind] = self.counted.get(kind, 0) + 1


class World:
    """Everything outside the services' databases."""

    def __init__(self, loop: SimulatedLoop, broker: SimulatedBroker) -> None:
        self.loop = loop
        self.broker = broker
        self.faults = Faults()
        self.violations: list[str] = []
        self.history: list[str] = []
        """What was done from outside, for whoever reads a failure."""
        self.fates: dict[tuple[str, str, bool], Fate] = {}
        self.runs: dict[tuple[str, str, bool], int] = {}
        self.images = SimulatedImages(self)
        self.runtime = SimulatedRuntime(self)
        self.origin = Origin()

    def violated(self, what: str) -> None:
        """An invariant does not hold."""
        if what not in self.violations:
            self.violations.append(what)

    def say(self, text: str) -> None:
        """Write down what happens."""
        self.history.append(f"{self.loop.time():10.3f} s  {text}")

    async def call(self, longest_s: float = 0.05) -> None:
        """Another system is asked: it takes a while, and may not answer."""
        if self.faults.all_slow or (self.faults.world and self.loop.chance.random() < self.faults.world / 2):
            self.faults.count("another system is slow")
            longest_s = SLOW_S
        await asyncio.sleep(self.loop.chance.random() * longest_s)
        if self.faults.world and self.loop.chance.random() < self.faults.world:
            self.faults.count("another system does not answer")
            raise Unavailable("It does not answer", why="the simulation wants it so")

    async def meet(self, work: Work, *, undo: bool = False) -> None:
        """What is to become of this run of this step."""
        key = (work.saga_id, work.step, undo)
        run = self.runs[key] = self.runs.get(key, 0) + 1
        await asyncio.sleep(self.loop.chance.random() * 0.3)
        fate = self.fates.get(key)
        if fate is None or fate.what == "refuse" or (run > fate.times and fate.what != "slow"):
            return
        self.faults.count(f"work is {fate.what}" if fate.what == "slow" else f"work meets: {fate.what}")
        if fate.what == "flaky":
            raise Unavailable("It does not answer", why="this run was to fail")
        if fate.what == "fault":
            raise PlannedFault("this run was to fail")
        await asyncio.sleep(fate.times)

    def refuses(self, saga_id: str, step: str) -> bool:
        """Whether the user's code is at fault here."""
        fate = self.fates.get((saga_id, step, False))
        return fate is not None and fate.what == "refuse"

    def with_fates(self, handler: Callable[..., Awaitable[T]], *, undo: bool = False) -> Callable[..., Awaitable[T]]:
        """The handler as it goes in this world."""

        async def handle(command: Any, *, work: Work) -> T:
            await self.meet(work, undo=undo)
            if not undo and self.refuses(work.saga_id, work.step) and work.step == "publish":
                raise planned()
            return await handler(command, work=work)

        return handle


class PlannedFault(RuntimeError):
    """Stands for any bug of a handler."""


def planned() -> FinalError:
    """The user's fault."""
    self_made = "this push was to fail"
    return FinalError("It does not work", why=self_made, code="planned")


# ------------------------------------------------------------------------------------------------ Git hosts


class Origin:
    """Repositories whose history is a line: a commit's number is its age."""

    def __init__(self) -> None:
        self.commits: dict[str, list[str]] = {}

    def push(self, repository: str) -> str:
        """A new commit."""
        known = self.commits.setdefault(repository, [])
        known.append(hashlib.sha1(f"{repository} {len(known)}".encode(), usedforsecurity=False).hexdigest())
        return known[-1]

    def repository(self, name: str) -> "OneRepository":
        """As source sees it."""
        return OneRepository(self.commits[name])


@dataclass(frozen=True, slots=True)
class OneRepository:
    """Its line of commits."""

    commits: Sequence[str]

    async def bring(self, _ref: str | None, commit: str | None) -> Brought:
        """See `Repository.bring`."""
        return Brought(commit=commit or self.commits[-1], tip=self.commits[-1])

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """See `Repository.is_ancestor`."""
        if older not in self.commits or newer not in self.commits:
            return False
        return self.commits.index(older) < self.commits.index(newer)

    async def pack(self, commit: str, root: str, out_path: Path) -> PackedTree:
        """See `Repository.pack`."""
        content = f"{root} {commit}".encode()
        out_path.write_bytes(content)  # noqa: ASYNC240  some bytes, and the loop's time is not ours
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return PackedTree(NormalTar(digest=digest, size_bytes=len(content), entries=1))

    async def submodule_at(self, commit: str, root: str) -> Submodule | None:
        """See `Repository.submodule_at`."""
        assert commit
        assert root
        return None

    async def watched(self, commit: str, patterns: Sequence[str]) -> str:
        """See `Repository.watched`."""
        return f"sha256:{hashlib.sha256(f'{commit} {patterns}'.encode()).hexdigest()}"


def source_digest(commit: str) -> str:
    """Of the archive of that commit."""
    return f"sha256:{hashlib.sha256(f'. {commit}'.encode()).hexdigest()}"


class SimulatedLocks:
    """`NamedLocks` that a killed process lets go of, as it does of files."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """See `NamedLocks.hold`."""
        me = object()
        process = current_process()
        while (holder := self._held.get(name)) is not None and (holder[1] is None or holder[1].alive):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._held[name] = (me, process)
        try:
            yield
        finally:
            if self._held.get(name, (None,))[0] is me:
                del self._held[name]


DESCRIPTION = AppDescription(runtime=Runtime(kind="python"), processes={"web": ("python", "app.py")})


async def fetch_source(
    command: FetchSource, *, work: Work, world: World, archives: Archives
) -> SourceFetched | SourceFetchFailed:
    """The real one without Git and tar: the same order of effects."""
    async with archives.draft() as draft:
        await world.call()
        repository = world.origin.repository(command.repository or "")
        brought = await repository.bring(command.ref, command.commit)
        if not command.force:
            try:
                await _refuse_superseded(brought, command.known_commits, repository)
            except Superseded as error:
                return SourceFetchFailed(
                    retryable=False, code=error.reason_code, message=error.message, superseded_by=error.superseded_by
                )
        if world.refuses(work.saga_id, "source"):
            raise planned()
        packed = (await repository.pack(brought.commit, command.root, draft)).tar
        await archives.keep(packed, draft, app_id=work.app_id, saga_id=work.saga_id)
    return SourceFetched(
        digest=packed.digest, size_bytes=packed.size_bytes, commit=brought.commit, description=DESCRIPTION
    )


# ------------------------------------------------------------------------------------------------ images


class SimulatedImages(MemoryImageStore):
    """The fake store, with calls that take a while."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def put(
        self, repository: str, *, config: bytes, layers: Sequence[LayerFile], tags: Sequence[str] = ()
    ) -> Image:
        """See `ImageStore.put`."""
        await self._world.call()
        return await super().put(repository, config=config, layers=layers, tags=tags)

    async def tag(self, repository: str, digest: str, *, tags: Sequence[str]) -> Image:
        """See `ImageStore.tag`."""
        await self._world.call()
        return await super().tag(repository, digest, tags=tags)

    async def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """See `ImageStore.get`."""
        await self._world.call()
        return await super().get(repository, digest, verify=verify, tagged=tagged)

    async def remove(self, repository: str, digest: str) -> bool:
        """See `ImageStore.remove`."""
        await self._world.call()
        return await super().remove(repository, digest)

    def has(self, repository: str, digest: str) -> bool:
        """Whether the bytes are there, asked from outside."""
        return digest in self.repositories.get(repository, {})

    def kept(self) -> set[tuple[str, str]]:
        """Every image, asked from outside."""
        return {(name, digest) for name, index in self.repositories.items() for digest in index}


def image_config(app_id: str, commit: str) -> bytes:
    """The same commit of the same app gives the same image."""
    labels = {
        LABEL_PROCESSES: orjson.dumps({"web": ["python", "app.py"]}).decode(),
        "io.buildpacks.lifecycle.metadata": '{"runImage": {"topLayer": "sha256:1"}}',
    }
    return orjson.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": labels, "Env": [f"COMMIT={commit}", f"APP={app_id}"]},
            "rootfs": {"type": "layers", "diff_ids": []},
        },
        option=orjson.OPT_SORT_KEYS,
    )


async def build_image(
    command: BuildImage, *, work: Work, world: World, staging: Staging, images: SimulatedImages, archives: Path
) -> ImageBuilt:
    """The real one without a build: it reads the archive, holds the image, stores it."""
    await world.call()
    archive = archives / "archives" / "sha256" / command.source_digest.removeprefix("sha256:")
    if not archive.exists():
        raise NotFound(f"There is no archive {command.source_digest}")
    if world.refuses(work.saga_id, "build"):
        raise planned()
    config = image_config(work.app_id, command.commit or "")
    digest = await _digest_of(config)
    await staging.hold(work.app_id, digest, work.saga_id)
    image = await images.put(staging_repository(work.app_id), config=config, layers=())
    return ImageBuilt(repository=image.repository, digest=image.digest)


async def rebase_image(
    command: RebaseImage, *, work: Work, world: World, staging: Staging, images: SimulatedImages
) -> ImageRebased:
    """The real one without a lifecycle: it reads the image, holds another one, stores it."""
    await world.call()
    await images.get(command.repository, command.digest)
    config = image_config(work.app_id, f"{command.commit} on the run image of {work.saga_id}")
    digest = await _digest_of(config)
    await staging.hold(work.app_id, digest, work.saga_id)
    image = await images.put(staging_repository(work.app_id), config=config, layers=())
    return ImageRebased(repository=image.repository, digest=image.digest, commit=command.commit, run_image="run:1")


async def _digest_of(config: bytes) -> str:
    return (await MemoryImageStore().put("x", config=config, layers=())).digest


# ------------------------------------------------------------------------------------------------ what runs


class SimulatedRuntime(MemoryRuntime):
    """The runtime that runs nothing, with calls that take a while."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.switched: list[tuple[str, str | None, int]] = []
        """App, saga and fence, in order."""

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`."""
        await self._world.call()
        await super().prepare(release)

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        await self._world.call()
        await super().start(release)

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        await self._world.call(1.0)
        if self._world.refuses(release.saga_id, "deploy"):
            raise AppDoesNotStart("It ends at once", why="this push was to fail", code="planned")
        if release.saga_id in self._units:
            await super().observe(release, note=note)
        else:
            raise Unavailable("The instances are gone", why="somebody stopped them")

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """See `Runtime.switch`."""
        await self._world.call()
        await super().switch(app_id, saga_id, fence=fence)
        if self.switched and any(each[0] == app_id and each[2] > fence for each in self.switched):
            self._world.violated(f"app {app_id}: traffic went to {saga_id} under the older fence {fence}")
        self.switched.append((app_id, saga_id, fence))

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`."""
        await self._world.call()
        return await super().stop(app_id, saga_id)

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        await self._world.call()
        self.switched = [each for each in self.switched if each[0] != app_id]
        return await super().forget(app_id)

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        await self._world.call()
        return [
            replace(each, restarts=1) if self._world.refuses(each.saga_id, "observe") else each
            for each in await super().instances(app_id)
        ]

    def running(self) -> Mapping[str, str]:
        """App by saga, of everything that carries a saga's label; asked from outside."""
        return {saga_id: unit.release.app_id for saga_id, unit in self._units.items()} | {
            saga_id: "" for saga_id in self.prepared if saga_id not in self._units
        }

    def digest_of(self, saga_id: str) -> str | None:
        """What its instances run."""
        unit = self._units.get(saga_id)
        return unit.release.digest if unit else None
