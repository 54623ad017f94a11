"""Apps: made, changed, removed. Whoever makes or rotates a webhook secret sees it once; afterwards nobody does."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.access import EVERY_TEAM, Access, Caller
from seedwork.chassis.paging import Paging
from seedwork.chassis.tracing import current_traceparent
from seedwork.clock import Clock
from seedwork.errors import Conflict, InvalidInput, KnarrError, NotFound
from seedwork.git import GitUrlPolicy
from seedwork.messages import Event, envelope, new_id
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.source.contract import BuildSettings
from services.webhook import app_settings, holds, rules
from services.webhook.contract import AppChanged, AppCreated, AppRemovalRequested
from services.webhook.directory import Directory
from services.webhook.github import repository_key
from services.webhook.models import apps
from services.webhook.polling import Schedule
from services.webhook.ports import RemoteRefs
from services.webhook.vault import Vault

AppRow = Row[Any]
_MAIN = "refs/heads/main"
_DEFAULT_BRANCH_S = 10.0
"""For the question for the default branch: the caller waits for it."""


@dataclass(frozen=True, slots=True)
class NewApp:
    """What somebody wants an app to be; unchecked."""

    name: str
    team: str
    repository: str | None = None
    clone_url: str | None = None
    ref: str | None = None
    """Null: the branch that the repository names as its default."""
    root: str = "."
    webhook_secret: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`builder`, `dockerfile`, `docker_target`, `docker_args`, `watch` and `observe_s`, where given."""


class Apps:
    """The apps of this installation."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        *,
        vault: Vault,
        directory: Directory,
        policy: GitUrlPolicy,
        schedule: Schedule,
        refs: RemoteRefs,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._vault = vault
        self._directory = directory
        self._policy = policy
        self._schedule = schedule
        self._refs = refs

    async def create(self, wanted: NewApp) -> tuple[AppRow, str, str | None]:
        """Make an app; its row, its webhook secret, and what the caller must know about its ref.

        Raises:
            InvalidInput: A field is wrong.
            NotAllowed: The clone URL is outside the allow-list.
            Conflict: The team has an app of this name.
        """
        secret = rules.new_secret() if wanted.webhook_secret is None else rules.webhook_secret(wanted.webhook_secret)
        repository = None if wanted.repository is None else rules.repository(wanted.repository)
        app_id, now_ms = new_id(), self._clock.now_ms()
        name = rules.app_name(wanted.name)
        values: dict[str, Any] = {
            "app_id": app_id,
            "team": wanted.team,
            "name": name,
            "name_key": name,
            **self._source(repository, wanted.clone_url),
            "ref": rules.branch(wanted.ref or _MAIN),
            "root": rules.root(wanted.root),
            "settings": app_settings.stored(app_settings.changed(BuildSettings(), wanted.settings)),
            "observe_s": app_settings.observe_s(wanted.settings.get("observe_s")),
            "webhook_secret": self._vault.encrypt(secret),
            "state": "active",
            "created_ms": now_ms,
            "next_poll_ms": self._schedule.first(app_id, now_ms),
        }
        note = None
        if wanted.ref is None and values["clone_url"] is not None:
            values["ref"], note = await self._default_branch(values["clone_url"])
        app = await self._db.write(partial(self._insert, values=values))
        self._directory.forget()
        return app, secret, note

    async def _default_branch(self, clone_url: str) -> tuple[str, str | None]:
        """The branch that the repository names, or `main` with the reason why it could not be asked."""
        try:
            async with asyncio.timeout(_DEFAULT_BRANCH_S):
                return rules.branch(await self._refs.default_branch(clone_url)), None
        except (KnarrError, TimeoutError) as error:
            why = error.message if isinstance(error, KnarrError) else f"{clone_url} did not answer in time"
            return _MAIN, f"The default branch is not known, so the app follows main: {why}"

    async def hold(self, name_or_id: str, caller: Caller, *, why: str) -> AppRow:
        """Hold automatic deployments of the app.

        Raises:
            NotFound: The team has no such app.
            Conflict: It is being removed.
        """
        return await self._db.write(partial(self._hold, name_or_id=name_or_id, caller=caller, why=why))

    async def release(self, name_or_id: str, caller: Caller) -> tuple[AppRow, str | None]:
        """End the hold; the app's row, and the newest commit that was not deployed because of it.

        Raises:
            NotFound: The team has no such app.
        """
        return await self._db.write(partial(self._release, name_or_id=name_or_id, caller=caller))

    async def get(self, name_or_id: str, caller: Caller) -> AppRow:
        """Return one app.

        Raises:
            NotFound: The team has no such app, or it was removed.
        """
        return await self._db.read(partial(find, name_or_id=name_or_id, access=caller.access, own=caller.team))

    async def page(self, paging: Paging, access: Access) -> Sequence[AppRow]:
        """Return up to `paging.limit + 1` apps, by name."""
        query = select(apps).where(apps.c.state != "removed", access.only(apps.c.team))
        query = query.order_by(apps.c.name, apps.c.app_id)
        if (name := paging.after("name", str)) and (app_id := paging.after("id", str)):
            query = query.where(or_(apps.c.name > name, and_(apps.c.name == name, apps.c.app_id > app_id)))

        async def load(conn: AsyncConnection) -> Sequence[AppRow]:
            return (await conn.execute(query.limit(paging.limit + 1))).all()

        return await self._db.read(load)

    async def change(
        self, name_or_id: str, caller: Caller, changes: Mapping[str, str | None]
    ) -> tuple[AppRow, str | None]:
        """Change those fields that are given; the row, and the webhook secret if it is a new one.

        Args:
            name_or_id: Which app.
            caller: Who changes it.
            changes: New values of `repository`, `clone_url`, `ref`, `root`, `webhook_secret`. Null: the default, which
                for the secret is a new one.

        Raises:
            InvalidInput: A field is wrong.
            NotAllowed: The clone URL is outside the allow-list.
            NotFound: The team has no such app.
            Conflict: It is being removed.
        """
        secret: str | None = None
        if "webhook_secret" in changes:
            given = changes["webhook_secret"]
            secret = rules.new_secret() if given is None else rules.webhook_secret(given)
        work = partial(self._update, name_or_id=name_or_id, caller=caller, changes=changes, secret=secret)
        app = await self._db.write(work)
        self._directory.forget()
        return app, secret

    async def remove(self, name_or_id: str, caller: Caller) -> str:
        """Begin to remove an app, or say which saga does already; the saga's id.

        Raises:
            NotFound: The team has no such app.
        """
        work = partial(self._remove, name_or_id=name_or_id, caller=caller)
        return await self._db.write(work)

    async def _hold(self, conn: AsyncConnection, *, name_or_id: str, caller: Caller, why: str) -> AppRow:
        app = await find(conn, name_or_id=name_or_id, access=caller.access, own=caller.team, lock=True)
        _must_be_active(app)
        await holds.hold(conn, app.app_id, now_ms=self._clock.now_ms(), by=caller.name, why=why)
        return await find(conn, name_or_id=app.app_id, access=EVERY_TEAM)

    async def _release(self, conn: AsyncConnection, *, name_or_id: str, caller: Caller) -> tuple[AppRow, str | None]:
        app = await find(conn, name_or_id=name_or_id, access=caller.access, own=caller.team, lock=True)
        await holds.release(conn, app.app_id, now_ms=self._clock.now_ms())
        return await find(conn, name_or_id=app.app_id, access=EVERY_TEAM), app.held_commit

    async def _insert(self, conn: AsyncConnection, *, values: Mapping[str, Any]) -> AppRow:
        taken = await conn.scalar(
            select(apps.c.app_id).where(apps.c.team == values["team"], apps.c.name_key == values["name"])
        )
        if taken is not None:
            raise Conflict(
                f"The name {values['name']} is taken",
                why=f"the team {values['team']} has an app of this name",
                todo="Choose another name, or remove that app first: `knarr apps remove NAME`.",
            )
        await conn.execute(insert(apps).values(values))
        app = await find(conn, name_or_id=values["app_id"], access=EVERY_TEAM)
        await self._tell(conn, AppCreated, app)
        return app

    async def _update(
        self,
        conn: AsyncConnection,
        *,
        name_or_id: str,
        caller: Caller,
        changes: Mapping[str, Any],
        secret: str | None,
    ) -> AppRow:
        app = await find(conn, name_or_id=name_or_id, access=caller.access, own=caller.team, lock=True)
        _must_be_active(app)
        values = self._changed(app, changes)
        if values:  # what was seen of the earlier source says nothing about this one
            values |= dict.fromkeys(
                ("tip_commit", "polled_commit", "polled_saga_id", "polled_ms", "poll_error", "held_commit")
            )
            values |= {"poll_failures": 0, "next_poll_ms": self._schedule.first(app.app_id, self._clock.now_ms())}
        if "root" in changes:
            values["root"] = rules.root(changes["root"] or ".")
        if "observe_s" in changes:
            values["observe_s"] = app_settings.observe_s(changes["observe_s"])
        values["settings"] = app_settings.stored(app_settings.changed(app_settings.settings_of(app), changes))
        if secret is not None:
            values |= {"webhook_secret": self._vault.encrypt(secret), "secret_version": app.secret_version + 1}
        if any(value != app._mapping[name] for name, value in values.items()):  # noqa: SLF001  public, despite its name
            await conn.execute(update(apps).where(apps.c.app_id == app.app_id).values(values))
            app = await find(conn, name_or_id=app.app_id, access=EVERY_TEAM)
            await self._tell(conn, AppChanged, app)
        return app

    def _changed(self, app: AppRow, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Where the app's code comes from, if that is something else now."""
        repository = app.repository
        if "repository" in changes:
            given = changes["repository"]
            repository = None if given is None else rules.repository(given)
        clone_url = app.clone_url
        if "clone_url" in changes:
            clone_url = changes["clone_url"]
        elif app.repository is not None and clone_url == rules.default_clone_url(app.repository):
            clone_url = None
        values = self._source(repository, clone_url) if {"repository", "clone_url"} & set(changes) else {}
        if "ref" in changes:
            values["ref"] = rules.branch(changes["ref"] or _MAIN)
        return {name: value for name, value in values.items() if value != app._mapping[name]}  # noqa: SLF001  public

    def _source(self, repository: str | None, clone_url: str | None) -> dict[str, str | None]:
        """Where the code comes from. A URL that somebody gives must be allowed; GitHub's is the default."""
        if clone_url is not None:
            rules.clone_url(clone_url)
            self._policy.check(clone_url)
        elif repository is not None:
            clone_url = rules.default_clone_url(repository)
        return {
            "repository": repository,
            "repository_key": None if repository is None else repository_key(repository),
            "clone_url": clone_url,
        }

    async def _remove(self, conn: AsyncConnection, *, name_or_id: str, caller: Caller) -> str:
        app = await find(conn, name_or_id=name_or_id, access=caller.access, own=caller.team, lock=True)
        if app.state == "removing":
            return str(app.removal_saga_id)
        saga_id = new_id()
        await conn.execute(
            update(apps).where(apps.c.app_id == app.app_id).values(state="removing", removal_saga_id=saga_id)
        )
        await self._send(conn, AppRemovalRequested(app=app.name, requested_by=caller.name), app, saga_id)
        return saga_id

    async def _tell(self, conn: AsyncConnection, event: type[AppCreated | AppChanged], app: AppRow) -> None:
        """No saga is about it; its correlation id is the app's, which keeps the events of one app in order."""
        message = event(
            app=app.name,
            repository=app.repository,
            clone_url=app.clone_url,
            ref=app.ref,
            root=app.root,
            settings=app_settings.settings_of(app),
            observe_s=app.observe_s,
        )
        await self._send(conn, message, app, app.app_id)

    async def _send(self, conn: AsyncConnection, message: Event, app: AppRow, saga_id: str) -> None:
        made = envelope(
            message,
            source="webhook",
            saga_id=saga_id,
            app_id=app.app_id,
            team=app.team,
            app=app.name,
            traceparent=current_traceparent(),
        )
        await self._outbox.add(conn, [made])


def _must_be_active(app: AppRow) -> None:
    if app.state != "active":
        raise Conflict(f"The app {app.name} cannot be changed", why="it is being removed")


async def find(
    conn: AsyncConnection, *, name_or_id: str, access: Access, own: str | None = None, lock: bool = False
) -> AppRow:
    """Return the app of that name or id that was not removed; among several of one name that of the team `own`.

    Raises:
        NotFound: The teams have no such app.
        InvalidInput: Several teams have an app of that name, and `own` is none of them.
    """
    which: ColumnElement[bool] = (
        apps.c.app_id == name_or_id if rules.is_app_id(name_or_id) else apps.c.name_key == name_or_id
    )
    query = select(apps).where(which, apps.c.state != "removed", access.only(apps.c.team))
    rows = (await conn.execute(query.with_for_update() if lock else query)).all()
    rows = [row for row in rows if row.team == own] or rows
    if not rows:
        raise NotFound(f"There is no app {name_or_id[:60]!r}", todo="Run `knarr apps list` to list the apps.")
    if len(rows) > 1:
        raise InvalidInput(f"Several teams have an app {name_or_id[:60]!r}", todo="Use the app's id.")
    return rows[0]
