"""Volumes in a real cluster: releases and a removed app leave them, and only their name deletes them."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from seedwork.archives import BadArchive
from seedwork.messages import new_id
from services.deployer.adapters.kubernetes import objects, storage_pod
from services.deployer.adapters.kubernetes.cluster import CLAIM, NAMESPACE, POD
from services.deployer.adapters.kubernetes.storage_pod import StorageOptions, StoragePods
from services.deployer.adapters.kubernetes.volumes import KubernetesVolumes
from services.deployer.errors import CannotRun
from services.deployer.ports import Volume
from tests.stack.container_images import BASE
from tests.stack.containers_contract import get
from tests.stack.kubernetes_bench import Bench, bench, images, shelf
from tests.stack.test_docker_volumes import KEEPS

__all__ = ["bench", "images", "shelf"]

pytestmark = pytest.mark.stack("KUBECONFIG", "REGISTRY")


WRITES = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = "\\n".join(sorted(os.listdir("/data"))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

os.makedirs("/data/folder", exist_ok=True)
with open("/data/folder/file", "w") as file:
    file.write("kept")
if not os.path.islink("/data/link"):
    os.symlink("folder/file", "/data/link")
HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


async def exported(volumes: KubernetesVolumes, volume: Volume) -> bytes:
    return b"".join([piece async for piece in volumes.read(volume)])


def members(archive: bytes) -> dict[str, str]:
    """Names with what is in them or where they lead."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for each in tar:
            opened = tar.extractfile(each) if each.isfile() else None
            found[each.name] = opened.read().decode() if opened else each.linkname
        return found


async def test_content_is_exported_and_imported_while_the_node_has_the_volume(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a running instance; what the archive has replaces everything, and the app can write to it."""
    volume = Volume(app_id=bench.shelf.app_id, name="data", path="/data", size_bytes=1024**3)
    volumes = KubernetesVolumes(
        bench.cluster,
        app_label=objects.APP_ID,
        installation_label={objects.INSTALLATION: bench.options.shape.installation},
        storage_class=None,
        pods=StoragePods(bench.cluster, StorageOptions(user=bench.options.shape.run_as_user, image=BASE)),
        owner_image=BASE,
        group=bench.options.shape.run_as_user,
    )
    with pytest.raises(CannotRun, match="no content yet"):
        await exported(volumes, volume)
    runtime = bench.made(volume_owner_image=BASE)
    release = replace(bench.shelf.release(await bench.shelf.image({"app.py": WRITES})), volumes=(volume,))
    address = await bench.up(runtime, release)
    before = await exported(volumes, volume)
    assert members(before) == {"folder": "", "folder/file": "kept", "link": "folder/file"}

    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        entry = tarfile.TarInfo("brought")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"new"))
    await volumes.replace(volume, other)
    assert (await get(address)).text == "brought"
    assert members(await exported(volumes, volume)) == {"brought": "new"}

    with monkeypatch.context() as elsewhere:  # a deployer that does not reach the pods' network
        elsewhere.setattr(storage_pod._Found, "client", lambda _: httpx2.AsyncClient(base_url="http://127.0.0.1:1"))
        assert members(await exported(volumes, volume)) == {"brought": "new"}
        with pytest.raises(CannotRun, match="does not reach the pods"):
            await volumes.replace(volume, other)

    bad = tmp_path / "bad.tar"
    with tarfile.open(bad, "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(BadArchive):
        await volumes.replace(volume, bad)
    assert (await get(address)).text == "brought"
    pods = await bench.cluster.list(POD, None, {objects.APP_ID: volume.app_id, objects.STEP: "storage"})
    assert [each for each in pods.items if "deletionTimestamp" not in each["metadata"]] == []

    await runtime.stop(release.app_id, release.saga_id)
    await runtime.forget(release.app_id)
    await volumes.delete(volume)


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
