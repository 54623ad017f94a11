"""Which secrets may have signed a webhook: the apps in memory, so that judging a signature costs no query.

It may be behind the database: another replica may have changed an app. Nothing is decided from it alone. The
transaction that stores a delivery compares `(app_id, secret_version)` of the rows with the picture in memory and says
when the picture is old; and a signature that nobody verifies makes us look again, at most once in `RELOAD_MS`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.unit_of_work import Database
from services.webhook.models import apps
from services.webhook.vault import Vault

RELOAD_MS = 1_000
"""Guessing signatures costs one query a second, not one a guess."""


@dataclass(frozen=True, slots=True)
class Holder:
    """An app that holds a secret."""

    name: str
    team: str
    repository_key: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The apps that were there at one moment; removed ones are not among them."""

    secrets: Mapping[tuple[str, int], bytes] = field(default_factory=dict)
    """By app id and secret version."""
    by_repository: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    """The secrets of the apps of a repository, by the repository's key."""
    teams: Mapping[bytes, str] = field(default_factory=dict)
    """Every distinct secret, and a team that has it."""
    holders: Mapping[bytes, tuple[Holder, ...]] = field(default_factory=dict)
    """The apps by their secret, as far as they have a repository."""

    @classmethod
    def of(cls, known: Iterable[tuple[Row[*tuple[Any, ...]], bytes]]) -> Self:
        """From each app's row and its secret."""
        secrets: dict[tuple[str, int], bytes] = {}
        by_repository: defaultdict[str, set[bytes]] = defaultdict(set)
        teams: dict[bytes, str] = {}
        holders: defaultdict[bytes, list[Holder]] = defaultdict(list)
        for app, secret in known:
            secrets[app.app_id, app.secret_version] = secret
            teams.setdefault(secret, app.team)
            if app.repository_key is not None:
                by_repository[app.repository_key].add(secret)
                holders[secret].append(Holder(app.name, app.team, app.repository_key))
        return cls(
            secrets,
            {key: frozenset(each) for key, each in by_repository.items()},
            teams,
            {secret: tuple(each) for secret, each in holders.items()},
        )

    def candidates(self, repository_keys: Iterable[str]) -> frozenset[bytes]:
        """The secrets of the apps of these repositories; none where no app has one of them."""
        found = [self.by_repository[each] for each in repository_keys if each in self.by_repository]
        return frozenset().union(*found)

    def others(self, repository_keys: Iterable[str]) -> Sequence[bytes]:
        """Every distinct secret, those first whose repository shares its owner or its name with one of these."""
        parts = {part for key in repository_keys for part in _parts(key)}
        near = {
            secret
            for secret, apps in self.holders.items()
            if any(not parts.isdisjoint(_parts(app.repository_key)) for app in apps)
        }
        return sorted(self.teams, key=lambda secret: (secret not in near, secret))

    def renamed(self, secrets: Iterable[bytes]) -> Sequence[Holder]:
        """The apps that hold these secrets, where all of them have one repository: it may have another name now."""
        found = [app for secret in secrets for app in self.holders.get(secret, ())]
        return found if len({app.repository_key for app in found}) == 1 else ()


def _parts(repository_key: str) -> tuple[str, str]:
    """The owner with its slash, and the name with its slash: an owner is no name."""
    owner, _, name = repository_key.partition("/")
    return f"{owner}/", f"/{name}"


class Directory:
    """Keeps a picture of the apps."""

    def __init__(self, db: Database, vault: Vault, clock: Clock) -> None:
        self._db = db
        self._vault = vault
        self._clock = clock
        self._decrypted: dict[str, bytes] = {}
        self._picture: Picture | None = None
        self._read_ms = 0
        self._generation = 0
        self._reading = asyncio.Lock()

    async def picture(self) -> Picture:
        """The apps as far as this process knows."""
        return self._picture or await self._load(None)

    async def newer(self, old: Picture) -> Picture:
        """The apps as they are now: after a transaction has seen that `old` is behind."""
        return await self._load(old)

    async def looked_again(self, old: Picture) -> Picture:
        """A newer picture, or `old` itself if we have looked a moment ago."""
        if self._picture is old and self._clock.now_ms() - self._read_ms < RELOAD_MS:
            return old
        return await self._load(old)

    def forget(self) -> None:
        """An app has changed: look into the database at the next webhook."""
        self._generation += 1
        self._picture = None

    async def _load(self, old: Picture | None) -> Picture:
        async with self._reading:
            if self._picture is not None and self._picture is not old:
                return self._picture  # somebody else has just looked
            generation, began_ms = self._generation, self._clock.now_ms()
            rows = await self._db.read(_rows)
            self._decrypted = {row.webhook_secret: self._decrypt(row.webhook_secret) for row in rows}
            picture = Picture.of((row, self._decrypted[row.webhook_secret]) for row in rows)
            if generation == self._generation:  # else an app has changed while we looked: good for once
                self._picture, self._read_ms = picture, began_ms
            return picture

    def _decrypt(self, kept: str) -> bytes:
        known = self._decrypted.get(kept)
        return self._vault.decrypt(kept) if known is None else known


async def _rows(conn: AsyncConnection) -> Sequence[Row[*tuple[Any, ...]]]:
    columns = (
        apps.c.app_id,
        apps.c.team,
        apps.c.secret_version,
        apps.c.repository_key,
        apps.c.webhook_secret,
        apps.c.name,
    )
    return (await conn.execute(select(*columns).where(apps.c.state != "removed"))).all()
