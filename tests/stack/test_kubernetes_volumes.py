"""Volumes in a real cluster: releases and a removed app leave them, and only their name deletes them."""

from dataclasses import replace

import pytest

from seedwork.messages import new_id
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import CLAIM, NAMESPACE
from services.deployer.adapters.kubernetes.volumes import KubernetesVolumes
from services.deployer.ports import Volume
from tests.stack.container_images import BASE
from tests.stack.containers_contract import get
from tests.stack.kubernetes_bench import Bench, bench, images, shelf
from tests.stack.test_docker_volumes import KEEPS

__all__ = ["bench", "images", "shelf"]

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")


async def test_a_claim_outlives_releases_and_the_app(bench: Bench) -> None:
    """An ordinary user writes to it; the namespace stays for it, and goes with it."""
    volume = Volume(app_id=bench.shelf.app_id, name="data", path="/data", size_bytes=1024**3)
    installation = bench.options.shape.installation
    volumes = KubernetesVolumes(
        bench.cluster,
        app_label=objects.APP_ID,
        installation_label={objects.INSTALLATION: installation},
        storage_class=None,
    )
    runtime = bench.made(volume_owner_image=BASE)  # the default class of the test cluster makes host paths
    image = await bench.shelf.image({"app.py": KEEPS})
    release = replace(bench.shelf.release(image), volumes=(volume,))
    first = int((await get(await bench.up(runtime, release))).text)
    second = replace(release, saga_id=new_id(), number=2)
    assert int((await get(await bench.up(runtime, second))).text) > first
    await runtime.stop(release.app_id, release.saga_id)

    await runtime.forget(release.app_id)
    labels = {objects.APP_ID: release.app_id}
    (namespace,) = (await bench.cluster.list(NAMESPACE, None, labels)).items
    (claim,) = (await bench.cluster.list(CLAIM, namespace["metadata"]["name"], {})).items
    assert claim["spec"]["resources"]["requests"]["storage"] in {"1Gi", str(1024**3)}
    assert await runtime.instances(release.app_id) == []

    assert len(await volumes.delete(volume)) == 1
    assert not [
        each
        for each in (await bench.cluster.list(NAMESPACE, None, labels)).items
        if "deletionTimestamp" not in each["metadata"]
    ]
