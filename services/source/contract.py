"""Messages of `source`: the exact commit in, an archive by digest and the app's description out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Command, Event, FailureEvent, Payload, UndoneEvent


class Runtime(Payload):
    """What the app is written for."""

    kind: Literal["python", "node", "static", "procfile", "dockerfile"]
    version: str | None = None
    """As asked for (`3.11`, `20`); null: what the builder has."""


class AddOn(Payload):
    """A service that the app asks for."""

    kind: Literal["mongodb", "postgres", "mysql", "redis"]
    version: str | None = None


class EnvVar(Payload):
    """A config var that `app.json` declares; a default value, never a secret."""

    value: str | None = None
    generate: bool = False
    """True: the deployer makes a random secret once (`"generator": "secret"`)."""
    required: bool = True


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
    """`/health`; null: a TCP connection is enough."""
    addons: tuple[AddOn, ...] = ()
    dockerfile: str | None = None
    """Its path inside the archive, where the app has one."""


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
