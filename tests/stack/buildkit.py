"""A BuildKit of a test's own: a container with `buildkitd`, on the network of this machine, gone with all that it kept.

It listens on loopback and on the address that containers and pods have of this machine, and reaches the registry under
the name that this machine has for it. The image is the public one; where no public registry is reachable, and there is
Go, it is made of BuildKit's source (Go's module proxy) and Debian's runc.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from seedwork.messages import new_id
from seedwork.testing.servers import free_port
from tests.stack.registries import docker

VERSION = "v0.13.2"
IMAGE = f"moby/buildkit:{VERSION}"
_SOURCE = "github.com/moby/buildkit"
_DOCKERFILE = """\
FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends runc && rm -rf /var/lib/apt/lists/*
COPY buildkitd /usr/bin/
ENTRYPOINT ["buildkitd"]
"""
_RIGHTS = (
    "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN", "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined", "--security-opt=systempaths=unconfined",
    "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
)  # fmt: skip
"""What it takes to run containers in a container: less than `--privileged`, which not every machine's root may give."""
_START_S = 240.0
_MAKE_S = 1800.0


class NoBuildKit(LookupError):
    """There is no image, and none can be made here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildKit:
    """One that nobody else uses."""

    container: str
    port: int

    @property
    def host(self) -> str:
        """What `BUILDKIT_HOST` takes."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def host_for_containers(self) -> str:
        """The same for containers and pods."""
        return f"tcp://{bridge_address()}:{self.port}"

    def kill(self) -> None:
        """As a power cut."""
        docker("kill", "--signal=KILL", self.container)


@contextmanager
def own_buildkit() -> Iterator[BuildKit]:
    """Start one with an empty cache; it answers.

    Raises:
        NoBuildKit: There is no image, and none can be made here.
    """
    _have_image()
    port = free_port()
    listens = [f"--addr=tcp://{address}:{port}" for address in ("127.0.0.1", bridge_address())]
    state = "--volume=/var/lib/buildkit"
    name = f"--name=knarr-test-buildkit-{new_id()[-12:]}"
    container = docker("run", "--detach", name, "--network=host", *_RIGHTS, state, IMAGE, *listens)
    try:
        buildkit = BuildKit(container=container, port=port)
        _await(buildkit)
        yield buildkit
    finally:
        docker("rm", "--force", "--volumes", container)


def bridge_address() -> str:
    """This machine's address for containers."""
    return docker("network", "inspect", "bridge", "--format={{(index .IPAM.Config 0).Gateway}}")


def version(host: str) -> str:
    """What a BuildKit says it is.

    Raises:
        OSError: It does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Not the home of the user's own builders, nor of the plugins, which are found from DOCKER_CONFIG.
        environment = {**os.environ, "BUILDX_CONFIG": folder}
        _buildx("create", "--name=asked", "--driver=remote", host, environment=environment)
        said = _buildx("inspect", "asked", environment=environment)
    lines = dict(line.lower().split(":", 1) for line in said.splitlines() if ":" in line)
    found = next((value for name, value in lines.items() if name.startswith("buildkit")), None)  # as it is called now
    if found is None:
        raise OSError(lines.get("error", "no answer").strip())
    return found.strip()


def _buildx(*argv: str, environment: dict[str, str]) -> str:
    command = ["docker", "buildx", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"docker buildx {argv[0]} ended with {done.returncode}")
    return done.stdout


def _await(buildkit: BuildKit) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            version(buildkit.host)
        except OSError as error:
            if time.monotonic() > deadline:
                logs = docker("logs", "--tail=20", buildkit.container)
                raise AssertionError(f"BuildKit did not start: {error}\n{logs}") from error
            time.sleep(0.1)
        else:
            return


def _have_image() -> None:
    if _succeeds("docker", "image", "inspect", IMAGE) or _succeeds("docker", "pull", "--quiet", IMAGE):
        return
    if shutil.which("go") is None:
        raise NoBuildKit(f"{IMAGE} cannot be pulled, and there is no Go to make it")
    with tempfile.TemporaryDirectory() as folder:
        link = f"-s -w -X {_SOURCE}/version.Version={VERSION}"
        environment = {**os.environ, "GOBIN": folder, "CGO_ENABLED": "0", "GOFLAGS": ""}
        argv = ["go", "install", "-ldflags", link, f"{_SOURCE}/cmd/buildkitd@{VERSION}"]
        made = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=_MAKE_S, check=False)
        if made.returncode:
            raise NoBuildKit(f"{IMAGE} cannot be pulled, and its source not be built: {made.stderr[-500:]}")
        (Path(folder) / "Dockerfile").write_text(_DOCKERFILE)
        argv = ["docker", "build", "--quiet", f"--tag={IMAGE}", folder]
        built = subprocess.run(argv, capture_output=True, text=True, timeout=_MAKE_S, check=False)
        if built.returncode:
            raise NoBuildKit(f"{IMAGE} cannot be pulled, and not be built: {built.stderr[-500:]}")


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=600, check=False).returncode == 0
