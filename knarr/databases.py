"""`knarr db upgrade`: each service's schema and user (on MySQL), then its migrations; before the services start."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from knarr.complete import refuse_incomplete
from knarr.home import Home
from knarr.up import settings_class
from seedwork import tls
from seedwork.adapters.mysql import TLS_SETTING, make_schema, why_untrusted
from seedwork.chassis.migrate import revisions, upgrade
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import InvalidInput, Misconfigured, Unavailable
from seedwork.unit_of_work import Database


async def upgrade_all(home: Home, services: Sequence[str]) -> Mapping[str, str]:
    """Upgrade these; the revision of each.

    Raises:
        InvalidInput: There is no such service.
        Misconfigured: A database is newer than this version of knarr, its server is not trusted, or the home lost a
            file.
        Unavailable: A database does not answer.
    """
    unknown = sorted(set(services) - set(SERVICE_PORTS))
    if unknown:
        raise InvalidInput(
            f"No service is called {unknown[0]!r}", todo=f"Known: {', '.join(SERVICE_PORTS)}.", code="usage"
        )
    all_settings = {name: settings_class(name)(home=home.path) for name in services}
    refuse_incomplete(home, all_settings)
    done = {}
    for name, settings in all_settings.items():
        migrations = migrations_of(name)
        db = Database(settings.database_url_of(name), tls_ca=settings.database_tls_ca)
        if db.is_sqlite:
            settings.home_of(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        elif settings.database_admin_url is not None:
            await _make_schema(db, make_url(settings.database_admin_url.get_secret_value()))
        await db.open()
        try:
            await upgrade(db, migrations)
        finally:
            await db.close()
        done[name] = revisions(migrations)[0]
    return done


async def _make_schema(db: Database, admin: URL) -> None:
    what = f"The schema {db.url.database!r} could not be made"
    try:
        await make_schema(db.url, admin, tls_ca=db.tls_ca)
    except DBAPIError as error:
        if why := why_untrusted(error):
            raise Misconfigured(what, why=why, todo=tls.what_to_do(TLS_SETTING)) from error
        raise Unavailable(
            what,
            why=str(error.orig),
            todo="Look at KNARR_DATABASE_ADMIN_URL, and whether the server answers.",
        ) from error


def migrations_of(service: str) -> Path:
    """The service's migrations folder."""
    package = importlib.import_module(f"services.{service}")
    return Path(next(iter(package.__path__))) / "migrations"
