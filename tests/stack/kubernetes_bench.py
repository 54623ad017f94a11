"""A Kubernetes runtime with an installation of its own in the shared cluster, for tests."""

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
from seedwork.errors import KnarrError
from seedwork.messages import new_id
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import (
    DEPLOYMENT,
    JOB,
    NAMESPACE,
    POD,
    REPLICA_SET,
    SECRET,
    Cluster,
    Kind,
    Object,
)
from services.deployer.adapters.kubernetes.front import Front, Ways
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime, Options
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import Release, Standing
from tests.services.deployer.conftest import PATIENCE_S
from tests.stack.container_images import PREFIX, PYTHON, ContainerShelf, open_images, registry
from tests.stack.containers_contract import get


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

    async def fails(
        self,
        release: Release,
        *,
        start_timeout_s: float = 40,
        because: type[KnarrError] = AppDoesNotStart,
        **shape: Any,
    ) -> KnarrError:
        """What is said of a release that does not come up; nothing of it stays."""
        runtime = self.made(replace(self.options, start_timeout_s=start_timeout_s), **shape)
        await runtime.prepare(release)
        await runtime.start(release)
        with pytest.raises(because) as caught:
            await self.observed(runtime, release)
        await runtime.stop(release.app_id, release.saga_id)
        assert [name for name in await self.of_saga(release) if not name.startswith("Namespace")] == []
        return caught.value

    async def instance_of(self, release: Release) -> str:
        """Its only pod."""
        (pod,) = await self.the(POD, release)
        return str(pod["metadata"]["name"])

    async def of_saga(self, release: Release) -> list[str]:
        """Kind and name of every object that carries its id."""
        labels = {objects.INSTALLATION: self.installation, objects.SAGA: release.saga_id}
        return [
            f"{kind.name} {item['metadata']['name']}"
            for kind in (DEPLOYMENT, REPLICA_SET, JOB, POD, SECRET)
            for item in (await self.cluster.list(kind, None, labels)).items
        ]

    async def the(self, kind: Kind, release: Release) -> list[Object]:
        """The objects of that kind that its instances are made of."""
        labels = {objects.INSTALLATION: self.installation, objects.SAGA: release.saga_id, objects.STEP: "deploy"}
        return (await self.cluster.list(kind, None, labels)).items

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


async def answered(url: str) -> bool:
    """Whether the app does, well."""
    try:
        return (await get(url)).status_code == 200
    except httpx2.TransportError:
        return False


def standing(release: Release, port: int) -> Standing:
    """What the database says of a release that serves."""

    async def load() -> Release:
        return release

    return Standing(
        app_id=release.app_id,
        app=release.app,
        port=port,
        fence=release.number,
        saga_id=release.saga_id,
        processes=frozenset(release.formation),
        load=load,
    )
