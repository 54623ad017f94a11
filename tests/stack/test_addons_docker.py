"""A Docker engine keeps the contract of add-ons."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ocistore.store import Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.deployer.adapters.addon_recipes import Means
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.addons import DockerAddOns
from services.deployer.adapters.docker.engine import Container, Engine
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.options import Options
from services.deployer.adapters.docker.runtime import DockerRuntime
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.router import Router
from services.deployer.ports import AddOn, Release
from tests.stack.addons_contract import ASK_REDIS, MEANS, AddOnsContract, ReleaseOf
from tests.stack.container_images import PREFIX, ContainerShelf, open_images, registry

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")


@dataclass
class DockerGrounds:
    """An installation of its own on the shared engine."""

    engine: Engine
    networks: Networks
    runtime: DockerRuntime
    provider: DockerAddOns
    installation: str

    def with_means(self, means: Means) -> DockerAddOns:
        return DockerAddOns(self.engine, self.networks, installation=self.installation, means=means)

    async def execute(self, addon: AddOn, *argv: str) -> str:
        container = await self._container(addon)
        process = await asyncio.create_subprocess_exec(
            "docker", "exec", container.id, *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()

    async def address(self, addon: AddOn) -> str:
        return next(iter((await self._container(addon)).addresses.values()))

    async def lose(self, addon: AddOn) -> None:
        container = await self._container(addon)
        await self.engine.stop(container.id, grace_s=30)
        await self.engine.remove(container.id)

    async def left(self, app_id: str) -> list[str]:
        labels = {spec.INSTALLATION: self.installation, spec.APP_ID: app_id, spec.ADDON: ""}
        containers = [each.name for each in await self.engine.containers(labels)]
        return [*containers, *await self.engine.volumes(labels)]

    async def _container(self, addon: AddOn) -> Container:
        labels = {spec.INSTALLATION: self.installation, spec.APP_ID: addon.app_id, spec.ADDON: addon.name}
        (container,) = await self.engine.containers(labels)
        return container


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[ContainerShelf]:
    images = open_images()
    yield ContainerShelf(images, tmp_path)
    await images.close()


@pytest.fixture
async def grounds(shelf: ContainerShelf) -> AsyncIterator[DockerGrounds]:
    installation = f"knarr-t{new_id()[-12:]}"
    engine = Engine()
    networks = Networks(engine, installation)
    runtime = DockerRuntime(
        engine=engine,
        networks=networks,
        pullable=Pullable(f"{registry()}/{PREFIX}"),
        router=Router(host="127.0.0.1", port_base=24_000, idle_s=30),
        clock=SystemClock(),
        options=Options(installation=installation, grace_s=5),
    )
    provider = DockerAddOns(engine, networks, installation=installation, means=MEANS)
    yield DockerGrounds(engine, networks, runtime, provider, installation)
    await runtime.close()


@pytest.fixture
async def asking(shelf: ContainerShelf) -> Image:
    return await shelf.image(release=tuple(ASK_REDIS))


@pytest.fixture
def release_of(shelf: ContainerShelf) -> ReleaseOf:
    def made(image: Image, addon: AddOn) -> Release:
        release = shelf.release(image, env={"PASSWORD": addon.password}, app_id=addon.app_id)
        return replace(release, addons=(addon,))

    return made


class TestDockerAddOns(AddOnsContract):
    """With MySQL, PostgreSQL, Redis and what stands in for MongoDB."""
