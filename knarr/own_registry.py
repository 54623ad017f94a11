"""The registry that `knarr up --runtime docker` starts beside itself: a container of `registry:2` on the same engine.

In: an engine and the home. Out: an address on loopback, where images are pushed and pulled with a password of the home.
Guaranteed: the images are in a named volume, which outlives the container; a second call changes nothing; the engine
starts the container again after its own restart. Nothing but the container, its volume and a file in the home is made.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import structlog

from dockerengine import Endpoint, EngineApi
from knarr.home import Home
from knarr.htpasswd import USER, htpasswd
from ocistore.upkeep import upkeep_of
from seedwork.errors import KnarrError, Misconfigured, NotFound, Unavailable
from services.registry.adapters.own_registry import COLLECTOR, DATA

LABEL_INSTALLATION = "io.knarr.installation"
LABEL_REGISTRY = "io.knarr.registry"
PORT_OFFSET = 90
"""Above the port base: 8790, between the services and the apps."""
READY_S = 60.0
"""Seconds until it must answer; a container with a small program starts in one."""
_REACHED_S = 10.0
_LOOK_S = 10.0
"""Seconds between two looks at the registry: a push that failed is tried again for longer than that."""
_PORT = 5000
_PORTS_TRIED = 10
_PASSWORDS = "/knarr/htpasswd"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRegistry:
    """Where it is and how it is used."""

    container: str
    port: int
    password: str

    @property
    def url(self) -> str:
        """Plain http on loopback: engines accept that without a setting."""
        return f"http://127.0.0.1:{self.port}"


def container_name(installation: str) -> str:
    """Return the name of the container and of its volume."""
    return f"{installation}-images"


async def start_registry(
    engine: EngineApi, home: Home, *, installation: str, image: str, port: int, ports: int = _PORTS_TRIED
) -> OwnRegistry:
    """Start the registry, or find it running.

    Args:
        engine: Runs it.
        home: Keeps its password.
        installation: Names the container and its volume.
        image: The image of a Docker distribution registry 2.x.
        port: The wished port on 127.0.0.1; a container that is there keeps its own.
        ports: How many ports from there on are tried.

    Raises:
        NotFound: The image is not on the engine and cannot be pulled.
        Misconfigured: The engine's containers cannot be reached from here.
        Unavailable: The engine does not answer, or the registry does not start.
    """
    name, password = container_name(installation), home.keep_secret(home.registry_password_file)
    await engine.remove_container(name + COLLECTOR)
    known = await _inspect(engine, name)
    if known is not None and not _fits(known, image):
        await engine.remove_container(name)
        known = None
    if known is not None and (bound := _port(known)):
        port = bound
    for candidate in range(port, port + ports):
        if known is None:
            await _create(engine, name, installation=installation, image=image, port=candidate)
        await engine.put_file(name, _PASSWORDS, htpasswd(password))  # also into a container of an earlier start
        try:
            await engine.call("POST", f"containers/{name}/start")
        except KnarrError as error:
            await engine.remove_container(name)
            known = None
            if not _is_taken(error):
                raise
            continue
        registry = OwnRegistry(container=name, port=candidate, password=password)
        await _answers(registry)
        await _containers_are_reached(engine, name)
        return registry
    raise Unavailable(
        "The registry for images cannot be started",
        why=f"the ports {port} to {port + ports - 1} of 127.0.0.1 are taken",
        todo="Choose others with --port-base.",
    )


async def watch_registry(
    endpoint: Endpoint, home: Home, registry: OwnRegistry, *, installation: str, image: str
) -> None:
    """Start the registry again whenever it does not answer, at its port; runs until it is cancelled.

    The engine starts it after its own restart, but not after `docker stop`, and not where its port was still in use.
    """
    upkeep = upkeep_of(registry.url)
    async with EngineApi(endpoint) as engine:
        while True:
            await asyncio.sleep(_LOOK_S)
            async with upkeep.writing():  # a collection of its garbage stops it on purpose
                if await _fault(registry) is None:
                    continue
                log.warning("registry.away", container=registry.container)
                try:
                    await start_registry(
                        engine, home, installation=installation, image=image, port=registry.port, ports=1
                    )
                except KnarrError as error:
                    log.warning("registry.not_started", why=error.message)


async def _create(engine: EngineApi, name: str, *, installation: str, image: str, port: int) -> None:
    if await _missing(engine, image):
        try:
            await engine.pull(image)
        except NotFound as error:
            raise NotFound(
                f"The image {image} of the registry for apps' images cannot be pulled",
                why=error.why,
                todo=f"Run `docker pull {image}`, or name another one with KNARR_REGISTRY_IMAGE.",
            ) from error
    labels = {LABEL_INSTALLATION: installation, LABEL_REGISTRY: image}
    await engine.call("POST", "volumes/create", body={"Name": name, "Labels": labels})
    await engine.call("POST", "containers/create", params={"name": name}, body=_config(name, image, port, labels))


def _config(name: str, image: str, port: int, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "Image": image,
        "Labels": dict(labels),
        "Env": [
            "REGISTRY_STORAGE_DELETE_ENABLED=true",
            "REGISTRY_AUTH=htpasswd",
            "REGISTRY_AUTH_HTPASSWD_REALM=knarr",
            f"REGISTRY_AUTH_HTPASSWD_PATH={_PASSWORDS}",
            "REGISTRY_HTTP_ADDR=:5000",
            "OTEL_TRACES_EXPORTER=none",
        ],
        "ExposedPorts": {"5000/tcp": {}},
        "HostConfig": {
            "PortBindings": {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
            "Mounts": [{"Type": "volume", "Source": name, "Target": DATA}],
            "RestartPolicy": {"Name": "unless-stopped"},
            "SecurityOpt": ["no-new-privileges"],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "2"}},
        },
    }


def _is_taken(error: KnarrError) -> bool:
    return "already allocated" in error.why or "address already in use" in error.why


def _fits(known: Mapping[str, Any], image: str) -> bool:
    return bool(known["Config"]["Labels"].get(LABEL_REGISTRY) == image)


def _port(known: Mapping[str, Any]) -> int | None:
    bindings = known["HostConfig"].get("PortBindings", {}).get("5000/tcp") or [{}]
    text = str(bindings[0].get("HostPort", ""))
    return int(text) if text.isdecimal() else None


async def _inspect(engine: EngineApi, name: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = await engine.call("GET", f"containers/{name}/json")
    except NotFound:
        return None
    return found


async def _missing(engine: EngineApi, image: str) -> bool:
    try:
        await engine.call("GET", f"images/{image}/json")
    except NotFound:
        return True
    return False


async def _answers(registry: OwnRegistry) -> None:
    """Wait until it accepts the password.

    Raises:
        Unavailable: It does not, within `READY_S`.
    """
    deadline = time.monotonic() + READY_S
    while (fault := await _fault(registry)) is not None:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The registry at {registry.url} does not answer",
                why=fault,
                todo=f"Run `docker logs {registry.container}` to see its log.",
            )
        await asyncio.sleep(0.1)


async def _fault(registry: OwnRegistry) -> str | None:
    """Return what is wrong with it now; None: it accepts the password."""
    async with httpx2.AsyncClient(trust_env=False, timeout=_REACHED_S, auth=(USER, registry.password)) as client:
        try:
            answer = await client.get(f"{registry.url}/v2/")
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else f"it answers {answer.status_code}"


async def _containers_are_reached(engine: EngineApi, name: str) -> None:
    """Connect to the registry by its container's address, as knarr connects to every instance of an app.

    Raises:
        Misconfigured: It cannot, though the published port answers: the containers are in a network of their own.
    """
    known = await engine.call("GET", f"containers/{name}/json")
    networks = known["NetworkSettings"].get("Networks") or {}
    address = next((each["IPAddress"] for each in networks.values() if each.get("IPAddress")), "")
    try:
        if not address:
            raise ConnectionError
        async with asyncio.timeout(_REACHED_S):
            _, writer = await asyncio.open_connection(address, _PORT)
    except OSError as error:  # TimeoutError is one
        raise Misconfigured(
            f"The containers of the Docker engine at {engine.endpoint.url} cannot be reached from here",
            why=f"{address or 'no address'}:{_PORT} does not answer; a rootless engine, or one in a virtual machine,"
            " keeps its containers' network to itself",
            todo="Use the engine of the system (DOCKER_HOST=unix:///var/run/docker.sock),"
            " or run `knarr up --runtime process`.",
        ) from error
    writer.close()
