"""Messages of `deployer`: a published image in, a running, observed release out."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from seedwork.messages import Command, Event, FailureEvent, UndoneEvent

ReleaseKind = Literal["deploy", "rollback", "config", "scale", "restart", "rebase"]


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
    observed: bool = False
    """True: an `ObserveRelease` follows, so the instances of the release before keep running."""
    watched_digest: str | None = None
    """See `SourceFetched.watched_digest`: with an equal image, a change of it is still a change."""

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
    unchanged: bool = False
    """True: image, config and formation equal those of the current release `number`; no instance was touched."""
    first_answer_ms: int | None = None
    """Milliseconds from the start of the first `web` instance to its first answer; null: no `web` instance started."""

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


class ObserveRelease(Command):
    """Observe the release that has the traffic; at the end stop the instances of the release before."""

    app: str

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop"}


class ReleaseObserved(Event):
    """The release passed its observation, and the release before has stopped."""

    number: int
    observed_s: float
    """Length of the window in seconds; 0: off."""
    ended_early: str = ""
    """Why the window was shorter than configured; empty: it was not."""
    cut_requests: int = 0
    """Requests to the release before that were still open when its drain time was over."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"number": 1, "observed_s": 10.0}


class ReleaseObserveFailed(FailureEvent):
    """An instance exited, a liveness check failed, or 5xx answers exceeded the threshold during the window."""


class StopObserving(Command):
    """Undo of the observation: end it, so that it stops nothing any more."""


class ObservationStopped(UndoneEvent):
    """The observation has ended; instances are as they were."""


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


class RebaseRequested(Event):
    """A user requested the current release on a newer run image. Starts a `rebase` saga."""

    app: str
    repository: str
    """In the image store: the image of the current release is `<repository>@<digest>`."""
    digest: str
    commit: str | None = None
    requested_by: str = ""
    """The token's name."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "repository": "shop", "digest": "sha256:" + "cd" * 32}


class DriftDetected(Event):
    """What runs differs from what the release wants."""

    app: str
    number: int | None = None
    """Of the release."""
    what: str
    """One sentence for people."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "number": 1, "what": "the container of web.1 is gone"}


class DriftRepaired(Event):
    """A difference that was detected before is repaired."""

    app: str
    number: int | None = None
    what: str

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "number": 1, "what": "the container of web.1 is gone"}


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
