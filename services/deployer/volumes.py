"""Volumes: folders that outlive an app's releases, and the app itself.

A volume is made by `knarr storage add`, or by a deployment whose `.cupaas.yml` asks for it. No deployment, undo or
removal of the app deletes it: only a request that names it does. It is `leaving` from then until no instance uses it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import structlog
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Access
from seedwork.errors import Conflict, InvalidInput, KnarrError, NotFound, RetryableError
from seedwork.unit_of_work import Database, database_now_ms
from services.deployer import releases
from services.deployer.apps import App
from services.deployer.models import volumes
from services.deployer.ports import Runtime, Volume, Volumes
from services.source.contract import Storage

log = structlog.get_logger(__name__)

DEFAULT_BYTES = 1024**3
"""Size of a volume whose size is not given, in bytes."""
MAX_BYTES = 16 * 1024**4
"""Largest size that can be requested, in bytes."""
MAX_VOLUMES = 10
"""Volumes of one app."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,200}", re.ASCII)
_SYSTEM = ("bin", "boot", "dev", "etc", "layers", "lib", "lib64", "proc", "run", "sbin", "sys", "usr")
"""First parts of paths that hold the operating system or the app's packages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVolume:
    """A row of `volumes`."""

    app_id: str
    name: str
    app: str
    team: str
    path: str
    size_bytes: int
    state: str
    created_ms: int
    left_ms: int | None

    @property
    def volume(self) -> Volume:
        """What the runtime gets."""
        return Volume(app_id=self.app_id, name=self.name, path=self.path, size_bytes=self.size_bytes)


def checked(path: str, name: str | None, size_bytes: int | None) -> tuple[str, str, int]:
    """Return name, normal path and size of a requested volume.

    Raises:
        InvalidInput: One of them is not allowed.
    """
    plain = str(PurePosixPath(path))
    parts = PurePosixPath(plain).parts
    if not _PATH.fullmatch(plain) or ".." in parts or parts[1] in _SYSTEM or plain == "/app":
        raise InvalidInput(
            f"{path[:100]!r} cannot be a volume's path",
            why="a path is absolute, has no `..`, and is no folder of the system or of the whole app",
            todo="Choose one such as /data or /app/uploads.",
        )
    chosen = name or re.sub(r"[^a-z0-9]+", "-", parts[-1].lower()).strip("-")
    if not _NAME.fullmatch(chosen):
        raise InvalidInput(
            f"{chosen[:100]!r} cannot be a volume's name",
            why="a name is lower-case letters, digits and `-`, begins with a letter, and has at most 31 characters",
            todo="Choose another one with --name.",
        )
    size = DEFAULT_BYTES if size_bytes is None else size_bytes
    if not 1024**2 <= size <= MAX_BYTES:
        raise InvalidInput(f"{size} bytes cannot be a volume's size", why=f"1048576 to {MAX_BYTES} are possible")
    return chosen, plain, size


async def of_app(conn: AsyncConnection, app_id: str) -> list[KnownVolume]:
    """Return the app's volumes by name."""
    rows = await conn.execute(select(volumes).where(volumes.c.app_id == app_id).order_by(volumes.c.name))
    return [_known(row) for row in rows]


async def visible(conn: AsyncConnection, access: Access) -> list[KnownVolume]:
    """Return all volumes of the teams, also of apps that were removed."""
    query = select(volumes).where(access.only(volumes.c.team)).order_by(volumes.c.app, volumes.c.name)
    rows = await conn.execute(query)
    return [_known(row) for row in rows]


async def add(conn: AsyncConnection, app: App, *, path: str, name: str | None, size_bytes: int | None) -> KnownVolume:
    """Add a volume.

    Raises:
        InvalidInput: Name, path or size is not allowed.
        Conflict: The app has one of this name or path, or as many as an app may have.
    """
    chosen, plain, size = checked(path, name, size_bytes)
    known = await of_app(conn, app.app_id)
    for each in known:
        if chosen == each.name or plain == each.path:
            raise Conflict(
                f"{app.name} has the volume {each.name} at {each.path} already",
                todo=f"List its volumes: `knarr storage list {app.name}`.",
            )
    if len(known) >= MAX_VOLUMES:
        raise Conflict(f"{app.name} has {len(known)} volumes", why=f"an app may have {MAX_VOLUMES}")
    made = KnownVolume(
        app_id=app.app_id,
        name=chosen,
        app=app.name,
        team=app.team,
        path=plain,
        size_bytes=size,
        state="live",
        created_ms=await database_now_ms(conn),
        left_ms=None,
    )
    await conn.execute(insert(volumes).values({field: getattr(made, field) for field in KnownVolume.__slots__}))
    return made


async def reserve(conn: AsyncConnection, app: App, wanted: Sequence[Storage]) -> None:
    """Add the volumes that a release asks for and the app does not have; one with the same path counts.

    Raises:
        InvalidInput: A path or a size is not allowed.
        RetryableError: A volume at that path is being deleted.
    """
    for each in wanted:
        _, plain, size = checked(each.path, None, each.size_bytes)
        known = {volume.path: volume for volume in await of_app(conn, app.app_id)}
        if plain not in known:
            await add(conn, app, path=plain, name=None, size_bytes=size)
        elif known[plain].state == "leaving":
            raise RetryableError(f"The volume at {plain} is being deleted", why="its deletion has not ended")


class VolumeRemoval:
    """Deletes volumes as soon as no instance uses them.

    Args:
        db: The service's database.
        runtime: Lists instances.
        provider: Deletes volumes; None: this runtime has none.
    """

    def __init__(self, db: Database, runtime: Runtime, provider: Volumes | None) -> None:
        self._db = db
        self._runtime = runtime
        self._provider = provider

    async def mark(self, app_id: str, name: str, access: Access) -> KnownVolume:
        """Mark a volume for deletion.

        Raises:
            NotFound: No such volume, or another team's.
        """

        async def work(conn: AsyncConnection) -> KnownVolume:
            known = next((each for each in await of_app(conn, app_id) if each.name == name), None)
            if known is None or not access.sees(known.team):
                raise NotFound(f"There is no volume {name[:100]!r}", todo="List all volumes: `knarr storage list`.")
            now_ms = await database_now_ms(conn)
            await conn.execute(_row(known).values(state="leaving", left_ms=now_ms))
            return known

        return await self._db.write(work)

    async def finish(self) -> int:
        """Delete the marked volumes that no instance uses; return how many."""

        async def marked(conn: AsyncConnection) -> list[KnownVolume]:
            return [_known(row) for row in await conn.execute(select(volumes).where(volumes.c.state == "leaving"))]

        deleted = 0
        for each in await self._db.read(marked):
            try:
                deleted += await self._delete(each)
            except KnarrError as error:
                log.warning("volume.delete_failed", app=each.app, volume=each.name, why=error.message)
        return deleted

    async def _delete(self, known: KnownVolume) -> bool:
        if self._provider is None or await self._in_use(known):
            return False
        await self._provider.delete(known.volume)
        await self._db.write(lambda conn: conn.execute(_gone(known)))
        log.info("volume.deleted", app=known.app, volume=known.name)
        return True

    async def _in_use(self, known: KnownVolume) -> bool:
        """True while instances of a release run that was made before the volume was marked."""
        running = {each.saga_id for each in await self._runtime.instances(known.app_id)}
        for saga_id in running:
            release = await self._db.read(partial(releases.of_saga, saga_id=saga_id))
            if release is None or known.left_ms is None or release.created_ms <= known.left_ms:
                return True
        return False


def _row(known: KnownVolume) -> Any:
    return update(volumes).where(volumes.c.app_id == known.app_id, volumes.c.name == known.name)


def _gone(known: KnownVolume) -> Any:
    where = delete(volumes).where(volumes.c.app_id == known.app_id, volumes.c.name == known.name)
    return where.where(volumes.c.state == "leaving")


def _known(row: Any) -> KnownVolume:
    return KnownVolume(**{name: getattr(row, name) for name in KnownVolume.__slots__})
