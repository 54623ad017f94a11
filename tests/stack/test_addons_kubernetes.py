"""A Kubernetes cluster keeps the contract of add-ons."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ocistore.store import Image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from services.deployer.adapters.addon_recipes import Means
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.addons import KubernetesAddOns
from services.deployer.adapters.kubernetes.cluster import CLAIM, POD, SECRET, SERVICE, STATEFUL_SET, Cluster
from services.deployer.adapters.kubernetes.front import Front, Ways
from services.deployer.adapters.kubernetes.runtime import KubernetesRuntime, Options
from services.deployer.ports import AddOn, Release
from tests.services.deployer.conftest import eventually
from tests.stack.addons_contract import ASK_REDIS, MEANS, AddOnsContract, ReleaseOf
from tests.stack.container_images import PREFIX, ContainerShelf, open_images, registry

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")


@dataclass
class ClusterGrounds:
    """An installation of its own in the shared cluster."""

    cluster: Cluster
    front: Front
    runtime: KubernetesRuntime
    provider: KubernetesAddOns
    installation: str

    def with_means(self, means: Means) -> KubernetesAddOns:
        return KubernetesAddOns(self.cluster, self.front, installation=self.installation, means=means)

    async def execute(self, addon: AddOn, *argv: str) -> str:
        where = ("-n", await self._namespace(addon.app_id), f"{addon.name}-0")
        process = await asyncio.create_subprocess_exec(
            "kubectl", "exec", *where, "--", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()

    async def address(self, addon: AddOn) -> str:
        pod = await self.cluster.get(POD, await self._namespace(addon.app_id), f"{addon.name}-0")
        assert pod is not None
        return str(pod["status"]["podIP"])

    async def lose(self, addon: AddOn) -> None:
        namespace, name = await self._namespace(addon.app_id), f"{addon.name}-0"
        before = await self.cluster.get(POD, namespace, name)
        assert before is not None
        await self.cluster.delete(POD, namespace, name)

        async def replaced() -> bool:
            now = await self.cluster.get(POD, namespace, name)
            return now is not None and bool(now["metadata"]["uid"] != before["metadata"]["uid"])

        await eventually(replaced, within_s=180)  # a kubelet before 1.22 may see after a minute that a pod is to go

    async def left(self, app_id: str) -> list[str]:
        namespace = await self.front.namespace(app_id)
        labels = {**self.front.labels(app_id), objects.ADDON: ""}
        return [
            f"{kind.name} {each['metadata']['name']}"
            for kind in (POD, CLAIM, SECRET, SERVICE, STATEFUL_SET)
            for each in (await self.cluster.list(kind, namespace, labels)).items
        ]

    async def _namespace(self, app_id: str) -> str:
        namespace = await self.front.namespace(app_id)
        assert namespace is not None
        return namespace


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[ContainerShelf]:
    images = open_images()
    yield ContainerShelf(images, tmp_path)
    await images.close()


@pytest.fixture
async def grounds(shelf: ContainerShelf) -> AsyncIterator[ClusterGrounds]:
    cluster, clock = Cluster(), SystemClock()
    shape = objects.Shape(installation=f"knarr-t{new_id()[-12:]}", grace_s=5)
    front = Front(cluster, clock, shape, Ways(node_port_base=30_500))
    runtime = KubernetesRuntime(
        cluster=cluster,
        front=front,
        pullable=Pullable(f"{registry()}/{PREFIX}"),
        clock=clock,
        options=Options(shape=shape),
    )
    provider = KubernetesAddOns(cluster, front, installation=shape.installation, means=MEANS)
    yield ClusterGrounds(cluster, front, runtime, provider, shape.installation)
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


class TestKubernetesAddOns(AddOnsContract):
    """With MySQL, PostgreSQL, Redis and what stands in for MongoDB."""
