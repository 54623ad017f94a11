"""Config versions: each is the complete set of an app's config vars, sealed; a release names the one it runs with.

`pending` waits for its release, `live` runs now, `superseded` ran before or is contained in one that does, `undone` was
given up. A pending version without a saga was set while nothing ran: the next deployment takes it.

All functions run inside a transaction of the caller.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import Conflict, FinalError, InvalidInput
from seedwork.unit_of_work import database_now_ms
from services.deployer.models import config_versions
from services.deployer.scopes import Config, closed, opened
from services.deployer.vault import Vault, new_secret
from services.source.contract import EnvVar

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VALUE_BYTES = 64 * 1024
"""Of one value: Linux takes 128 KiB per variable."""
TOTAL_BYTES = 512 * 1024
"""Of all together: Linux takes about 2 MiB of variables and arguments for a new process."""

_TABLE = config_versions.c


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigVersion:
    """One version, still sealed."""

    app_id: str
    version: int
    state: str
    sealed: str
    saga_id: str | None


async def get(conn: AsyncConnection, app_id: str, version: int) -> ConfigVersion | None:
    """That version."""
    query = select(config_versions).where(_TABLE.app_id == app_id, _TABLE.version == version)
    return _known((await conn.execute(query)).one_or_none())


async def newest_pending(conn: AsyncConnection, app_id: str, *, unclaimed: bool = False) -> ConfigVersion | None:
    """The newest pending version; `unclaimed`: of those that no saga brings live."""
    query = select(config_versions).where(_TABLE.app_id == app_id, _TABLE.state == "pending")
    if unclaimed:
        query = query.where(_TABLE.saga_id.is_(None))
    return _known((await conn.execute(query.order_by(_TABLE.version.desc()).limit(1))).one_or_none())


async def live(conn: AsyncConnection, app_id: str) -> ConfigVersion | None:
    """The version that runs."""
    query = select(config_versions).where(_TABLE.app_id == app_id, _TABLE.state == "live").limit(1)
    return _known((await conn.execute(query)).one_or_none())


async def current(conn: AsyncConnection, app_id: str) -> ConfigVersion | None:
    """What the next change builds on: the newest pending version, else the live one."""
    return await newest_pending(conn, app_id) or await live(conn, app_id)


async def add(
    conn: AsyncConnection,
    app_id: str,
    values: Mapping[str, str] | Config,
    *,
    vault: Vault,
    saga_id: str | None,
    by: str,
) -> ConfigVersion:
    """A new pending version with these values."""
    config = values if isinstance(values, Config) else Config(values=values)
    top = select(func.max(_TABLE.version)).where(_TABLE.app_id == app_id)
    made = ConfigVersion(
        app_id=app_id,
        version=((await conn.execute(top)).scalar_one() or 0) + 1,
        state="pending",
        sealed=vault.seal(closed(config)),
        saga_id=saga_id,
    )
    row = {name: getattr(made, name) for name in made.__slots__}
    await conn.execute(insert(config_versions).values(**row, created_by=by, created_ms=await database_now_ms(conn)))
    return made


async def pin(
    conn: AsyncConnection,
    app_id: str,
    *,
    wanted: int | None,
    declared: Mapping[str, EnvVar],
    vault: Vault,
    saga_id: str,
    app: str = "APP",
) -> int:
    """The version with which a new release runs; a new one, if the app declares secrets that are not made yet.

    Args:
        conn: The caller's transaction.
        app_id: The app.
        app: Its name, for the text of an error.
        wanted: The version that was asked for; None: an unclaimed one, else the live one, else an empty first one.
        declared: `app.json`'s variables.
        vault: Opens and seals.
        saga_id: The release's saga; a version made here is undone with it.

    Raises:
        Conflict: The wanted version was undone or never was.
        FinalError: Required variables have no value (code `config_missing`); the text names them.
    """
    if wanted is not None:
        base = await get(conn, app_id, wanted)
        if base is None or base.state == "undone":
            raise Conflict(f"Config version {wanted} is not there any more", why="its change was undone")
    else:
        base = await newest_pending(conn, app_id, unclaimed=True) or await live(conn, app_id)
    config = opened(vault.unseal(base.sealed)) if base else Config()
    values = config.values
    secrets = {name: new_secret() for name, var in declared.items() if var.generate and name not in values}
    missing = [
        name
        for name, var in sorted(declared.items())
        if var.required and var.value is None and not var.generate and name not in values
    ]
    if missing:
        raise FinalError(
            f"The app needs config vars that have no value: {', '.join(missing)}",
            why="app.json declares them as required, without a default",
            todo=f"Run `knarr config set {app} {' '.join(f'{name}=VALUE' for name in missing)}`, then deploy again.",
            code="config_missing",
        )
    if base is None or secrets:
        claimed_by = saga_id if secrets else None
        base = await add(
            conn, app_id, config.with_values({**values, **secrets}), vault=vault, saga_id=claimed_by, by="deployment"
        )
    return base.version


async def bring_live(conn: AsyncConnection, app_id: str, version: int) -> None:
    """This version runs now: what ran before, and older pending ones, are superseded."""
    older = (_TABLE.state == "pending") & (_TABLE.version < version)
    running = (_TABLE.state == "live") & (_TABLE.version != version)
    table = update(config_versions).where(_TABLE.app_id == app_id)
    await conn.execute(table.where(older | running).values(state="superseded"))
    await conn.execute(table.where(_TABLE.version == version).values(state="live"))


async def give_up(conn: AsyncConnection, app_id: str, saga_id: str) -> int:
    """The versions that this saga was to bring live are undone; how many."""
    query = update(config_versions).where(_TABLE.app_id == app_id, _TABLE.saga_id == saga_id, _TABLE.state != "undone")
    return (await conn.execute(query.values(state="undone"))).rowcount


async def wait_again(conn: AsyncConnection, app_id: str, version: int) -> None:
    """A deployment that had taken an unclaimed version was undone after it was live: the next one takes it again."""
    newest = (
        select(func.max(_TABLE.version))
        .where(_TABLE.app_id == app_id, _TABLE.saga_id.is_(None), _TABLE.version <= version)
        .scalar_subquery()
    )
    found = (await conn.execute(select(newest))).scalar_one()
    await conn.execute(
        update(config_versions)
        .where(_TABLE.app_id == app_id, _TABLE.version == found, _TABLE.state.in_(("live", "superseded")))
        .values(state="pending")
    )


def changed(values: Mapping[str, str], change: Mapping[str, str | None]) -> dict[str, str]:
    """The config vars after a change; null removes one.

    Raises:
        InvalidInput: A name or value is not allowed; the text names it.
    """
    for name, value in change.items():
        check_name(name)
        if value is not None and ("\0" in value or len(value.encode()) > VALUE_BYTES):
            raise InvalidInput(
                f"The value of {name} cannot be a config var",
                why=f"it may have {VALUE_BYTES // 1024} KiB and no NUL",
                todo="Put large things into a file of the app or a database.",
            )
    result = {name: value for name, value in {**values, **change}.items() if value is not None}
    if sum(len(name) + len(value.encode()) for name, value in result.items()) > TOTAL_BYTES:
        raise InvalidInput(f"The config vars have more than {TOTAL_BYTES // 1024} KiB together")
    return result


def check_name(name: str) -> None:
    """Raise `InvalidInput` if a config var cannot have this name."""
    if not NAME.fullmatch(name) or len(name) > 200:
        raise InvalidInput(
            f"{name[:200]!r} cannot be the name of a config var",
            why="a name has letters, digits and _, and begins with no digit",
        )
    if name == "PORT" or name.startswith("KNARR_"):
        raise InvalidInput(f"{name} cannot be set", why="knarr gives it to each instance itself")


def _known(row: Row[tuple[object, ...]] | None) -> ConfigVersion | None:
    if row is None:
        return None
    found = row._mapping  # noqa: SLF001  SQLAlchemy's public name for a row as a mapping
    return ConfigVersion(**{name: found[name] for name in ConfigVersion.__slots__})
