"""What people ask of a running app: other config, another formation, a restart, an earlier release.

Nothing is changed here but the database: each request that needs a release leaves `ReleaseRequested` in the outbox, in
the same transaction, under the id of the saga that it starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import Caller
from seedwork.errors import Conflict, InvalidInput, NotFound
from seedwork.messages import envelope, new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.deployer import addons, apps, configs, releases
from services.deployer.apps import App
from services.deployer.contract import ReleaseKind, ReleaseRequested
from services.deployer.ports import AddOns
from services.deployer.releases import KnownRelease
from services.deployer.scopes import Config, opened
from services.deployer.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What became of a request."""

    saga_id: str | None
    """The saga that it started; null: none was needed."""
    config_version: int
    changed: bool = True
    """False: the request asked for what is there already, so nothing was written."""


class Requests:
    """Takes what people ask for.

    Args:
        db: The service's database.
        outbox: Where `ReleaseRequested` is left.
        vault: Seals config vars.
        max_instances: Of one process type.
        provider: Of add-ons; None: the runtime has none.
    """

    def __init__(
        self, db: Database, outbox: Outbox, vault: Vault, *, max_instances: int, provider: AddOns | None = None
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._vault = vault
        self._max_instances = max_instances
        self._provider = provider

    async def app(self, name_or_id: str, caller: Caller) -> App:
        """The app that the caller means.

        Raises:
            NotFound: There is none of this name or id in the caller's team.
        """
        found = await self._db.read(lambda conn: apps.find_app(conn, name_or_id, caller.access, team=caller.team))
        if found is None:
            raise NotFound(f"There is no app {name_or_id[:100]!r}", todo="Run `knarr apps list` to list the apps.")
        return found

    async def config(self, app: App) -> tuple[int, Config]:
        """Return the newest config vars with their version; 0 and none, if nothing was ever set."""
        current = await self._db.read(lambda conn: configs.current(conn, app.app_id))
        return (current.version, opened(self._vault.unseal(current.sealed))) if current else (0, Config())

    async def shown_config(self, app: App, *, scope: Literal["build"] | None = None) -> dict[str, str]:
        """Return the newest config vars, over the URLs of the app's add-ons; `build`: what a build gets.

        A build gets the URLs of add-ons that a release before it has, unless their scope is `run`. The first build has
        none, and the network of a build need not reach them.
        """
        _, config = await self.config(app)
        known = await self._db.read(lambda conn: addons.of_app(conn, app.app_id))
        urls = addons.variables(known, self._vault, self._provider)
        if scope != "build":
            return urls | dict(config.values)
        kinds = {each.kind for each in known}
        live = {addons.variable_of(each.kind, kinds) for each in known if each.state == "live"}
        given = {name: urls[name] for name in live if config.scopes.get(name) != "run"}
        return given | config.seen_by("build")

    async def change_config(self, app: App, change: Mapping[str, str | None], caller: Caller) -> Asked:
        """Make a new config version; with a live release that sees the change, a saga brings it live.

        Raises:
            InvalidInput: A name or value is not allowed.
        """
        return await self._change(
            app, caller, lambda config: config.with_values(configs.changed(config.values, change))
        )

    async def change_scopes(self, app: App, wanted: Mapping[str, str], caller: Caller) -> Asked:
        """Make a new config version with other scopes; see `change_config`.

        Raises:
            InvalidInput: A name or a scope is not allowed.
        """
        for name in wanted:
            configs.check_name(name)
        return await self._change(app, caller, lambda config: config.with_scopes(wanted))

    async def _change(self, app: App, caller: Caller, changed: Callable[[Config], Config]) -> Asked:
        async def work(conn: AsyncConnection) -> Asked:
            base = await configs.current(conn, app.app_id)
            before = opened(self._vault.unseal(base.sealed)) if base else Config()
            after = changed(before)
            if base and after == before:
                return Asked(saga_id=None, config_version=base.version, changed=False)
            live = await releases.live(conn, app.app_id)
            if after.seen_by("run") == before.seen_by("run"):
                live = None  # instances have nothing to be started anew for; the next deployment takes the version
            saga_id = new_id() if live else None
            made = await configs.add(conn, app.app_id, after, vault=self._vault, saga_id=saga_id, by=caller.name)
            if live and saga_id:
                await self._ask(conn, app, live, saga_id, caller, kind="config", config_version=made.version)
            return Asked(saga_id=saga_id, config_version=made.version)

        return await self._db.write(work)

    async def scale(self, app: App, wanted: Mapping[str, int], caller: Caller) -> Asked:
        """Another number of instances.

        Raises:
            InvalidInput: The app has no such process, or the number is out of bounds.
            Conflict: Nothing is live.
        """

        async def work(conn: AsyncConnection) -> Asked:
            live = await self._live(conn, app)
            self._check_formation(live, wanted)
            await apps.note_scale(conn, app.app_id, wanted)
            here = {process: count for process, count in wanted.items() if process in live.processes}
            if not here:
                return Asked(saga_id=None, config_version=live.config_version, changed=False)
            formation = {**live.formation, **here}
            saga_id = new_id()
            await self._ask(conn, app, live, saga_id, caller, kind="scale", formation=formation)
            return Asked(saga_id=saga_id, config_version=live.config_version)

        return await self._db.write(work)

    async def stop(self, app: App, caller: Caller) -> Asked:
        """No instance of any process; releases, config and address stay, and later releases start nothing either.

        Raises:
            Conflict: Nothing is live.
        """

        async def work(conn: AsyncConnection) -> Asked:
            live = await self._live(conn, app)
            return await self._reshape(conn, app, live, dict.fromkeys(live.formation, 0), caller)

        return await self._db.write(work)

    async def start(self, app: App, caller: Caller) -> Asked:
        """The instances that the app had when something of it ran last; no change where something runs.

        Raises:
            Conflict: Nothing is live.
        """

        async def work(conn: AsyncConnection) -> Asked:
            live = await self._live(conn, app)
            if any(live.formation.values()):
                return Asked(saga_id=None, config_version=live.config_version, changed=False)
            return await self._reshape(conn, app, live, await self._formation_before(conn, live), caller)

        return await self._db.write(work)

    async def _formation_before(self, conn: AsyncConnection, live: KnownRelease) -> dict[str, int]:
        """Of the newest release that had an instance; else one of `web`, or of each process where there is no web."""
        last = await releases.last_with_instances(conn, live.app_id, live.processes)
        if last is not None:
            return {name: last.formation.get(name, 0) for name in live.formation}
        alone = [name for name in live.formation if name == "web"] or list(live.formation)
        return {name: int(name in alone) for name in live.formation}

    async def _reshape(
        self, conn: AsyncConnection, app: App, live: KnownRelease, formation: Mapping[str, int], caller: Caller
    ) -> Asked:
        if dict(formation) == dict(live.formation):
            return Asked(saga_id=None, config_version=live.config_version, changed=False)
        saga_id = new_id()
        await self._ask(conn, app, live, saga_id, caller, kind="scale", formation=formation)
        return Asked(saga_id=saga_id, config_version=live.config_version)

    async def restart(self, app: App, caller: Caller) -> Asked:
        """The same again, with fresh instances.

        Raises:
            Conflict: Nothing is live.
        """

        async def work(conn: AsyncConnection) -> Asked:
            live = await self._live(conn, app)
            saga_id = new_id()
            await self._ask(conn, app, live, saga_id, caller, kind="restart")
            return Asked(saga_id=saga_id, config_version=live.config_version)

        return await self._db.write(work)

    async def roll_back(self, app: App, number: int, caller: Caller) -> Asked:
        """An earlier release's image and config, as a new release.

        Raises:
            NotFound: There is no such release.
            Conflict: It is live, not yet live, undone, or its image is not kept any more.
        """

        async def work(conn: AsyncConnection) -> Asked:
            target = await releases.numbered(conn, app.app_id, number)
            if target is None:
                raise NotFound(
                    f"{app.name} has no release {number}", todo=f"Run `knarr releases {app.name}` to list them."
                )
            if target.state != "superseded":
                raise Conflict(f"Release {number} of {app.name} cannot be rolled back to", why=_WHY_NOT[target.state])
            saga_id = new_id()
            await self._ask(
                conn,
                app,
                target,
                saga_id,
                caller,
                kind="rollback",
                config_version=target.config_version,
                rollback_to=number,
            )
            return Asked(saga_id=saga_id, config_version=target.config_version)

        return await self._db.write(work)

    async def _live(self, conn: AsyncConnection, app: App) -> KnownRelease:
        live = await releases.live(conn, app.app_id)
        if live is None:
            raise Conflict(
                f"{app.name} has no live release",
                why="nothing was deployed yet",
                todo=f"Deploy it first: `knarr deploy DIR --app {app.name}`",
            )
        return live

    def _check_formation(self, live: KnownRelease, wanted: Mapping[str, int]) -> None:
        if not wanted:
            raise InvalidInput("No process is named", todo="Name one: `knarr scale APP web=2`")
        for process, count in wanted.items():
            if process not in live.processes and count:
                raise InvalidInput(
                    f"The app has no process {process[:100]!r}", why=f"its image has {', '.join(live.processes)}"
                )
            if not 0 <= count <= self._max_instances:
                raise InvalidInput(
                    f"{count} instances of {process} are not possible",
                    why=f"0 to {self._max_instances} are (KNARR_MAX_INSTANCES)",
                )

    async def _ask(
        self,
        conn: AsyncConnection,
        app: App,
        release: KnownRelease,
        saga_id: str,
        caller: Caller,
        *,
        kind: ReleaseKind,
        **what: Any,
    ) -> None:
        """Leave the event that starts a `release` saga for this release's image."""
        event = ReleaseRequested(
            app=app.name, kind=kind, digest=release.digest, commit=release.commit, requested_by=caller.name, **what
        )
        await apps.note_newest(conn, app.app_id, saga_id)
        await self._outbox.add(
            conn,
            [envelope(event, source="deployer", saga_id=saga_id, app_id=app.app_id, team=app.team, app=app.name)],
        )


_WHY_NOT = {
    "pending": "it was never live",
    "live": "it is live",
    "undone": "it was undone",
    "retired": "its image is not kept any more (KNARR_REGISTRY_KEEP)",
}
