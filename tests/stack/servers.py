"""The servers of the production stack: those that the environment names, and those that are started for one run.

In: `PULSAR_URL`, `MYSQL_URL`, `REGISTRY`, `BUILDKIT_HOST`, `DOCKER_HOST`, `KUBECONFIG` and their companions, as
`testbed env` has them.
Out: the same names for what was missing, as far as a Docker engine can start it; and what each server says of itself.
A Kubernetes cluster is never started: its tests run where there is one.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from testcontainers.core.container import DockerContainer

from seedwork.testing.servers import MYSQL_IMAGE, PULSAR_COMMAND, PULSAR_IMAGE, answers, free_port, pulsar_settings
from tests.stack import buildkit

SOCKET = Path("/var/run/docker.sock")
"""Where an engine listens if nobody says otherwise."""
REGISTRY_IMAGE = "registry:2"
SILENT = (OSError, DBAPIError, httpx2.HTTPError, LookupError, ValueError)
"""What asking a server raises that is not there."""


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server, by what the environment calls it.

    Args:
        name: For people.
        variables: What a test may want of it; the first one says whether it is there.
        version: Ask it, with the environment as it is now; raises one of `SILENT` when it does not answer.
    """

    name: str
    variables: tuple[str, ...]
    version: Callable[[], Coroutine[Any, Any, str]]

    @property
    def is_named(self) -> bool:
        """Whether the environment says where it is."""
        return bool(os.environ.get(self.variables[0]))

    def says(self) -> str:
        """Its version, asked now."""
        try:
            return asyncio.run(self.version())
        except SILENT as error:
            return f"does not answer: {error}"


async def mysql_version() -> str:
    """As the server says it, with how durable a commit is."""
    engine = create_async_engine(os.environ["MYSQL_URL"])
    try:
        async with engine.connect() as conn:
            query = text("SELECT VERSION(), @@innodb_flush_log_at_trx_commit, @@sync_binlog")
            version, flush, sync = (await conn.execute(query)).one()
    finally:
        await engine.dispose()
    return f"{version} (innodb_flush_log_at_trx_commit={flush}, sync_binlog={sync})"


async def pulsar_version() -> str:
    """As the broker says it."""
    async with httpx2.AsyncClient(base_url=os.environ["PULSAR_ADMIN_URL"], timeout=20, trust_env=False) as http:
        answer = await http.get("/admin/v2/brokers/version")
        return answer.raise_for_status().text.strip().strip('"')


async def registry_version() -> str:
    """A registry tells nobody its version, only which API it speaks."""
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
        answer = await http.get(f"http://{os.environ['REGISTRY']}/v2/")
        return f"API {answer.raise_for_status().headers['Docker-Distribution-Api-Version']}"


async def buildkit_version() -> str:
    """As the builder says it, asked by buildx."""
    return await asyncio.to_thread(buildkit.version, os.environ["BUILDKIT_HOST"])


async def docker_version() -> str:
    """The engine's, and that of the builder that its client has."""
    engine = await _say("docker", "version", "--format", "{{.Server.Version}} (API {{.Server.APIVersion}})")
    buildx = await _say("docker", "buildx", "version")
    return f"{engine}, buildx {buildx.split()[1]}"


async def kubernetes_version() -> str:
    """As the API server says it."""
    return str(json.loads(await _say("kubectl", "get", "--raw", "/version"))["gitVersion"])


async def _say(*argv: str) -> str:
    """What a program prints; `OSError` when it fails."""
    process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    if process.returncode:
        raise OSError(err.decode().strip() or f"{argv[0]} ended with {process.returncode}")
    return out.decode().strip()


SERVERS = (
    Server("MySQL", ("MYSQL_URL", "MYSQL_ROOT_URL"), mysql_version),
    Server("Apache Pulsar", ("PULSAR_URL", "PULSAR_ADMIN_URL"), pulsar_version),
    Server("registry", ("REGISTRY",), registry_version),
    Server("BuildKit", ("BUILDKIT_HOST",), buildkit_version),
    Server("Docker", ("DOCKER_HOST",), docker_version),
    Server("Kubernetes", ("KUBECONFIG",), kubernetes_version),
)


def find_docker() -> bool:
    """Whether an engine answers; the environment then names it."""
    if not shutil.which("docker"):
        return False
    if not os.environ.get("DOCKER_HOST") and SOCKET.exists():
        os.environ["DOCKER_HOST"] = f"unix://{SOCKET}"
    try:
        asyncio.run(docker_version())
    except SILENT:
        return False
    return bool(os.environ.get("DOCKER_HOST"))


@contextlib.contextmanager
def started(variables: Collection[str] | None = None) -> Iterator[None]:
    """Servers of this run's own in place of those that the environment does not name; gone afterwards.

    Args:
        variables: Only servers that the run wants, by what the environment calls them; None: all that can be started.
    """
    with contextlib.ExitStack() as stack:
        for server, start in zip(SERVERS, STARTED, strict=False):
            if server.is_named or (variables is not None and server.variables[0] not in variables):
                continue
            try:
                stack.enter_context(start())
            except buildkit.NoBuildKit as error:
                sys.stderr.write(f"{server.name} is not started: {error}\n")
                continue
            asyncio.run(answers(server.version))
        yield


@contextlib.contextmanager
def _mysql() -> Iterator[None]:
    with DockerContainer(MYSQL_IMAGE).with_env("MYSQL_ROOT_PASSWORD", "root").with_exposed_ports(3306) as container:
        server = f"mysql+asyncmy://root:root@127.0.0.1:{container.get_exposed_port(3306)}/"
        with _named(MYSQL_URL=f"{server}mysql", MYSQL_ROOT_URL=server):
            yield


@contextlib.contextmanager
def _pulsar() -> Iterator[None]:
    port = free_port()
    container = DockerContainer(PULSAR_IMAGE).with_envs(**pulsar_settings(port)).with_command(list(PULSAR_COMMAND))
    with container.with_bind_ports(port, port).with_exposed_ports(8080):
        admin = f"http://127.0.0.1:{container.get_exposed_port(8080)}"
        with _named(PULSAR_URL=f"pulsar://127.0.0.1:{port}", PULSAR_ADMIN_URL=admin):
            yield


@contextlib.contextmanager
def _registry() -> Iterator[None]:
    container = DockerContainer(REGISTRY_IMAGE).with_env("REGISTRY_STORAGE_DELETE_ENABLED", "true")
    with (
        container.with_exposed_ports(5000),
        _named(REGISTRY=f"localhost:{container.get_exposed_port(5000)}"),  # the engine trusts this name without TLS
    ):
        yield


@contextlib.contextmanager
def _buildkit() -> Iterator[None]:
    with buildkit.own_buildkit() as own, _named(BUILDKIT_HOST=own.host):
        yield


STARTED = (_mysql, _pulsar, _registry, _buildkit)
"""What a Docker engine can start, in the order of `SERVERS`."""


@contextlib.contextmanager
def _named(**variables: str) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
