"""Volumes on a real Docker engine: the app's user can write, releases share them, and only their name deletes them."""

import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from seedwork.messages import new_id
from services.deployer.adapters.docker.volumes import DockerVolumes
from services.deployer.ports import Volume
from tests.stack.containers_contract import get
from tests.stack.docker_bench import Bench, bench, images, shelf

__all__ = ["bench", "images", "shelf"]

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")

KEEPS = """
import http.server, os, pathlib
FILE = pathlib.Path(os.environ["STORAGE_DATA"]) / "count"
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        FILE.write_text(str(int(FILE.read_text()) + 1 if FILE.exists() else 1))
        body = FILE.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


@pytest.fixture
async def volume(bench: Bench) -> AsyncIterator[Volume]:
    volume = Volume(app_id=bench.shelf.app_id, name="data", path="/data", size_bytes=1024**3)
    yield volume
    await DockerVolumes(bench.engine, installation=bench.options.installation).delete(volume)


async def test_a_volume_outlives_releases_and_the_app(bench: Bench, volume: Volume, tmp_path: Path) -> None:
    """An image that runs as an ordinary user writes to it; export, import and deletion find it afterwards."""
    volumes = DockerVolumes(bench.engine, installation=bench.options.installation)
    runtime = bench.made()
    image = await bench.shelf.image({"app.py": KEEPS})
    release = replace(bench.shelf.release(image), volumes=(volume,))
    # a deployment asks the app itself, so that the first count is not known
    first = int((await get(await bench.up(runtime, release))).text)
    assert await runtime.stop(release.app_id, release.saga_id)
    second = replace(bench.shelf.release(image), saga_id=new_id(), number=2, volumes=(volume,))
    assert int((await get(await bench.up(runtime, second))).text) > first
    await runtime.forget(release.app_id)

    assert (await volumes.used_bytes(volume) or 0) > 0
    exported = b"".join([piece async for piece in volumes.read(volume)])
    assert "count" in {name.removeprefix("./") for name in _names(exported)}
    archive = tmp_path / "content.tar"
    archive.write_bytes(_tar("count", b"41"))
    await volumes.replace(volume, archive)
    third = replace(bench.shelf.release(image), saga_id=new_id(), number=3, volumes=(volume,))
    assert int((await get(await bench.up(bench.made(port_base=23_040), third))).text) >= 42
    await bench.runtimes[-1].forget(release.app_id)

    assert len(await volumes.delete(volume)) == 1
    assert not await volumes.delete(volume)


def _tar(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid = len(content), 0o644, 10001
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _names(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        return set(read.getnames())
