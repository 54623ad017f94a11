"""A Docker runtime with an installation of its own on the shared engine, for tests."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from ocistore.distribution import DistributionStore
from ocistore.store import Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Container, Engine
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.options import Options
from services.deployer.adapters.docker.runtime import DockerRuntime
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.router import Router
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import Release, Standing
from tests.services.deployer.conftest import PATIENCE_S
from tests.stack.container_images import PREFIX, PYTHON, ContainerShelf, open_images, registry

MIB = 2**20


@dataclass
class Bench:
    """A runtime with an installation of its own on the shared engine."""

    engine: Engine
    images: DistributionStore
    shelf: ContainerShelf
    options: Options
    pullable: Pullable
    runtimes: list[DockerRuntime] = field(default_factory=list)

    def made(self, options: Options | None = None, *, port_base: int = 23_000) -> DockerRuntime:
        """Another process of the same installation."""
        options, engine = options or self.options, Engine()
        runtime = DockerRuntime(
            engine=engine,
            networks=Networks(engine, options.installation),
            pullable=self.pullable,
            router=Router(host="127.0.0.1", port_base=port_base, idle_s=30),
            clock=SystemClock(),
            options=options,
        )
        self.runtimes.append(runtime)
        return runtime

    async def up(self, runtime: DockerRuntime, release: Release) -> str:
        """Deployed with traffic; the app's address."""
        address = await runtime.expose(release.app_id, release.app, taken=frozenset())
        await runtime.prepare(release)
        await runtime.start(release)
        await self.observed(runtime, release)
        await runtime.switch(release.app_id, release.saga_id, fence=release.number)
        return address.url

    async def observed(self, runtime: DockerRuntime, release: Release) -> None:
        """Every instance answered."""
        async with asyncio.timeout(PATIENCE_S):
            await runtime.observe(release, note=lambda _: None)

    async def fails(self, release: Release, *, start_timeout_s: float = 15, **changed: Any) -> AppDoesNotStart:
        """How an app that does not come up is judged."""
        runtime = self.made(replace(self.options, start_timeout_s=start_timeout_s, **changed))
        with pytest.raises(AppDoesNotStart) as caught:  # noqa: PT012  either may say it
            await runtime.start(release)
            await self.observed(runtime, release)
        await runtime.stop(release.app_id, release.saga_id)
        assert await self.containers(**{spec.SAGA: release.saga_id}) == []
        return caught.value

    async def instance_of(self, _release: Release) -> str:
        """As the process runtime calls it."""
        return "web.1"

    async def containers(self, **labels: str) -> list[Container]:
        """What the engine has of ours."""
        return await self.engine.containers({spec.INSTALLATION: self.options.installation, **labels})

    async def clear(self) -> None:
        """Everything of the installation."""
        for container in await self.containers():
            await self.engine.remove(container.id)
        for network in await self.engine.networks({spec.INSTALLATION: self.options.installation}):
            await self.engine.remove_network(network["Name"])
        for volume in await self.engine.volumes({spec.INSTALLATION: self.options.installation}):
            await self.engine.remove_volume(volume)


@pytest.fixture
async def images() -> AsyncIterator[DistributionStore]:
    store = open_images()
    yield store
    await store.close()


@pytest.fixture
async def shelf(images: DistributionStore, tmp_path: Path) -> AsyncIterator[ContainerShelf]:
    folder = tmp_path / "layers-made"
    folder.mkdir()
    shelf = ContainerShelf(images, folder)
    yield shelf
    for repository, digest in await images.images(shelf.repository):
        await images.remove(repository, digest)


@pytest.fixture
async def bench(images: DistributionStore, shelf: ContainerShelf) -> AsyncIterator[Bench]:
    options = Options(
        installation=f"knarr-t{new_id()[-12:]}",
        start_timeout_s=15,
        grace_s=5,
        drain_s=5,
        settle_s=0.5,
        release_command_timeout_s=20,
        bounds=spec.Bounds(memory_bytes=128 * MIB),
    )
    bench = Bench(Engine(), images, shelf, options, Pullable(f"{registry()}/{PREFIX}"))
    yield bench
    for runtime in bench.runtimes:
        await runtime.close()
    await bench.clear()
    for image in await bench.engine.images(spec.IMAGE_MARK):
        for reference in image.get("RepoDigests") or ():
            if shelf.repository in reference:
                await bench.engine.remove_image(reference)
    await bench.engine.close()


@pytest.fixture
async def runtime(bench: Bench) -> DockerRuntime:
    runtime = bench.made()
    await runtime.recover([])
    return runtime


@pytest.fixture
async def sound(shelf: ContainerShelf) -> Image:
    return await shelf.image()


@pytest.fixture
async def broken(shelf: ContainerShelf) -> Image:
    return await shelf.image({"app.py": "import sys; sys.exit('no such table: carts')"})


@pytest.fixture
async def unmigrated(shelf: ContainerShelf) -> Image:
    return await shelf.image(release=(PYTHON, "-c", "import sys; sys.exit('cannot migrate')"))


async def docker_json(*argv: str) -> Any:
    """What the command line says, from outside."""
    process = await asyncio.create_subprocess_exec("docker", *argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return orjson.loads(out)


async def docker(*argv: str) -> None:
    """Run the command line, as an operator does."""
    process = await asyncio.create_subprocess_exec("docker", *argv, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


def standing(release: Release, port: int) -> Standing:
    """What the database says of a release that serves."""

    async def load() -> Release:
        return release

    return Standing(
        app_id=release.app_id, app=release.app, port=port, fence=release.number, saga_id=release.saga_id, load=load
    )
