"""Brings one service's database to the schema of its `migrations/` folder, with Alembic.

A database that is there already costs one query, and Alembic is not even imported. Otherwise the migrations run in a
thread, in one transaction where the database can do that (SQLite), one process at a time: whoever comes second finds
the work done.

A service with a SQLite file does this when it starts. On a server, where replicas start and stop all the time, one job
does it (`knarr db upgrade`) and services only look: they refuse to start on a schema that is not theirs (ADR 11). MySQL
commits each change of a table by itself, so a migration after the first should hold one; the first one is begun anew
where it was interrupted.

A service's `migrations/env.py` is two lines:

    from seedwork.chassis.migrate import run_env
    run_env(metadata)

and its first migration calls `kernel_v1(op)`, then makes its own tables.
"""

import asyncio
import re
import threading
from pathlib import Path

import structlog
from sqlalchemy import Connection, MetaData, inspect, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters import mysql
from seedwork.chassis.kernel_schema import kernel_v1
from seedwork.errors import Misconfigured, Unavailable
from seedwork.unit_of_work import Database, DatabaseUnavailable, DatabaseUntrusted

_LOCK_WAIT_S = 120
"""How long to wait for another replica's migrations; longer ones are run with `knarr db upgrade` before a roll-out."""

_REVISION = re.compile(r"""^(down_)?revision\b[^=\n]*=\s*(?:["']([^"']+)["']|None)""", re.MULTILINE)

__all__ = ["kernel_v1", "prepare", "revisions", "run_env", "upgrade"]

log = structlog.get_logger(__name__)

_one_at_a_time = threading.Lock()
"""Alembic keeps the running migration in module globals, and six services may start in one process."""


async def prepare(db: Database, migrations: Path, service: str) -> None:
    """What a service does when it starts: upgrade a file of its own, look at a schema on a server.

    Raises:
        Misconfigured: The schema is not the one that this version needs, or is not there, or the server is not
            trusted; the text says what to do.
        Unavailable: The database does not answer.
    """
    if db.sole_process:
        await upgrade(db, migrations)
        return
    head, _ = revisions(migrations)
    current = await _checked(db, migrations, service)
    if current != head:
        raise Misconfigured(
            f"The database of {service} is {f'at revision {current!r}' if current else 'empty'}",
            why=f"this version of knarr needs revision {head!r}, and services do not upgrade a server's schema",
            todo=f"Run `knarr db upgrade --service {service}` with the same KNARR_DATABASE_URL, then start it again.",
        )


async def upgrade(db: Database, migrations: Path) -> None:
    """Run the migrations that this database has not seen.

    Raises:
        Misconfigured: The database was written by a newer version, or the folder is not one line of migrations.
        Unavailable: The database does not answer, or another process did not finish its migrations.
    """
    head, _ = revisions(migrations)
    current = await _checked(db, migrations)
    if current == head:
        return
    log.info("upgrading the database", revision=current, to=head)
    await asyncio.to_thread(_upgrade_in_thread, db, migrations)


async def _checked(db: Database, migrations: Path, service: str = "the service") -> str | None:
    """The database's revision, one that this version knows; None: it is empty."""
    _, known = revisions(migrations)
    try:
        current = await db.read(_current)
    except DatabaseUntrusted as error:
        raise Misconfigured(f"The database of {service} is not used", why=error.why, todo=error.todo) from error
    except DatabaseUnavailable as error:
        if why := mysql.why_no_schema(error.__cause__):
            raise Misconfigured(
                f"The schema {db.url.database!r} of {service} cannot be used",
                why=why,
                todo="`knarr db upgrade` makes schemas and users where KNARR_DATABASE_ADMIN_URL names one who may.",
            ) from error
        raise
    except DatabaseError as error:
        if db.file is None:
            raise
        raise Misconfigured(
            f"The database {db.file} of {service} cannot be read",
            why=str(error.orig),
            todo="Restore it from the backup of the home (docs/operate.md, Back up)",
        ) from error
    if current is not None and current not in known:
        raise Misconfigured(
            f"The database is at revision {current!r}, which this version does not know",
            why="a newer version of knarr has upgraded it",
            todo="Install that version again, or restore the backup from before the upgrade.",
        )
    return current


def revisions(migrations: Path) -> tuple[str, frozenset[str]]:
    """The newest revision of that folder, and all of them.

    Raises:
        Misconfigured: There is none, or there are several newest ones.
    """
    known: set[str] = set()
    followed: set[str] = set()
    for file in sorted((migrations / "versions").glob("*.py")):
        for down, name in _REVISION.findall(file.read_text(encoding="utf-8")):
            if name:
                (followed if down else known).add(name)
    heads = known - followed
    if len(heads) != 1:
        raise Misconfigured(
            f"{migrations / 'versions'} must hold one line of migrations", why=f"its ends are {sorted(heads)}"
        )
    return heads.pop(), frozenset(known)


def run_env(metadata: MetaData) -> None:
    """What a service's `env.py` does: run on the connection that `upgrade` brings along.

    Raises:
        Misconfigured: It was started by Alembic's own command line.
    """
    from alembic import context

    connection: Connection | None = context.config.attributes.get("connection")
    if connection is None:
        raise Misconfigured(
            "Migrations need knarr's own connection",
            why="each service has its database",
            todo="Use `knarr db upgrade`.",
        )
    sqlite = connection.dialect.name == "sqlite"
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=sqlite, render_as_batch=sqlite)
    with context.begin_transaction():
        context.run_migrations()


async def _current(conn: AsyncConnection) -> str | None:
    return await conn.run_sync(_revision)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _drop_what_was_begun(connection: Connection) -> None:
    """Tables without a revision: the first migration was interrupted, and no service has ever started on them.

    Raises:
        Misconfigured: There are rows in them, so they are somebody else's.
    """
    tables = MetaData()
    tables.reflect(connection)
    for table in tables.sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise Misconfigured(
                f"The schema has a table {table.name!r} with rows, and no revision of knarr",
                why="it belongs to something else, or its table alembic_version was lost",
                todo="Give the service a schema of its own, or restore the backup.",
            )
    tables.drop_all(connection)


def _upgrade_in_thread(db: Database, migrations: Path) -> None:
    with _one_at_a_time:
        asyncio.run(_upgrade(db, migrations))


async def _upgrade(where: Database, migrations: Path) -> None:
    """On a connection of its own, since this thread has an event loop of its own."""
    db = Database(where.url.render_as_string(hide_password=False), writers=1, tls_ca=where.tls_ca)
    await db.open()
    try:
        async with db.engine.connect() as conn:
            if db.is_sqlite:
                async with conn.begin():  # takes the write lock: others wait here
                    await conn.run_sync(_run_alembic, migrations)
            else:
                await _upgrade_locked(conn, migrations)
    finally:
        await db.close()


async def _upgrade_locked(conn: AsyncConnection, migrations: Path) -> None:
    """MySQL commits each DDL statement by itself; a named lock keeps replicas apart."""
    arguments = {"name": f"knarr-migrate-{conn.engine.url.database}"[:64], "wait_s": _LOCK_WAIT_S}
    locked = await conn.scalar(text("SELECT GET_LOCK(:name, :wait_s)"), arguments)
    if locked != 1:
        raise Unavailable(
            "The database's schema could not be upgraded",
            why=f"another process has been at it for more than {_LOCK_WAIT_S} s",
            todo="Wait for it, or look at that process's log.",
        )
    try:
        await conn.execute(text(f"ALTER DATABASE CHARACTER SET {mysql.CHARSET} COLLATE {mysql.COLLATION}"))
        if await conn.run_sync(_revision) is None:
            await conn.run_sync(_drop_what_was_begun)
        await conn.run_sync(_run_alembic, migrations)
        await conn.commit()
    finally:
        await conn.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": arguments["name"]})
        await conn.commit()


def _run_alembic(connection: Connection, migrations: Path) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
