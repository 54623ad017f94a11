"""Messages of `registry`: a staged image gets its permanent place, and loses it when nobody holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from seedwork.messages import Command, Event, FailureEvent, UndoneEvent


class PublishImage(Command):
    """Give the image its permanent place, or (no `staged`) take a reference to one that is there."""

    app: str
    digest: str
    staged: str | None = None
    """The staging repository; null: the digest is already published."""
    commit: str | None = None
    """The tag."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "digest": "sha256:" + "cd" * 32,
        "staged": "staging/0192f0c1-2345-7abc-8def-0123456789ab",
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
    }


class ImagePublished(Event):
    """The manifest and every blob were read back."""

    repository: str
    """`<app>`: the image is `<repository>@<digest>`."""
    digest: str
    tags: tuple[str, ...] = ()
    size_bytes: int

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "repository": "shop",
        "digest": "sha256:" + "cd" * 32,
        "tags": ["9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"],
        "size_bytes": 1048576,
    }


class ImagePublishFailed(FailureEvent):
    """Which repository, and why."""


class UnpublishImage(Command):
    """Drop this saga's reference; the image goes with the last one."""


class ImageUnpublished(UndoneEvent):
    """The reference is gone."""


class DropImages(Command):
    """The app was removed: drop all its references and images."""

    app: str

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop"}


class ImagesDropped(UndoneEvent):
    """Nothing of the app is left in the image store."""


class DropImagesFailed(FailureEvent):
    """Why images could not be dropped."""
