"""Registries for tests: real ones in containers of their own, whose disk a test may look at and damage."""

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from ocistore.distribution import DistributionStore
from ocistore.testing import Damage
from seedwork.messages import new_id
from services.builder.settings import BuilderSettings

IMAGE = "registry:2"
_START_S = 180.0
_CONFIG = "/etc/docker/registry/config.yml"


def docker(*argv: str) -> str:
    """Run the docker command line; what it printed."""
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRegistry:
    """A registry that nobody else uses."""

    container: str
    host: str
    """`127.0.0.1:port`"""
    disk: Path

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.host}"

    def collect_garbage(self) -> None:
        """What no manifest needs goes, as its operator would have it go."""
        if self._repositories.is_dir() and self._blobs.is_dir():
            docker("exec", self.container, "registry", "garbage-collect", _CONFIG)

    def blobs(self) -> set[str]:
        """The digests of all blobs on its disk."""
        return {f"sha256:{path.parent.name}" for path in self._blobs.glob("sha256/*/*/data")}

    def damage(self, digest: str, how: Damage) -> None:
        """Let a blob be missing, one byte short, or changed."""
        (path,) = self._blobs.glob(f"sha256/*/{digest.removeprefix('sha256:')}/data")
        content = path.read_bytes()
        if how == "missing":
            shutil.rmtree(path.parent)
        elif how == "short":
            path.write_bytes(content[:-1])
        else:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def wipe(self) -> None:
        """As if it were new."""
        shutil.rmtree(self.disk / "docker", ignore_errors=True)

    def restart(self) -> None:
        """Killed, and started again."""
        docker("restart", "--time", "0", self.container)
        _await(self.url)

    @property
    def _blobs(self) -> Path:
        return self.disk / "docker" / "registry" / "v2" / "blobs"

    @property
    def _repositories(self) -> Path:
        return self.disk / "docker" / "registry" / "v2" / "repositories"


@contextmanager
def own_registry(
    disk: Path, *, env: Mapping[str, str] | None = None, volumes: Sequence[str] = ()
) -> Iterator[OwnRegistry]:
    """A container with a registry whose files are in `disk`; deletion is on, nothing is cached in memory."""
    settings = {
        "REGISTRY_STORAGE_DELETE_ENABLED": "true",
        "REGISTRY_STORAGE_CACHE_BLOBDESCRIPTOR": "",
        "REGISTRY_LOG_LEVEL": "warn",
        **(env or {}),
    }
    options = [f"--env={name}={value}" for name, value in settings.items()]
    options += [f"--volume={each}" for each in (f"{disk}:/var/lib/registry", *volumes)]
    port = _free_port()
    container = docker(
        *("run", "--detach", "--rm", f"--name=knarr-test-registry-{new_id()}", f"--user={os.getuid()}:{os.getgid()}"),
        *(f"--publish=127.0.0.1:{port}:5000", *options, IMAGE),
    )
    try:
        _await(f"http://127.0.0.1:{port}")
        yield OwnRegistry(container=container, host=f"127.0.0.1:{port}", disk=disk)
    finally:
        docker("rm", "--force", container)


@asynccontextmanager
async def images_of(settings: BuilderSettings) -> AsyncIterator[DistributionStore]:
    """The builder's store in the registry of the environment; what is in it at the end goes."""
    store = settings.open_image_store()
    assert isinstance(store, DistributionStore)
    yield store
    for repository, digest in await store.images():
        await store.remove(repository, digest)
    await store.close()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(url: str) -> None:
    """Until it answers, whatever it answers."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            httpx2.get(f"{url}/v2/", timeout=10.0, trust_env=False)
        except httpx2.TransportError:
            assert time.monotonic() < deadline, f"{url} did not start"
            time.sleep(0.05)
        else:
            return
