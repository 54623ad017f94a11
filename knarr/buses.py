"""`knarr bus …`: what Pulsar must have before the services start, and the messages that none of them could read."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from knarr.home import Home
from knarr.up import settings_class
from seedwork.chassis.buses import pulsar_address
from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings
from seedwork.errors import Misconfigured
from seedwork.messages import Message

if TYPE_CHECKING:
    from seedwork.adapters.pulsar_admin import Letter, Plan
    from seedwork.chassis.service import Service


async def set_up(home: Home, *, partitions: int) -> Sequence[str]:
    """Make topics and subscriptions; what was made. Nothing, where the bus is in process.

    Raises:
        Misconfigured: The broker refuses something; the text says what.
        Unavailable: The broker does not answer.
    """
    settings = ServiceSettings(home=home.path)
    if settings.bus == "in-process":
        return []
    from seedwork.adapters.pulsar_admin import set_up

    return await set_up(pulsar_address(settings), plan(partitions))


async def letters(home: Home) -> "Sequence[Letter]":
    """Messages on the bus that no service could read.

    Raises:
        Misconfigured: The bus is in process, where there are none.
    """
    from seedwork.adapters.pulsar_admin import Letters

    return await Letters(pulsar_address(_on_pulsar(home))).show()


async def resend(home: Home, message_id: str) -> "Letter":
    """Put it on its topic again.

    Raises:
        NotFound: There is no such message.
        Conflict: It cannot be sent as it is.
    """
    from seedwork.adapters.pulsar_admin import Letters

    return await Letters(pulsar_address(_on_pulsar(home))).resend(message_id)


def plan(partitions: int = 1) -> "Plan":
    """What the six services say that they take and tell."""
    from seedwork.adapters.pulsar_admin import Plan

    types: set[type[Message]] = set()
    subscriptions: dict[str, Sequence[type[Message]]] = {}
    for service in _wired().values():
        types.update(service.message_types())
        subscriptions.update(service.subscriptions())
    return Plan(types=sorted(types, key=lambda each: each.__name__), subscriptions=subscriptions, partitions=partitions)


def _wired() -> "Mapping[str, Service]":
    """The services as they are put together, without being started; what they write at that is thrown away."""
    with TemporaryDirectory() as folder:
        return {
            name: importlib.import_module(f"services.{name}.app")
            .create_app(settings_class(name)(home=Path(folder), bus="in-process"))
            .state.service
            for name in SERVICE_PORTS
        }


def _on_pulsar(home: Home) -> ServiceSettings:
    settings = ServiceSettings(home=home.path)
    if settings.bus != "pulsar":
        raise Misconfigured(
            "The bus is in process, which keeps no messages",
            todo="Set KNARR_BUS=pulsar and KNARR_PULSAR_…, or look at `knarr dead-letters`.",
        )
    return settings
