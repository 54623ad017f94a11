"""The dummy service's messages."""

from collections.abc import Mapping
from typing import Any, ClassVar

from seedwork.messages import Command, Event, FailureEvent


class MakeThing(Command):
    """Make something of that size."""

    size: int
    app: str = ""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"size": 1, "app": "shop"}


class ThingMade(Event):
    """It is there."""

    size: int

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"size": 1}


class ThingFailed(FailureEvent):
    """It is not."""


class ThingWanted(Event):
    """Somebody else tells this one."""
