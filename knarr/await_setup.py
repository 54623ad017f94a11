"""`python -m knarr.await_setup SERVICE`: wait until a service finds its schema and its subscriptions.

For where nobody else puts the services behind the jobs that set things up, such as in a cluster: started too early, a
service would end, and be started again after ever longer pauses. Says why it waits whenever that changes; ends with 0
when `knarr db upgrade` and `knarr bus setup` of this version have done their part, and never by itself otherwise.
"""

import asyncio
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from knarr.buses import plan
from knarr.databases import migrations_of
from knarr.up import settings_class
from seedwork.chassis import migrate
from seedwork.chassis.buses import pulsar_address
from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings, misconfigured
from seedwork.errors import KnarrError
from seedwork.messages import Message
from seedwork.unit_of_work import Database

_PAUSE_S = 3.0


async def wait(service: str, settings: ServiceSettings) -> None:
    """Return when everything is there."""
    needed = plan().subscriptions if settings.bus == "pulsar" else {}
    told = ""
    while why := await lacking(service, settings, needed.get(service, ())):
        if why != told:
            sys.stdout.write(f"waiting: {why}\n")
            sys.stdout.flush()
            told = why
        await asyncio.sleep(_PAUSE_S)


async def lacking(service: str, settings: ServiceSettings, types: Sequence[type[Message]]) -> str:
    """What is not there yet, for people; empty: nothing.

    Args:
        service: Whose database and subscriptions.
        settings: Its settings.
        types: The messages that it takes from a broker.
    """
    try:
        await _look_at_database(service, settings)
        if types:
            from seedwork.adapters.pulsar_admin import lacking_of

            return await lacking_of(pulsar_address(settings), service, types)
    except KnarrError as error:
        return error.message
    return ""


async def _look_at_database(service: str, settings: ServiceSettings) -> None:
    db = Database(settings.database_url_of(service), tls_ca=settings.database_tls_ca)
    if db.sole_process:
        return  # a file, which the service makes itself
    await db.open()
    try:
        await migrate.prepare(db, migrations_of(service), service)
    finally:
        await db.close()


def main() -> None:
    """The command line."""
    service = sys.argv[-1]
    if len(sys.argv) != 2 or service not in SERVICE_PORTS:
        sys.exit(f"usage: python -m knarr.await_setup {'|'.join(SERVICE_PORTS)}")
    try:
        asyncio.run(wait(service, settings_class(service)()))
    except ValidationError as error:
        sys.exit(misconfigured(error).message)
    except KnarrError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
