"""Messages of `webhook`: what people and Git hosts ask for."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Event
from services.source.contract import BuildSettings

Trigger = Literal["push", "upload", "api", "poll", "rollback", "config", "scale", "restart", "retry"]

_APP: Mapping[str, Any] = {
    "app": "shop",
    "repository": "acme/shop",
    "clone_url": "https://github.com/acme/shop.git",
    "ref": "refs/heads/main",
    "root": ".",
}


class AppCreated(Event):
    """A new app; its identity is the envelope's `appid`."""

    app: str
    repository: str | None = None
    clone_url: str | None = None
    ref: str = "refs/heads/main"
    root: str = "."
    settings: BuildSettings = BuildSettings()
    observe_s: float | None = None
    """Length of the `observe` step in seconds; 0: off; null: the platform's default."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = _APP


class AppChanged(Event):
    """The app as it is now."""

    app: str
    repository: str | None = None
    clone_url: str | None = None
    ref: str = "refs/heads/main"
    root: str = "."
    settings: BuildSettings = BuildSettings()
    observe_s: float | None = None
    """Length of the `observe` step in seconds; 0: off; null: the platform's default."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = _APP


class AppRemovalRequested(Event):
    """Somebody removed the app: starts a `remove` saga."""

    app: str
    requested_by: str = ""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop"}


class DeploymentRequested(Event):
    """A push, an upload or a person: starts a `deploy` saga whose id is the envelope's `correlationid`."""

    app: str
    repository: str | None = None
    clone_url: str | None = None
    ref: str | None = None
    commit: str | None = None
    source_digest: str | None = None
    root: str = "."
    trigger: Trigger = "push"
    number: int
    """Order per app, given when it was accepted."""
    parent_id: str | None = None
    """The saga that this one repeats."""
    force: bool = False
    requested_by: str = ""
    settings: BuildSettings = BuildSettings()

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **_APP,
        "commit": "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d",
        "trigger": "push",
        "number": 1,
    }
