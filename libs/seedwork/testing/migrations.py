"""Whether a service's migrations make the tables that its code expects."""

from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Connection, MetaData

from seedwork.chassis.migrate import upgrade
from seedwork.unit_of_work import opened


async def assert_migrations_match(metadata: MetaData, migrations: Path, *, url: str | None = None) -> None:
    """Run all migrations on an empty database and compare: tables, columns, types, nullability, indexes.

    Args:
        metadata: The tables that the code expects.
        migrations: The service's folder.
        url: Of the empty database; a SQLite file, if not given.

    Raises:
        AssertionError: They differ; the text lists each difference.
    """
    with TemporaryDirectory() as folder:
        async with opened(url or f"sqlite+aiosqlite:///{folder}/migrated.db") as db:
            await upgrade(db, migrations)
            differences = await db.read(lambda conn: conn.run_sync(_compare, metadata))
    if differences:
        raise AssertionError("migrations and models differ:\n" + "\n".join(differences))


def _compare(connection: Connection, metadata: MetaData) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [repr(each) for each in compare_metadata(context, metadata)]
