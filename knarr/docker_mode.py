"""Choose what runs the apps of `knarr up`, and make ready what that needs.

`process`: local processes, nothing to prepare. `docker`: containers of this machine's engine, images built there with
buildx and kept in a registry that is started here. The choice is remembered in the home, since its apps depend on it.
A setting that the user made (environment, `.env`, `knarr.yaml`) is never replaced.
"""

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import SecretStr

from dockerengine import Endpoint, EngineApi, find_endpoint
from knarr.home import Home
from knarr.htpasswd import USER
from knarr.own_registry import PORT_OFFSET, OwnRegistry, start_registry, watch_registry
from seedwork.errors import Conflict, KnarrError, Misconfigured
from seedwork.extras import need_extra
from services.deployer.adapters.naming import short_hash
from services.deployer.adapters.process.leftovers import home_id_of
from services.deployer.settings import DeployerSettings
from services.registry.settings import RegistrySettings

RUNTIMES = ("process", "docker")
"""What `--runtime` takes, and the home remembers."""
_OLDEST_API = (1, 41)
"""Docker 20.10: older engines have no BuildKit that buildx can use."""
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How this start runs its apps."""

    runtime: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For all services, where the user set nothing else."""
    says: str = ""
    """One line for the terminal."""
    watch: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Runs as long as the platform does: it keeps what was started for it."""
    hint: str = ""
    """The other way to run, where it is possible."""


def choose(home: Home, wanted: str | None, *, port_base: int) -> Mode:
    """Decide the runtime, start what it needs, and remember it.

    Args:
        home: Of the platform; its lock is held.
        wanted: From `--runtime`; None: KNARR_RUNTIME, else what the home remembers, else `process`.
        port_base: The first of the platform's ports.

    Raises:
        Misconfigured: A program, a client or an engine is missing; the text has the command that helps.
        Conflict: The home's apps run in the other way.
        Unavailable: The engine or the registry does not answer.
    """
    given = DeployerSettings(home=home.path)
    runtime = wanted or _named(given) or str(home.remembered().get("runtime", "process"))
    _refuse_a_change(home, runtime)
    if runtime == "docker":
        mode = _docker(home, given, port_base)
    elif runtime == "process":
        mode = Mode(
            runtime=runtime, settings={"runtime": runtime}, says="Apps run as processes of this user.", hint=_hint()
        )
    else:
        mode = Mode(runtime=runtime, says=f"Apps run on {runtime} (KNARR_RUNTIME).")
    if runtime in RUNTIMES:
        home.remember(runtime=runtime)
    return mode


def _named(given: DeployerSettings) -> str | None:
    return given.runtime if "runtime" in given.model_fields_set else None


def _docker(home: Home, given: DeployerSettings, port_base: int) -> Mode:
    need_extra("docker", "aiodocker", "bcrypt", what="The client of Docker engines")
    endpoint = _need_engine()
    _need_buildx()
    os.environ["DOCKER_HOST"] = endpoint.url  # for every client of this process: they look in different places
    settings: dict[str, Any] = {"runtime": "docker", "builder": "buildx"}
    where, watch = given.image_store, None
    if where is None:
        registry, watch = asyncio.run(_start(home, given, endpoint, port_base))
        settings |= {
            "image_store": registry.url,
            "registry_user": USER,
            "registry_password": SecretStr(registry.password),
            "registry_container": registry.container,
        }
        where = f"{registry.url} (container {registry.container})"
    says = f"Apps run as containers of the Docker engine at {endpoint.url} ({endpoint.source}); images are in {where}."
    return Mode(runtime="docker", settings=settings, says=says, watch=watch)


async def _start(
    home: Home, given: DeployerSettings, endpoint: Endpoint, port_base: int
) -> tuple[OwnRegistry, Callable[[], Coroutine[Any, Any, None]]]:
    """Start the registry; return it with what keeps it running."""
    if not endpoint.is_local:
        raise Misconfigured(
            f"The Docker engine at {endpoint.url} is on another machine",
            why=f"{endpoint.source} names it, and knarr's own registry listens on this machine only",
            todo="Set KNARR_IMAGE_STORE=https://host[:port] to a registry that both reach.",
        )
    wanted = RegistrySettings(home=home.path)
    (home.path / "deployer").mkdir(mode=0o700, exist_ok=True)
    installation = given.installation or f"knarr-{short_hash(home_id_of(home.path / 'deployer'))}"
    async with EngineApi(endpoint) as engine:
        image, port = wanted.registry_image, wanted.registry_port or port_base + PORT_OFFSET
        registry = await start_registry(engine, home, installation=installation, image=image, port=port)
    return registry, partial(watch_registry, endpoint, home, registry, installation=installation, image=image)


# ── what must be there ───────────────────────────────────────────────────────────────────────────────────────────────


def _need_engine() -> Endpoint:
    endpoint = find_endpoint()
    if endpoint is None:
        raise Misconfigured(
            "No Docker engine was found",
            why="neither DOCKER_HOST nor a Docker context names one, and the usual sockets are not there",
            todo="Install and start Docker, or run `knarr up --runtime process`.",
        )
    try:
        version = asyncio.run(_version(endpoint))
    except KnarrError as error:
        raise Misconfigured(
            f"The Docker engine at {endpoint.url} does not answer",
            why=f"{error.why} ({endpoint.source} names it)",
            todo="Start it (`sudo systemctl start docker`), or run `knarr up --runtime process`.",
        ) from error
    if version < _OLDEST_API:
        raise Misconfigured(
            f"The Docker engine at {endpoint.url} is too old",
            why=f"its API is {version[0]}.{version[1]}, and 1.41 (Docker 20.10) is the oldest that knarr uses",
            todo="Install a newer one, or run `knarr up --runtime process`.",
        )
    return endpoint


async def _version(endpoint: Endpoint) -> tuple[int, int]:
    async with EngineApi(endpoint) as engine, asyncio.timeout(_LOOK_S * 5):
        major, _, minor = str((await engine.call("GET", "version"))["ApiVersion"]).partition(".")
        return int(major), int(minor)


def _need_buildx() -> None:
    if shutil.which("docker") is None:
        raise Misconfigured(
            "The command `docker` is not installed",
            why="images are built with its plugin buildx",
            todo="Install docker-ce-cli and docker-buildx-plugin, on Debian docker-cli and docker-buildx.",
        )
    asked = subprocess.run(["docker", "buildx", "version"], capture_output=True, text=True, check=False, timeout=30)
    if asked.returncode:
        raise Misconfigured(
            "The command `docker` has no plugin buildx",
            why=asked.stderr.strip().partition("\n")[0],
            todo="Install docker-buildx-plugin, on Debian docker-buildx.",
        )


def _hint() -> str:
    """Return how to use the engine of this machine, where one answers."""
    try:
        endpoint = find_endpoint()
        if endpoint is None or not endpoint.is_local:
            return ""
        asyncio.run(_version(endpoint))
    except (KnarrError, TimeoutError):
        return ""
    return f"A Docker engine answers ({endpoint.source}); a new home can run apps as containers: --runtime docker"


# ── a home keeps its runtime ─────────────────────────────────────────────────────────────────────────────────────────


def _refuse_a_change(home: Home, runtime: str) -> None:
    """Refuse another runtime where apps are live: their images and containers are where it does not look.

    Raises:
        Conflict: Names the apps.
    """
    before = home.remembered().get("runtime")
    if before is None and (home.path / "registry" / "images").is_dir():
        before = "process"  # a home of a version that remembered nothing: only that runtime keeps images there
    if before in {None, runtime}:
        return
    apps = _live_apps(home)
    if apps:
        raise Conflict(
            f"This home runs its apps on {before}, and {runtime} was asked for",
            why=f"live there: {', '.join(apps[:5])}{' …' if len(apps) > 5 else ''}",
            todo=f"Start it with --runtime {before} and remove each (`knarr apps remove APP`), or use another --home.",
        )


def _live_apps(home: Home) -> list[str]:
    """Return the names of the apps that have a release, as the deployer's SQLite file has them."""
    path = home.path / "deployer" / "deployer.db"
    if not path.is_file():
        return []
    query = "SELECT a.name FROM routes r JOIN apps a USING (app_id) WHERE r.saga_id IS NOT NULL ORDER BY a.name"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as conn:
            return [str(name) for (name,) in conn.execute(query)]
    except sqlite3.Error:  # it has no tables yet, or is no database: the deployer says so by name
        return []
