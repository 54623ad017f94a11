"""Which bus a service uses, by its settings."""

from collections.abc import Callable, Iterable

from seedwork.adapters.in_process import InProcessBus
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.bus import Bus
from seedwork.chassis.settings import ServiceSettings
from seedwork.extras import need_extra
from seedwork.messages import Message


def bus_of(settings: ServiceSettings, types: Callable[[], Iterable[type[Message]]]) -> Bus:
    """A bus that is not connected yet.

    Args:
        settings: `bus` and `pulsar_…`.
        types: What the service sends, asked when the bus is opened.
    """
    if settings.bus == "in-process":
        return InProcessBus()
    need_extra("pulsar", "pulsar", "fastavro", what="The client of Apache Pulsar")
    from seedwork.adapters.pulsar import PulsarBus  # with fastavro, which a laptop does not have

    return PulsarBus(pulsar_address(settings), types=types)


def pulsar_address(settings: ServiceSettings) -> PulsarAddress:
    """Where the broker is."""
    return PulsarAddress(
        url=settings.pulsar_url,
        admin_url=settings.pulsar_admin_url,
        tenant=settings.pulsar_tenant,
        namespace=settings.pulsar_namespace,
        token=settings.pulsar_token,
        tls_ca=settings.pulsar_tls_ca,
        client_log=settings.pulsar_client_log,
    )
