"""Messages of `source`: the exact commit in, an archive by digest and the app's description out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Command, Event, FailureEvent, Payload, UndoneEvent


class Runtime(Payload):
    """How the image is built, and the main language of the app."""

    kind: Literal["python", "node", "go", "static", "procfile", "dockerfile", "buildpacks"]
    version: str | None = None
    """Requested version in the syntax of the language (`3.11`, `>=3.12`, `^20.1`); null: the builder's default."""


class Packages(Payload):
    """How the packages of one language are installed. The builder executes this and detects nothing.

    All paths are relative to the app's root folder, with `/`.
    """

    language: Literal["python", "node", "go"]
    version: str | None = None
    """Requested version of the interpreter or toolchain; null: the builder's default."""
    version_file: str | None = None
    """File that requests the version (`.python-version`, `package.json`), or null."""
    tool: Literal["pip", "uv", "poetry", "pdm", "pipenv", "pylock", "npm", "pnpm", "yarn", "bun", "go"]
    """Tool that installs. `pip`: from `lock` or `manifests[0]`, a requirements file; `pylock`: from a PEP 751 file."""
    tool_version: str | None = None
    """Version of the tool that the project names (`packageManager`, `[tool.uv] required-version`), or null."""
    lock: str | None = None
    """Lock file that is installed frozen, or null: the tool resolves versions, and the log says so."""
    manifests: tuple[str, ...] = ()
    """Every file that decides what is installed, the lock file included: the key of the layer."""
    project: bool = False
    """True: the app itself is a package and is installed (Python)."""
    needs_source: bool = False
    """True: the installation reads more than `manifests` (a local dependency, an install script)."""
    include_dev: bool = False
    """True: development packages are part of the image, because the start command needs one of them."""
    groups: tuple[str, ...] = ()
    """Extras or dependency groups that are installed besides the main dependencies."""


class BuildStep(Payload):
    """A command that runs in the app's folder after the packages are installed, with development packages."""

    name: str
    """What the log calls it: `scripts.build of package.json`."""
    command: tuple[str, ...]
    language: Literal["python", "node", "go"]
    """Whose packages are on PATH."""
    env: Mapping[str, str] = {}
    caches: tuple[str, ...] = ()
    """Folders that are kept from one build of the app to the next, relative to the app's root (`.next/cache`)."""


class HealthCheck(Payload):
    """A check of a process (`healthchecks` of `app.json`). Without any, `web` must answer `GET /` with any status."""

    type: Literal["startup", "readiness", "liveness"] = "startup"
    name: str = ""
    path: str | None = None
    """Path of an HTTP check, which passes with a status from 200 to 399. Null and no other kind set: `/`."""
    port: int | None = None
    """TCP port; null: the value of PORT."""
    content: str | None = None
    """Text that the body of the answer must contain."""
    command: tuple[str, ...] | None = None
    """Argument list that is run in the environment of the instance; exit status 0 passes."""
    headers: Mapping[str, str] = {}
    """Request headers, `Host` included."""
    uptime_s: float | None = None
    """Time in seconds for which the process must run; passes when it is over. Null: another kind of check."""
    listening: bool = False
    """True: an accepted TCP connection passes; no HTTP request is sent."""
    attempts: int | None = None
    """Failed attempts until the check has failed; null: the platform's start timeout decides (startup), else 3."""
    timeout_s: float = 5.0
    """Time limit of one attempt in seconds."""
    wait_s: float = 5.0
    """Time between two attempts in seconds."""
    initial_delay_s: float = 0.0
    """Time before the first attempt in seconds."""


class AddOn(Payload):
    """A service that the app asks for."""

    kind: Literal["mongodb", "postgres", "mysql", "redis"]
    version: str | None = None


def is_platforms(name: str) -> bool:
    """Return whether an environment variable is the platform's, or steers how programs are loaded.

    A repository does not set such a variable: it would act on the platform's own programs that start the app.
    """
    return name == "PORT" or name.startswith(("KNARR_", "LD_", "DYLD_")) or name in _LOADERS


_LOADERS = frozenset({"PATH", "PYTHONHOME", "PYTHONSTARTUP", "GCONV_PATH", "GLIBC_TUNABLES", "BASH_ENV"})


class EnvVar(Payload):
    """A config var that `app.json` declares; a default value, never a secret."""

    value: str | None = None
    generate: bool = False
    """True: the deployer makes a random secret once (`"generator": "secret"`)."""
    required: bool = True


class Storage(Payload):
    """A folder that outlives releases (`storage` of `.cupaas.yml`)."""

    path: str
    """Absolute path that the app sees, for example `/data`."""
    size_bytes: int | None = None
    """Requested size; null: the platform's default."""


class Cron(Payload):
    """A command that runs on a schedule (`cron` of `app.json`)."""

    schedule: str
    """Five fields of cron(5), in UTC."""
    command: tuple[str, ...]


class BuildSettings(Payload):
    """Settings of an app that decide how it is built; stronger than what is detected. Null: detected."""

    builder: Literal["layers", "buildx", "buildpacks"] | None = None
    dockerfile: str | None = None
    """Path relative to the app's root."""
    docker_target: str | None = None
    docker_args: tuple[str, ...] = ()
    """Names of config vars that the Dockerfile gets as build arguments."""
    watch: tuple[str, ...] = ()
    """Patterns of paths, relative to the repository, whose change deploys the app beside changes under its root."""


class AppDescription(Payload):
    """What the repository says of the app, read and checked once (DESIGN §5)."""

    runtime: Runtime
    processes: Mapping[str, tuple[str, ...]] = {}
    """Argument lists by process type; a Procfile's line is `("/bin/sh", "-c", line)`."""
    release: tuple[str, ...] | None = None
    """Runs before traffic moves, at least once."""
    env: Mapping[str, EnvVar] = {}
    formation: Mapping[str, int] = {}
    """Instances by process type, where `app.json` says; else one `web` and no other."""
    health_path: str | None = None
    """Path of the first check of `web`. Superseded by `checks`."""
    addons: tuple[AddOn, ...] = ()
    dockerfile: str | None = None
    """Path of the Dockerfile inside the archive, or null."""
    docker_target: str | None = None
    """Stage of the Dockerfile that is built; null: the last one."""
    docker_args: tuple[str, ...] = ()
    """Names of config vars that the Dockerfile gets as build arguments."""
    checks: Mapping[str, tuple[HealthCheck, ...]] = {}
    """Health checks by process type."""
    port: int | None = None
    """Port on which `web` listens whatever PORT says (`port` in `.cupaas.yml`); null: PORT."""
    framework: str | None = None
    """What was recognised: `FastAPI`, `Next.js`."""
    packages: tuple[Packages, ...] = ()
    """One entry for each language, in the order in which they are installed."""
    build: tuple[BuildStep, ...] = ()
    """Commands after the installation, in their order."""
    output: str | None = None
    """Static sites: the folder that is served, relative to the app's root."""
    fallback: str | None = None
    """Static sites: the file that answers for paths without a file (single-page apps), relative to `output`."""
    storage: tuple[Storage, ...] = ()
    """Folders that outlive releases."""
    crons: tuple[Cron, ...] = ()
    """Commands that run on a schedule."""
    detected: tuple[str, ...] = ()
    """What was detected and from which file, one line each, for people."""
    notes: tuple[str, ...] = ()
    """What is passed over or not honoured, one line each: shown in the build log and by `knarr plan`."""


class FetchSource(Command):
    """Bring the exact commit (or a stored upload) and describe the app in it."""

    app: str
    repository: str | None = None
    clone_url: str | None = None
    ref: str | None = None
    commit: str | None = None
    """40 hex digits; null: an upload, or the ref's tip is asked for."""
    root: str = "."
    source_digest: str | None = None
    """`sha256:…` of an uploaded archive."""
    known_commits: Mapping[str, str] = {}
    """Commit by saga id: those that are live or waiting. An ancestor of one that is not the ref's tip is superseded."""
    force: bool = False
    """Deploy it even when it is older than what is live."""
    settings: BuildSettings = BuildSettings()

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "repository": "acme/shop",
        "clone_url": "https://github.com/acme/shop.git",
        "ref": "refs/heads/main",
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
    }


class SourceFetched(Event):
    """The archive is stored and can be read at `GET /sources/{digest}`."""

    digest: str
    """`sha256:…` of the uncompressed archive (a tar whose root is the app's `root` folder)."""
    size_bytes: int
    commit: str | None
    description: AppDescription
    watched_digest: str | None = None
    """`sha256:…` over the files that `watch` names; null: no pattern is set."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "digest": "sha256:" + "ab" * 32,
        "size_bytes": 10240,
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
        "description": {"runtime": {"kind": "python", "version": "3.11"}, "processes": {"web": ["python", "app.py"]}},
    }


class SourceFetchFailed(FailureEvent):
    """`superseded`: a newer commit is live or waiting (`superseded_by` names its saga); else why it cannot be had."""

    superseded_by: str | None = None


class DiscardSource(Command):
    """Drop this saga's reference; the bytes go with the last one."""


class SourceDiscarded(UndoneEvent):
    """The reference is gone."""
