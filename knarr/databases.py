"""`knarr db upgrade`: each service's migrations, before the services start."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from knarr.home import Home
from knarr.up import settings_class
from seedwork.chassis.migrate import revisions, upgrade
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import InvalidInput
from seedwork.unit_of_work import Database


async def upgrade_all(home: Home, services: Sequence[str]) -> Mapping[str, str]:
    """Upgrade these; the revision of each.

    Raises:
        InvalidInput: There is no such service.
        Misconfigured: A database is newer than this version of knarr.
        Unavailable: A database does not answer.
    """
    done = {}
    for name in services:
        if name not in SERVICE_PORTS:
            raise InvalidInput(
                f"No service is called {name!r}", todo=f"Known: {', '.join(SERVICE_PORTS)}.", code="usage"
            )
        settings = settings_class(name)(home=home.path)
        migrations = migrations_of(name)
        settings.home_of(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        db = Database(settings.database_url_of(name))
        await db.open()
        try:
            await upgrade(db, migrations)
        finally:
            await db.close()
        done[name] = revisions(migrations)[0]
    return done


def migrations_of(service: str) -> Path:
    """The service's migrations folder."""
    package = importlib.import_module(f"services.{service}")
    return Path(next(iter(package.__path__))) / "migrations"
