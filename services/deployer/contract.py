"""Messages of `deployer`: a published image in, a running, observed release out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Command, Event, FailureEvent, UndoneEvent

ReleaseKind = Literal["deploy", "rollback", "config", "scale", "restart"]


class DeployRelease(Command):
    """Start the image with its config, observe it, move the traffic, stop what ran before."""

    app: str
    kind: ReleaseKind = "deploy"
    repository: str
    """In the image store: the image is `<repository>@<digest>`."""
    digest: str
    commit: str | None = None
    config_version: int | None = None
    """Null: the live one; before the first release the newest."""
    formation: Mapping[str, int] | None = None
    """Instances by process type; null: as live, before the first release as the image says."""
    rollback_to: int | None = None
    """The number of the release whose digest and config come back."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "repository": "shop",
        "digest": "sha256:" + "cd" * 32,
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
    }


class ReleaseDeployed(Event):
    """The running instances were observed with this digest, and the traffic is theirs."""

    number: int
    """Of the release, from 1 per app."""
    digest: str
    url: str
    config_version: int
    formation: Mapping[str, int]
    manifest_hash: str
    replaced: int | None = None
    """The release that was live before."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "number": 1,
        "digest": "sha256:" + "cd" * 32,
        "url": "http://127.0.0.1:8800/",
        "config_version": 1,
        "formation": {"web": 1},
        "manifest_hash": "sha256:" + "ef" * 32,
    }


class ReleaseDeployFailed(FailureEvent):
    """Why it does not run; what ran before still has the traffic."""


class RollBackRelease(Command):
    """Undo this saga's release: what ran before it serves again, then ours stops."""


class ReleaseRolledBack(UndoneEvent):
    """Nothing of this saga's release is left."""


class RetireApp(Command):
    """The app was removed: stop everything, drop route, config and releases."""

    app: str

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop"}


class AppRetired(UndoneEvent):
    """Nothing of the app runs or is routed."""


class RetireAppFailed(FailureEvent):
    """Why the app could not be retired."""


class ReleaseRequested(Event):
    """Somebody asked for a rollback, a config change, another formation or a restart: starts a `release` saga."""

    app: str
    kind: ReleaseKind
    digest: str
    commit: str | None = None
    config_version: int | None = None
    formation: Mapping[str, int] | None = None
    rollback_to: int | None = None
    requested_by: str = ""
    """The token's name."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "kind": "restart", "digest": "sha256:" + "cd" * 32}


class ReleaseRetired(Event):
    """Nobody can roll back to this release any more: its image is not held by it."""

    app: str
    number: int
    digest: str
    release_saga_id: str
    """The saga whose reference goes."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "app": "shop",
        "number": 1,
        "digest": "sha256:" + "cd" * 32,
        "release_saga_id": "0192f0c1-2345-7abc-8def-0123456789ab",
    }
