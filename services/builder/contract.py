"""Messages of `builder`: an archive in, a staged image out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Command, Event, FailureEvent, Payload, UndoneEvent
from services.source.contract import AppDescription


class BuildImage(Command):
    """Build the archive into an image under `staging/<app_id>`."""

    app: str
    commit: str | None = None
    source_digest: str
    description: AppDescription
    builder: Literal["layers", "buildx", "buildpacks"] | None = None
    """Which builder; null: the one of the service's settings."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
        "source_digest": "sha256:" + "ab" * 32,
        "description": {"runtime": {"kind": "python", "version": "3.11"}, "processes": {"web": ["python", "app.py"]}},
    }


class BuiltLayer(Payload):
    """One layer of the image."""

    digest: str
    size_bytes: int
    cached: bool


class ImageBuilt(Event):
    """The image is staged and complete."""

    repository: str
    """`staging/<app_id>` in the image store."""
    digest: str
    """`sha256:…` of the manifest."""
    layers: tuple[BuiltLayer, ...] = ()

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "repository": "staging/0192f0c1-2345-7abc-8def-0123456789ab",
        "digest": "sha256:" + "cd" * 32,
    }


class ImageBuildFailed(FailureEvent):
    """The last lines of the log are in `log_tail`; the whole log is at `GET /builds/{saga_id}/log`."""


class RebaseImage(Command):
    """Put the app's layers of an image that buildpacks built onto the current run image. No source is read."""

    app: str
    repository: str
    """In the image store: the image is `<repository>@<digest>`."""
    digest: str
    commit: str | None = None
    """What the image was built from; the answer repeats it."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "repository": "shop",
        "digest": "sha256:" + "cd" * 32,
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
    }


class ImageRebased(Event):
    """The image on the current run image is staged and complete."""

    repository: str
    """`staging/<app_id>` in the image store."""
    digest: str
    """`sha256:…` of the manifest."""
    commit: str | None = None
    run_image: str
    """Name of the run image."""
    unchanged: bool = False
    """True: the image stands on this run image already; `digest` is its own."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "repository": "staging/0192f0c1-2345-7abc-8def-0123456789ab",
        "digest": "sha256:" + "cd" * 32,
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
        "run_image": "heroku/heroku:24",
    }


class DiscardBuild(Command):
    """Stop the build or the rebase, drop the staged image; the log stays."""


class BuildDiscarded(UndoneEvent):
    """The staged image is gone."""
