"""A Kubernetes cluster keeps the contract of the runtime, and what only a cluster can get wrong."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ocistore.distribution import DistributionStore
from ocistore.store import Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import NAMESPACE, Cluster, Object
from services.deployer.adapters.kubernetes.front import Front, Ways
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime, Options
from services.deployer.ports import Release
from tests.services.deployer.conftest import PATIENCE_S
from tests.services.deployer.test_runtime_contract import RuntimeContract
from tests.stack.container_images import PREFIX, PYTHON, ContainerShelf, open_images, registry

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")


@dataclass
class Bench:
    """A runtime with an installation of its own in the shared cluster."""

    cluster: Cluster
    images: DistributionStore
    shelf: ContainerShelf
    options: Options
    pullable: Pullable
    ways: Ways
    kubeconfig: Path | None = None
    runtimes: list[KubernetesRuntime] = field(default_factory=list)

    @property
    def installation(self) -> str:
        """Ours."""
        return self.options.shape.installation

    def made(self, options: Options | None = None, **shape: Any) -> KubernetesRuntime:
        """Another process of the same installation."""
        options = options or self.options
        options = replace(options, shape=replace(options.shape, **shape))
        cluster = Cluster(self.kubeconfig)
        runtime = KubernetesRuntime(
            cluster=cluster,
            front=Front(cluster, SystemClock(), options.shape, self.ways),
            images=self.images,
            pullable=self.pullable,
            clock=SystemClock(),
            options=options,
        )
        self.runtimes.append(runtime)
        return runtime

    async def up(self, runtime: KubernetesRuntime, release: Release) -> str:
        """Deployed with traffic; the app's address."""
        address = await runtime.expose(release.app_id, release.app, taken=frozenset())
        await runtime.prepare(release)
        await runtime.start(release)
        await self.observed(runtime, release)
        await runtime.switch(release.app_id, release.saga_id, fence=release.number)
        return address.url

    async def observed(self, runtime: KubernetesRuntime, release: Release) -> None:
        """Every instance answered."""
        async with asyncio.timeout(PATIENCE_S * 2):
            await runtime.observe(release, note=lambda _: None)

    async def namespaces(self) -> list[Object]:
        """Of all our apps."""
        return (await self.cluster.list(NAMESPACE, None, {objects.INSTALLATION: self.installation})).items

    async def clear(self) -> None:
        """Everything of the installation; the cluster takes its time, and nobody waits for it."""
        for namespace in await self.namespaces():
            await self.cluster.delete(NAMESPACE, None, namespace["metadata"]["name"])


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
    shape = objects.Shape(
        installation=f"knarr-t{new_id()[-12:]}", grace_s=5, release_command_timeout_s=30, memory_mb=96
    )
    port = random.randrange(30_500, 31_500)  # noqa: S311  other tests take ports of the same nodes
    options = Options(shape=shape, start_timeout_s=40)
    bench = Bench(Cluster(), images, shelf, options, Pullable(f"{registry()}/{PREFIX}"), Ways(node_port_base=port))
    yield bench
    for runtime in bench.runtimes:
        await runtime.close()
    await bench.clear()
    await bench.cluster.close()


@pytest.fixture
async def runtime(bench: Bench) -> KubernetesRuntime:
    return bench.made()


@pytest.fixture
async def sound(shelf: ContainerShelf) -> Image:
    return await shelf.image()


@pytest.fixture
async def broken(shelf: ContainerShelf) -> Image:
    return await shelf.image({"app.py": "import sys; sys.exit('no such table: carts')"})


@pytest.fixture
async def unmigrated(shelf: ContainerShelf) -> Image:
    return await shelf.image(release=(PYTHON, "-c", "import sys; sys.exit('cannot migrate')"))


class TestKubernetesRuntime(RuntimeContract):
    """Everything that local processes keep."""


async def get(url: str) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await client.get(url)
