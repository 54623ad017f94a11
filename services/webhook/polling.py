"""Pushes whose webhook never arrived: each app's ref is asked for, and a tip that nobody asked to deploy is deployed.

Once: the tip is compared with what was asked for last, in a transaction that holds the app; if anything was asked for
while git was answering, the answer is old and the next one counts. A webhook that comes later finds the poller's
deployment (`intake.py`). A push back to an earlier commit is a new tip, and is deployed again.
Apps are asked at moments of their own, spread by their ids; one that fails is asked ever less often, at least hourly.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from seedwork.outbox import Outbox
from seedwork.unit_of_work import Database
from services.webhook.deployments import LOCKED_APP, Wanted, request_deployment
from services.webhook.models import apps
from services.webhook.ports import RemoteRefs

_LONGEST_PAUSE_S = 3600.0
_LONGEST_SLEEP_S = 5.0
"""Another replica may have made an app meanwhile: look at the table at least so often."""
_SHORTEST_SLEEP_S = 0.1
_BATCH = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an app is asked: every `poll_s` seconds, at a moment within them that its id says."""

    poll_s: float
    """0: never."""

    def first(self, app_id: str, now_ms: int) -> int:
        """For an app that is new or has changed: half a period later at the earliest, so that its webhook can come."""
        return self._slot(app_id, now_ms + self._period_ms // 2)

    def next(self, app_id: str, now_ms: int, failures: int = 0) -> int:
        """After an answer, or after so many failures in a row: 2, 4, 8 … periods later, at most an hour."""
        longest_ms = max(self._period_ms, int(_LONGEST_PAUSE_S * 1000))
        pause_ms = min(self._period_ms * 2 ** min(failures, 16), longest_ms) if failures else 0
        return self._slot(app_id, now_ms + pause_ms)

    @property
    def _period_ms(self) -> int:
        return max(int(self.poll_s * 1000), 1)

    def _slot(self, app_id: str, after_ms: int) -> int:
        phase = int.from_bytes(hashlib.sha256(app_id.encode()).digest()[:8]) % self._period_ms
        return after_ms + self._period_ms - (after_ms - phase) % self._period_ms


class Poller:
    """Asks the repositories of all apps, for ever."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        *,
        refs: RemoteRefs,
        schedule: Schedule,
        at_once: int,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._refs = refs
        self._schedule = schedule
        self._at_once = at_once

    async def run(self) -> None:
        """Round after round; returns at once where asking is turned off."""
        if not self._schedule.poll_s:
            return
        await self._db.write(self._apply_period)
        while True:
            await self.round()
            next_ms = await self._db.read(_earliest)
            longest_s = min(_LONGEST_SLEEP_S, self._schedule.poll_s)
            wait_s = longest_s if next_ms is None else (next_ms - self._clock.now_ms()) / 1000
            await self._clock.sleep(max(min(wait_s, longest_s), _SHORTEST_SLEEP_S))

    async def round(self) -> None:
        """Ask for every app that is due, several at once."""
        due = await self._db.read(self._due)
        free = asyncio.Semaphore(self._at_once)

        async def one(app: Row[Any]) -> None:
            async with free:
                await self.ask(app)

        async with asyncio.TaskGroup() as group:
            for app in due:
                group.create_task(one(app))

    async def ask(self, app: Row[Any]) -> None:
        """Ask for one app's ref, unless another replica does, and act on the answer."""
        if not await self._db.write(lambda conn: self._claim(conn, app)):
            return
        asked_ms = self._clock.now_ms()
        try:
            tip = await self._refs.tip(app.clone_url, app.ref)
        except KnarrError as error:
            await self._db.write(partial(self._failed, app=app, error=error))
            if error.message != app.poll_error:
                log.warning("a repository cannot be asked", app=app.name, error=error.message)
            return
        found = await self._db.write(partial(self._answered, asked=app, tip=tip, asked_ms=asked_ms))
        if found is not None:
            log.info("a push without a webhook was found", app=app.name, commit=tip, saga_id=found)

    async def _apply_period(self, conn: AsyncConnection) -> None:
        """The period may have been longer before the restart."""
        latest_ms = self._clock.now_ms() + int(self._schedule.poll_s * 1000)
        later = apps.c.next_poll_ms > latest_ms
        await conn.execute(update(apps).where(later, apps.c.poll_failures == 0).values(next_poll_ms=latest_ms))

    async def _due(self, conn: AsyncConnection) -> Sequence[Row[Any]]:
        query = select(apps).where(*_ASKED, apps.c.next_poll_ms <= self._clock.now_ms())
        return (await conn.execute(query.order_by(apps.c.next_poll_ms).limit(_BATCH))).all()

    async def _claim(self, conn: AsyncConnection, app: Row[Any]) -> bool:
        next_ms = self._schedule.next(app.app_id, self._clock.now_ms())
        claimed = await conn.execute(
            update(apps)
            .where(apps.c.app_id == app.app_id, apps.c.next_poll_ms == app.next_poll_ms)
            .values(next_poll_ms=next_ms)
        )
        return claimed.rowcount == 1

    async def _failed(self, conn: AsyncConnection, *, app: Row[Any], error: KnarrError) -> None:
        failures = app.poll_failures + 1
        next_ms = self._schedule.next(app.app_id, self._clock.now_ms(), failures)
        await conn.execute(
            update(apps)
            .where(apps.c.app_id == app.app_id)
            .values(poll_failures=failures, poll_error=error.message[:2000], next_poll_ms=next_ms)
        )

    async def _answered(self, conn: AsyncConnection, *, asked: Row[Any], tip: str, asked_ms: int) -> str | None:
        """Write the tip down; the saga's id, if it is one that nobody asked to deploy."""
        app = (await conn.execute(LOCKED_APP, {"wanted_id": asked.app_id})).one()
        if (app.state, app.clone_url, app.ref) != ("active", asked.clone_url, asked.ref):
            return None
        saga_id = None
        values: dict[str, Any] = {"poll_failures": 0, "poll_error": None}
        if app.held_ms is not None:
            if tip not in (app.tip_commit, app.last_commit):
                values["held_commit"] = tip
        elif app.last_number == asked.last_number and tip != app.tip_commit:
            values["tip_commit"] = tip
            if tip != app.last_commit:
                wanted = Wanted(commit=tip, ref=app.ref, trigger="poll", requested_by="poll")
                saga_id = await request_deployment(conn, self._outbox, app, wanted, is_tip=True)
                values |= {"polled_commit": tip, "polled_saga_id": saga_id, "polled_ms": asked_ms}
        if any(app._mapping[name] != value for name, value in values.items()):  # noqa: SLF001  public, despite its name
            await conn.execute(update(apps).where(apps.c.app_id == app.app_id).values(values))
        return saga_id


_ASKED = (apps.c.state == "active", apps.c.clone_url.is_not(None))


async def _earliest(conn: AsyncConnection) -> int | None:
    found: int | None = await conn.scalar(select(func.min(apps.c.next_poll_ms)).where(*_ASKED))
    return found
