"""The relay forgets what it has sent, also when the database does not let it at first."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.adapters.in_process import InProcessBus
from seedwork.clock import SystemClock
from seedwork.errors import Unavailable
from seedwork.messages import envelope, new_id
from seedwork.outbox import Outbox, Relay
from seedwork.tables import KernelTables
from seedwork.testing.bakery import Bake
from seedwork.unit_of_work import Database

SOON_S = 60.0


async def test_rows_that_could_not_be_forgotten_go_later(
    db: Database, tables: KernelTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another message to remind the relay of them."""
    bus, clock = InProcessBus(), SystemClock()
    await bus.open()
    outbox = Outbox(tables, clock)
    relay = Relay(db, tables, bus, clock, outbox, orphan_s=0.06)
    forget, armed, refused = relay._forget_rows, asyncio.Event(), asyncio.Event()

    async def refuse_once(conn: AsyncConnection, sent: Sequence[str]) -> Any:
        if not armed.is_set() or refused.is_set():
            return await forget(conn, sent)
        refused.set()
        raise Unavailable("The database does not do it", why="the test wants it so")

    async def send() -> None:
        made = envelope(Bake(), source="test", saga_id=new_id(), app_id=new_id(), step="bake")
        await db.write(lambda conn: outbox.add(conn, [made]))

    async def forgotten() -> None:
        async with asyncio.timeout(SOON_S):
            while await relay.backlog():  # noqa: ASYNC110  a table tells nobody
                await asyncio.sleep(0.01)

    monkeypatch.setattr(relay, "_forget_rows", refuse_once)
    running = asyncio.create_task(relay.run())
    await send()
    await forgotten()  # from here on the relay looks at its memory only
    armed.set()
    await send()
    async with asyncio.timeout(SOON_S):
        await refused.wait()
    await forgotten()
    running.cancel()
    await asyncio.wait([running])
