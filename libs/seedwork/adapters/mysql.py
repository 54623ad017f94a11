"""MySQL 9 behind SQLAlchemy and asyncmy: connections as knarr wants them, and what the server's errors mean.

Two replicas of a service share one schema, so what SQLite decides by having one writer is decided here by row locks:

- writers run in READ COMMITTED (no gap locks; each statement sees what is committed), readers in REPEATABLE READ (one
  snapshot for all statements of a read);
- a deadlock or a lock that is not had within `LOCK_WAIT_S` undoes the transaction, and it is run again;
- a process that is stopped in the middle of a transaction holds its locks for `IDLE_S` at most: then the server ends
  its connection;
- text is compared byte by byte, as SQLite does: `Main` and `main` are two branches (ADR 7).

The driver asks the server to count the rows that an UPDATE *finds* (CLIENT.FOUND_ROWS, set by SQLAlchemy), so a version
check that changes nothing else still counts; `database_contract` watches it.
"""

import logging
import re
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from seedwork import tls
from seedwork.errors import Misconfigured

CHARSET = "utf8mb4"
COLLATION = "utf8mb4_0900_bin"
LOCK_WAIT_S = 5
"""The server's default, 50 s, is longer than a lease."""
IDLE_S = 60
"""The server's default is eight hours. Connections of ours that wait in the pool are renewed before."""
_RENEW_S = IDLE_S - 15
_CONNECT_S = 5
_MODE = "CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES')"
"""A backslash is a character like any other, so that the driver looks for quotes only: it goes through a text character
by character for the others, 25 µs for 1 KB of JSON in place of 0.4, which was a sixth of the coordinator's time."""

TLS_SETTING = "KNARR_DATABASE_TLS_CA"

_DEADLOCK, _LOCK_WAIT = 1213, 1205
_UNKNOWN_DATABASE, _NO_RIGHT_TO_DATABASE, _WRONG_PASSWORD = 1049, 1044, 1045
_WANTS_TLS = 3159
_DUPLICATE = 1062


def mysql_engine(url: URL, *, isolation: str, size: int, tls_ca: str | None = None) -> AsyncEngine:
    """Connections to one schema.

    Args:
        url: `mysql+asyncmy://…`.
        isolation: `READ COMMITTED` to write, `REPEATABLE READ` for a snapshot.
        size: Connections at once.
        tls_ca: A file with the authority by which every connection is encrypted and the server checked; none: as the
            URL says.

    Raises:
        Misconfigured: The driver is not installed, or the file is of no use.
    """
    _hush()
    try:
        engine = create_async_engine(
            url,
            isolation_level=isolation,
            pool_size=size,
            max_overflow=0,
            pool_timeout=30,
            pool_recycle=_RENEW_S,
            hide_parameters=True,
            connect_args={**_connecting(tls_ca), "sql_mode": _MODE},
        )
    except ModuleNotFoundError as error:
        raise Misconfigured(
            "KNARR_DATABASE_URL names MySQL, but its driver is not installed",
            why=str(error),
            todo="Install it with `pip install 'knarr[mysql]'`.",
        ) from error

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET NAMES {CHARSET} COLLATE {COLLATION}")
        cursor.execute(
            f"SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = {LOCK_WAIT_S}, wait_timeout = {IDLE_S}"
        )
        cursor.close()

    return engine


async def make_schema(url: URL, admin: URL, *, tls_ca: str | None = None) -> None:
    """Make the schema and the user of this URL, if they are not there; the user may do everything in it, and no more.

    Args:
        url: As the service will use it, with the password that it will show.
        admin: A user who may make schemas and users.
        tls_ca: As in `mysql_engine`.

    Raises:
        Misconfigured: The URL names no schema or no user, or the file is of no use.
        sqlalchemy.exc.OperationalError: The server does not answer, or does not let the administrator in.
    """
    if not url.database or not url.username:
        raise Misconfigured(
            "KNARR_DATABASE_URL must name a user and a schema",
            todo="mysql+asyncmy://knarr_{service}:PASSWORD@HOST/knarr_{service}",
        )
    user = {"user": url.username, "password": url.password or ""}
    pattern = url.database.replace("_", r"\_")  # in GRANT an underscore stands for any character
    _hush()
    engine = create_async_engine(admin, hide_parameters=True, connect_args=_connecting(tls_ca))
    try:
        async with engine.begin() as conn:
            schema = f"{_quoted(url.database)} CHARACTER SET {CHARSET} COLLATE {COLLATION}"
            await conn.execute(text(f"CREATE DATABASE IF NOT EXISTS {schema}"))
            await conn.execute(text("CREATE USER IF NOT EXISTS :user@'%' IDENTIFIED BY :password"), user)
            await conn.execute(text("ALTER USER :user@'%' IDENTIFIED BY :password"), user)
            await conn.execute(text(f"GRANT ALL ON {_quoted(pattern)}.* TO :user@'%'"), {"user": url.username})
    finally:
        await engine.dispose()


def _connecting(tls_ca: str | None) -> dict[str, Any]:
    """What the driver is told besides the URL.

    With a context it asks the server for TLS before it says who we are, and ends the connection where there is none.
    """
    return {"connect_timeout": _CONNECT_S} | ({"ssl": tls.trusting(tls_ca, setting=TLS_SETTING)} if tls_ca else {})


def _hush() -> None:
    """The driver warns of each duplicate that INSERT IGNORE has met, and of all that was there already."""
    logging.getLogger("asyncmy").setLevel(logging.ERROR)


def _quoted(name: str) -> str:
    """An identifier, whatever is in it; `%` and `:` would be the driver's."""
    if not re.fullmatch(r"[\w$\\-]{1,64}", name):
        raise Misconfigured(f"{name!r} is no name for a schema", todo="Use letters, digits and underscores.")
    return f"`{name}`"


def is_conflict(error: DBAPIError) -> bool:
    """Whether another transaction was in the way: nothing was written, and the same may work now."""
    return error_number(error) in (_DEADLOCK, _LOCK_WAIT)


def is_duplicate(number: int) -> bool:
    """Whether this warning says that a key was there already."""
    return number == _DUPLICATE


def why_no_schema(error: BaseException | None) -> str | None:
    """Why this user cannot use this schema at all; None: that is not what the error says."""
    number = error_number(error) if isinstance(error, DBAPIError) else None
    return {
        _UNKNOWN_DATABASE: "the schema does not exist",
        _NO_RIGHT_TO_DATABASE: "the user has no right to the schema",
        _WRONG_PASSWORD: "the server does not accept the user or its password",
    }.get(number or 0)


def why_untrusted(error: BaseException) -> str | None:
    """Why there is no connection that both sides trust; None: that is not what the error says."""
    if isinstance(error, DBAPIError) and error_number(error) == _WANTS_TLS:
        return "the server takes encrypted connections only"
    return tls.why_untrusted(error)


def error_number(error: DBAPIError) -> int | None:
    """MySQL's number of the error."""
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
