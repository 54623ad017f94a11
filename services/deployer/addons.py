"""Add-ons: what an app's image asks for in; databases that outlive its releases, and their URLs as config vars, out.

An add-on is `pending` from the deployment that asks for it first until a release with it is live, and that
deployment's undo takes it away with its data. From then on it is `live`: kept by every deployment and undo, until a
person removes it or the app is removed. `leaving`: its data is being deleted, and nobody can have it any more.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import FinalError, KnarrError, NotFound, RetryableError
from seedwork.unit_of_work import Database, database_now_ms
from services.deployer.apps import App
from services.deployer.errors import CannotRun
from services.deployer.models import addons
from services.deployer.ports import AddOn, AddOns
from services.deployer.vault import Vault, new_secret
from services.source.contract import AddOn as WantedAddOn

log = structlog.get_logger(__name__)

USER = "app"
"""The user, and the database, that an app finds in its add-on."""
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_URLS: Mapping[str, str] = {
    "mongodb": "mongodb://{user}:{password}@{host}:{port}/{database}?authSource=admin",
    "mysql": "mysql://{user}:{password}@{host}:{port}/{database}",
    "postgres": "postgresql://{user}:{password}@{host}:{port}/{database}",
    "redis": "redis://:{password}@{host}:{port}/0",
}
_PORTS: Mapping[str, int] = {"mongodb": 27017, "mysql": 3306, "postgres": 5432, "redis": 6379}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAddOn:
    """A row of `addons`."""

    app_id: str
    name: str
    kind: str
    version: str | None
    state: str
    saga_id: str
    sealed: str
    created_ms: int


async def reserve(
    conn: AsyncConnection, app_id: str, wanted: Sequence[WantedAddOn], *, saga_id: str, vault: Vault
) -> None:
    """Have a row for each add-on that a release asks for, before anything of it exists.

    A pending one of another saga, which will not get live with it, becomes this saga's.

    Raises:
        CannotRun: The version is none.
        RetryableError: One of them is just being removed.
    """
    known = {each.name: each for each in await of_app(conn, app_id)}
    for each in wanted:
        if each.version is not None and not _VERSION.fullmatch(each.version):
            raise CannotRun(f"The version of {each.kind} is none", why=f"{each.version[:100]!r}")
        if each.kind not in known:
            await conn.execute(
                insert(addons).values(
                    app_id=app_id,
                    name=each.kind,
                    kind=each.kind,
                    version=each.version,
                    state="pending",
                    saga_id=saga_id,
                    sealed=vault.seal({"password": new_secret()[:48]}),
                    created_ms=await database_now_ms(conn),
                )
            )
        elif known[each.kind].state == "leaving":
            raise RetryableError(f"The add-on {each.kind} is just being removed", why="its data is being deleted")
        elif known[each.kind].state == "pending":
            await conn.execute(_of(known[each.kind]).values(saga_id=saga_id))


async def of_app(conn: AsyncConnection, app_id: str) -> list[KnownAddOn]:
    """All add-ons of the app, by name."""
    rows = await conn.execute(select(addons).where(addons.c.app_id == app_id).order_by(addons.c.name))
    return [_known(row) for row in rows]


def given(known: Sequence[KnownAddOn], app: App, vault: Vault) -> tuple[AddOn, ...]:
    """As the runtime is asked for them."""
    return tuple(
        AddOn(
            app_id=each.app_id,
            app=app.name,
            team=app.team,
            saga_id=each.saga_id,
            name=each.name,
            kind=each.kind,
            version=each.version,
            user=USER,
            password=vault.unseal(each.sealed)["password"],
        )
        for each in known
    )


def variables(known: Sequence[KnownAddOn], vault: Vault, provider: AddOns | None) -> dict[str, str]:
    """The connection URLs by the names of their config vars."""
    kinds = {each.kind for each in known}
    return {variable_of(each.kind, kinds): _url(each, vault, provider) for each in known}


def _url(known: KnownAddOn, vault: Vault, provider: AddOns | None) -> str:
    host, port = known.name, _PORTS[known.kind]
    if provider is not None:
        host, port = provider.address(known.app_id, known.name, port)
    password = vault.unseal(known.sealed)["password"]
    return _URLS[known.kind].format(user=USER, password=password, host=host, port=port, database=USER)


def variable_of(kind: str, kinds: set[str]) -> str:
    """The config var that has its URL; an app with two SQL databases finds MySQL under a name of its own."""
    if kind == "mysql" and "postgres" in kinds:
        return "MYSQL_URL"
    return {"mongodb": "MONGODB_URI", "redis": "REDIS_URL"}.get(kind, "DATABASE_URL")


class Removal:
    """Takes add-ons away with their data, in a way that a crash cannot stop half-way for ever.

    Args:
        db: The service's database.
        provider: Has them; None: the runtime provides none.
    """

    def __init__(self, db: Database, provider: AddOns | None) -> None:
        self._db = db
        self._provider = provider

    async def undone(self, app_id: str, saga_id: str) -> list[str]:
        """Those that this saga asked for and that were never live; what was found."""
        ours = addons.c.saga_id == saga_id
        return await self._remove(ours & (addons.c.app_id == app_id) & (addons.c.state != "live"))

    async def of_app(self, app_id: str) -> list[str]:
        """All of an app that was removed; what was found."""
        return await self._remove(addons.c.app_id == app_id)

    async def wanted(self, app: App, name: str) -> None:
        """One that a person named.

        Raises:
            NotFound: The app has none of this name.
        """
        if not await self._remove((addons.c.app_id == app.app_id) & (addons.c.name == name)):
            raise NotFound(
                f"{app.name} has no add-on {name[:100]!r}", todo=f"`knarr addons list {app.name}` lists them."
            )

    async def interrupted(self) -> None:
        """What a crash left `leaving`."""
        try:
            await self._remove(addons.c.state == "leaving")
        except KnarrError as error:
            log.warning("an add-on is not removed yet", why=error.message)

    async def _remove(self, which: Any) -> list[str]:
        async def mark(conn: AsyncConnection) -> list[KnownAddOn]:
            await conn.execute(update(addons).where(which).values(state="leaving"))
            return [_known(row) for row in await conn.execute(select(addons).where(which))]

        found: list[str] = []
        for each in await self._db.write(mark):
            if self._provider is None:
                raise FinalError(f"The add-on {each.name} cannot be removed", why="this runtime does not provide any")
            found += await self._provider.withdraw(each.app_id, each.name) or [f"add-on {each.name}"]
            await self._db.write(_dropping(each))
        return found


def _dropping(known: KnownAddOn) -> Callable[[AsyncConnection], Awaitable[None]]:
    async def drop(conn: AsyncConnection) -> None:
        gone = delete(addons).where(addons.c.app_id == known.app_id, addons.c.name == known.name)
        await conn.execute(gone.where(addons.c.state == "leaving"))

    return drop


def _of(known: KnownAddOn) -> Any:
    return update(addons).where(addons.c.app_id == known.app_id, addons.c.name == known.name)


def _known(row: Any) -> KnownAddOn:
    return KnownAddOn(**{name: getattr(row, name) for name in KnownAddOn.__slots__})
