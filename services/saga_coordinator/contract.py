"""Messages of `saga_coordinator`: how a saga ended."""

from collections.abc import Mapping
from typing import Any, ClassVar

from seedwork.messages import Event


class DeploymentSucceeded(Event):
    """The saga's last step is done."""

    app: str
    saga: str
    """The definition's name: `deploy`, `release` or `remove`."""
    commit: str | None = None
    kind: str | None = None
    """Of a `release` saga: `rollback`, `config`, `scale` or `restart`."""
    unchanged: bool = False
    """True: the current release has this image, config and formation already, so no instance was touched."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "saga": "deploy"}


class DeploymentFailed(Event):
    """The saga was undone."""

    app: str
    saga: str
    commit: str | None = None
    reason: str
    """`failed`, `timed_out`, `cancelled` or `superseded`."""
    step: str | None = None
    """The step that failed, where one did."""
    message: str = ""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"app": "shop", "saga": "deploy", "reason": "failed", "step": "build"}
