"""The docker command line: a build's folder in, an image in the registry out, all of it ended when the caller is.

Every command runs in the builder's sandbox: no shell, a clean environment, a session of its own, killed as a whole. An
engine ends a build whose client is gone, so that no step of it goes on behind our back. Only to forget an image, an
engine on this machine is asked by its socket (https://docs.docker.com/reference/api/engine/, "Remove an image").

Each build has a private configuration folder (`DOCKER_CONFIG`, mode 0700): the platform user's logins, and our own for
the registry. It goes with the build's folder; no password is in an argument or in a log. An app's own Dockerfile is
built without them (see `logins`): a second command, which runs nothing of the app, pushes or stores the image.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx2
import orjson
from pydantic import SecretStr

from seedwork.errors import Unavailable
from services.builder.adapters.buildx.faults import push_failed
from services.builder.adapters.buildx.image import LABEL_BUILD
from services.builder.adapters.buildx.logins import docker_config
from services.builder.adapters.buildx.progress import Progress
from services.builder.adapters.layers.limits import private_bytes
from services.builder.adapters.layers.sandbox import Sandbox, ToolFailed
from services.builder.ports import BuildOutput

SHORT_S = 60.0
"""For commands that only ask or untag."""
_PASSED = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_API_VERSION")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_REMOTE = "knarr"
_USUAL = "unix:///var/run/docker.sock"
_PUSHED = re.compile(rb"digest: (sha256:[0-9a-f]{64}) size: ")
_OF_BUILDKIT = re.compile(r"BUILDKIT_", re.IGNORECASE)
"""Build arguments that decide how BuildKit builds; an app that sets them would leave its cache namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where and how to build."""

    registry: str
    """`host[:port][/prefix]` as the engine reaches our image store."""
    insecure: bool = False
    """It is plain http."""
    user: str | None = None
    password: SecretStr | None = None
    builder: str | None = None
    """A builder that buildx of the platform's user knows."""
    buildkit_host: str | None = None
    """`tcp://…`: a BuildKit without a Docker engine."""
    cache_in_registry: bool = False
    cgroup_parent: str | None = None
    """Under which the engine puts a build's steps, whose limits then hold for them."""
    memory_bytes: int = 2048 * 1024 * 1024
    network: str = "default"
    """Of a build's steps: `default` or `none`."""
    dockerfile_registries: tuple[str, ...] = ()
    """Hosts whose logins an app's own Dockerfile may use."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """The platform's: where its docker configuration and the engine are."""


RESERVED = frozenset(
    {"PATH", "HOME", "TMPDIR", "LANG", "CI", "NO_COLOR", "KNARR_SAGA_ID", "KNARR_BUILD_HOME", "DOCKER_CONFIG"}
)
"""Names that steps and the docker command line get from the platform, whatever the app's config vars are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """What an app gives its build besides its files."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Build-time variables: a secret mount for each, by its name."""
    arguments: Sequence[str] = ()
    """Names of variables that are build arguments too. An image's history shows those."""
    target: str | None = None
    """Stage that is built; None: the last one."""
    own_dockerfile: bool = False
    """The app wrote the Dockerfile: it gets no login and no variable of the platform."""
    cache_namespace: str = ""
    """In which the ids of the Dockerfile's cache mounts are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Where the image of a build is."""

    digest: str | None = None
    """Of the manifest that was pushed."""
    archive: Path | None = None
    """An OCI archive, where the build had no login to push with."""


class Engine:
    """Builds on one engine.

    Args:
        home: Holds what buildx keeps between builds.
        sandbox: Runs the commands.
        options: Where and how.
    """

    def __init__(self, home: Path, *, sandbox: Sandbox, options: EngineOptions) -> None:
        self._buildx_home = home / "buildx"
        self._sandbox = sandbox
        self._options = options
        self._buildx: Sequence[str] = ()
        self._driver = ""
        self._asking = asyncio.Lock()

    def secrets(self) -> tuple[str, ...]:
        """Names of what steps may have mounted: what build tools may see of our environment, but no paths."""
        passed = self._sandbox.environment_passed()
        return tuple(
            sorted(
                name
                for name, value in passed.items()
                if not value.startswith(("/", "file:")) and name.upper() not in _PROXIES
            )
        )

    def image(self, repository: str, tag: str) -> str:
        """The image's name for the engine."""
        return f"{self._options.registry}/{repository}:{tag}"

    async def build(
        self,
        context: Path,
        dockerfile: Path,
        *,
        saga_id: str,
        app_id: str,
        image: str,
        scratch: Path,
        progress: Progress,
        inputs: BuildInputs | None = None,
    ) -> Made:
        """Build and push, or export where the Dockerfile is the app's and the registry wants a login.

        Raises:
            ToolFailed: buildx ended with an error; `progress` has what it said.
            Unavailable: It did not say what it pushed; the engine could not push.
            NotAllowed: The registry does not take the image.
        """
        inputs = inputs or BuildInputs()
        environment = await self._environment(saga_id, scratch, own_dockerfile=inputs.own_dockerfile)
        driver = await self._find_out(environment, progress)
        told = scratch / "pushed.json"
        archive = scratch / "image.tar"
        how = self._way_out(driver, own_dockerfile=inputs.own_dockerfile)
        argv = [
            *self._on_builder("build"),
            "--progress=rawjson",
            f"--file={dockerfile}",
            f"--metadata-file={told}",
            f"--tag={image}",
            f"--label={LABEL_BUILD}={saga_id}",
            f"--network={self._options.network}",
            "--ulimit=data={0}:{0}".format(private_bytes(self._options.memory_bytes)),
            *([f"--cgroup-parent={self._options.cgroup_parent}"] if self._options.cgroup_parent else []),
            *await asyncio.to_thread(self._given, inputs, scratch, environment),
            *(f"--build-arg={name}" for name in environment if name.upper() in _PROXIES),
            *([f"--build-arg=BUILDKIT_CACHE_MOUNT_NS={inputs.cache_namespace}"] if inputs.cache_namespace else []),
            *self._output(how, driver, app_id, archive),
            str(context),
        ]
        try:
            await self._sandbox.run(argv, cwd=scratch, env=environment, output=progress)
        finally:
            await asyncio.to_thread(progress.finish)
        if how == "export":
            return Made(archive=archive)
        if how == "push-apart":
            return Made(digest=await self._push(image, saga_id, scratch))
        return Made(digest=await asyncio.to_thread(_pushed_digest, told))

    async def _push(self, image: str, saga_id: str, scratch: Path) -> str:
        """Push what the engine has built; the digest of its manifest there."""
        environment = await self._environment(saga_id, scratch)
        kept = _Kept()
        try:
            await self._sandbox.run(["docker", "push", image], cwd=scratch, env=environment, output=kept)
        except ToolFailed as error:
            said = kept.text.decode(errors="replace").strip().rpartition("\n")[2]
            raise push_failed(said or error.ending, registry=self._options.registry) from error
        if found := _PUSHED.search(kept.text):
            return found[1].decode()
        raise Unavailable("The engine did not say which image it pushed", todo="It is tried again.")

    async def forget(self, image: str, *, saga_id: str, scratch: Path) -> None:
        """Let the engine forget the image's name; its layers stay as long as its build cache wants them.

        Raises:
            Unavailable: The engine did not do it.
        """
        environment = await self._environment(saga_id, scratch)
        try:
            if await self._find_out(environment, _Kept()) != "docker":
                return  # others keep no image
            if socket := _socket(environment):
                await _untag(socket, image)
            else:
                await self._short(["docker", "image", "rm", image], environment, scratch, _Kept())
        except ToolFailed as error:
            said = b" ".join(error.lines).decode(errors="replace").strip()
            if "No such image" not in said:
                raise _keeps(image, said or error.ending) from error

    def _given(self, inputs: BuildInputs, scratch: Path, environment: dict[str, str]) -> list[str]:
        """Options for secrets, build arguments and the target; no value is in an argument of the command.

        Secrets of the app are files of the build's private folder. Build arguments are variables of the command.
        """
        variables = {name: value for name, value in inputs.variables.items() if name not in RESERVED}
        platforms = () if inputs.own_dockerfile else self.secrets()
        folder = scratch / "variables"
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, value in variables.items():
            path = folder / name
            path.touch(mode=0o600)
            path.write_bytes(value.encode())
        arguments = [
            name
            for name in inputs.arguments
            if name in variables and name not in environment and not _OF_BUILDKIT.match(name)
        ]
        environment.update({name: variables[name] for name in arguments})
        return [
            *(f"--secret=id={name},env={name}" for name in platforms if name not in variables),
            *(f"--secret=id={name},src={folder / name}" for name in sorted(variables)),
            *(f"--build-arg={name}" for name in arguments),
            *([f"--target={inputs.target}"] if inputs.target else []),
        ]

    # --- how --------------------------------------------------------------------------------------------------------

    def _on_builder(self, verb: str) -> list[str]:
        name = _REMOTE if self._options.buildkit_host else self._options.builder
        return [*self._buildx, verb, *([f"--builder={name}"] if name else [])]

    def _way_out(self, driver: str, *, own_dockerfile: bool) -> Literal["push", "push-apart", "export"]:
        """How the image leaves the build; one that has no login for the registry does not push by itself."""
        if not own_dockerfile:
            return "push"
        if driver == "docker":
            return "push-apart"
        host = self._options.registry.partition("/")[0]
        open_to_all = self._options.user is None or host in self._options.dockerfile_registries
        return "push" if open_to_all else "export"

    def _output(self, how: str, driver: str, app_id: str, archive: Path) -> list[str]:
        """The engine's own builder pushes through the engine; every other one by itself, and says what it makes."""
        if driver == "docker":
            return ["--push"] if how == "push" else []
        attestations = ["--provenance=false", "--sbom=false"]
        if how == "export":
            return [*attestations, f"--output=type=oci,dest={archive}"]
        insecure = ",registry.insecure=true" if self._options.insecure else ""
        argv = [*attestations, f"--output=type=image,push=true,oci-mediatypes=true{insecure}"]
        if self._options.cache_in_registry:
            cache = f"type=registry,ref={self._options.registry}/cache/{app_id}{insecure}"
            argv += [f"--cache-from={cache}", f"--cache-to={cache},mode=max,ignore-error=true"]
        return argv

    async def _find_out(self, environment: Mapping[str, str], output: BuildOutput) -> str:
        """The driver. `docker`: the engine's own BuildKit; `remote`, `docker-container` …: another one. Asked once."""
        async with self._asking:
            if not self._driver:
                self._buildx = await self._ask_where(environment)
                self._driver = await self._ask_driver(environment, output)
        return self._driver

    async def _ask_where(self, environment: Mapping[str, str]) -> Sequence[str]:
        """The plugin itself, without the `docker` before it, which costs a build 60 ms; else by way of it."""
        kept = _Kept()
        try:
            argv = ["docker", "info", "--format={{json .ClientInfo.Plugins}}"]
            await self._short(argv, environment, Path(environment["HOME"]), kept)
            paths = {each["Name"]: each["Path"] for each in orjson.loads(kept.text)}
            return [paths["buildx"]]
        except (ToolFailed, orjson.JSONDecodeError, TypeError, KeyError):
            return ["docker", "buildx"]

    async def _ask_driver(self, environment: Mapping[str, str], output: BuildOutput) -> str:
        if self._options.buildkit_host:
            await self._know_remote(environment, self._options.buildkit_host)
        kept = _Kept()
        try:
            await self._short(self._on_builder("inspect"), environment, Path(environment["HOME"]), kept)
        except ToolFailed:
            await asyncio.to_thread(output.write, bytes(kept.text))
            raise
        lines = [line.split() for line in kept.text.decode(errors="replace").splitlines()]
        return next((line[1] for line in lines if len(line) == 2 and line[0] == "Driver:"), "docker")

    async def _know_remote(self, environment: Mapping[str, str], host: str) -> None:
        create = [*self._buildx, "create", f"--name={_REMOTE}", "--driver=remote", host]
        await asyncio.to_thread(shutil.rmtree, self._buildx_home, ignore_errors=True)  # the host may be another now
        await asyncio.to_thread(self._buildx_home.mkdir, mode=0o700, parents=True)
        await self._short(create, environment, Path(environment["HOME"]), _Kept())

    async def _short(self, argv: Sequence[str], environment: Mapping[str, str], cwd: Path, output: BuildOutput) -> None:
        try:
            async with asyncio.timeout(SHORT_S) as limit:
                await self._sandbox.run(list(argv), cwd=cwd, env=environment, output=output)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(
                "The engine that builds did not answer",
                why=f"`{' '.join(argv[:3])}` took longer than {SHORT_S:g} s",
                todo="Is it running, and reachable from here?",
            ) from error

    async def _environment(self, saga_id: str, scratch: Path, *, own_dockerfile: bool = False) -> dict[str, str]:
        return await asyncio.to_thread(self._make_environment, saga_id, scratch, own_dockerfile)

    def _make_environment(self, saga_id: str, scratch: Path, own_dockerfile: bool) -> dict[str, str]:
        environ = self._options.environ
        platform = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/")) / ".docker")
        config = scratch / ("docker-of-the-app" if own_dockerfile else "docker")
        config.mkdir(mode=0o700, exist_ok=True)
        path = config / "config.json"
        path.touch(mode=0o600)
        logins = docker_config(
            platform,
            registry=self._options.registry,
            user=self._options.user,
            password=self._options.password,
            only=self._options.dockerfile_registries if own_dockerfile else None,
        )
        path.write_bytes(orjson.dumps(logins))
        known_builders = self._buildx_home if not self._options.builder else platform / "buildx"
        ours = self._sandbox.environment(saga_id, scratch)
        del ours["SOURCE_DATE_EPOCH"]  # buildx passes it on, and then no step says when it ran: see `built_layers`
        return {
            **ours,
            **{name: environ[name] for name in _PASSED if name in environ},
            "DOCKER_CONFIG": str(config),
            "BUILDX_CONFIG": str(known_builders),
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
            "BUILDX_METADATA_PROVENANCE": "disabled",
        }


@dataclass
class _Kept:
    """A `BuildOutput` for what is not for people."""

    text: bytearray = field(default_factory=bytearray)

    def write(self, text: bytes) -> None:
        """Keep it."""
        self.text += text

    def say(self, line: str) -> None:
        """Keep it."""
        self.text += line.encode() + b"\n"

    def write_unfinished(self, text: bytes) -> int:
        """Keep it."""
        self.write(text)
        return len(text)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self.text.decode(errors="replace").splitlines()[-lines:])


def _socket(environment: Mapping[str, str]) -> str | None:
    """Of an engine on this machine, where the `docker` command would find it."""
    scheme, _, path = environment.get("DOCKER_HOST", _USUAL).partition("://")
    return path if scheme == "unix" else None


async def _untag(socket: str, image: str) -> None:
    """What `docker image rm` does, without a program that starts for it while the image is stored."""
    transport = httpx2.AsyncHTTPTransport(uds=socket, verify=False)  # plain HTTP: there is nobody to verify
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=SHORT_S, trust_env=False) as client:
            answer = await client.delete(f"http://engine/images/{image}")
    except httpx2.HTTPError as error:
        raise _keeps(image, str(error) or type(error).__name__) from error
    if not answer.is_success and answer.status_code != httpx2.codes.NOT_FOUND:
        raise _keeps(image, answer.text[:500].strip())


def _keeps(image: str, why: str) -> Unavailable:
    return Unavailable(f"The engine did not let go of {image}", why=why, todo="Is it running, and reachable from here?")


def _pushed_digest(told: Path) -> str:
    try:
        return str(orjson.loads(told.read_bytes())["containerimage.digest"])
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Unavailable(
            "buildx did not say which image it pushed",
            why=f"{type(error).__name__}: {error}",
            todo="Is it 0.13 or newer?",
        ) from error
