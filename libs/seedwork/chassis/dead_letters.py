"""Messages that could not be handled: looked at, and put on the bus again when the cause is gone.

Sending again takes the message out of the inbox's memory first, else it would pass for a duplicate. Other services that
have handled it already still know it, and do nothing.
"""

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy import Row, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.bus import Bus
from seedwork.chassis.auth import require
from seedwork.chassis.paging import Page, PagingQuery, page_of
from seedwork.errors import NotFound
from seedwork.messages import Envelope, rfc3339_ms
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, database_now_ms


class DeadLetter(BaseModel):
    """A message and why it could not be handled."""

    id: str
    at: str
    type: str
    saga_id: str
    error: str
    envelope: dict[str, Any]
    resent_at: str | None


def router(db: Database, tables: KernelTables, bus: Bus) -> APIRouter:
    """`GET /dead-letters`, `POST /dead-letters/{id}/resend`."""
    routes = APIRouter(prefix="/dead-letters", tags=["operation"])
    letters = tables.dead_letters

    @routes.get("", dependencies=[Depends(require("read"))], summary="Messages that could not be handled, newest first")
    async def show(paging: PagingQuery) -> Page[DeadLetter]:
        query = select(letters).order_by(letters.c.at_ms.desc(), letters.c.id.desc()).limit(paging.limit + 1)
        at_ms, last_id = paging.after("at_ms", int), paging.after("id", str)
        if at_ms is not None:
            query = query.where(tuple_(letters.c.at_ms, letters.c.id) < (at_ms, last_id))

        async def read(conn: AsyncConnection) -> list[Row[Any]]:
            return list((await conn.execute(query)).all())

        return page_of(
            await db.read(read), paging, key=lambda row: {"at_ms": row.at_ms, "id": row.id}, show=_dead_letter
        )

    @routes.post("/{letter_id}/resend", dependencies=[Depends(require("deploy"))], summary="Put it on the bus again")
    async def resend(letter_id: str) -> DeadLetter:
        letter = await db.read(lambda conn: _find(conn, letter_id))
        message = Envelope.from_json(letter.envelope)

        async def forget(conn: AsyncConnection) -> None:
            await conn.execute(delete(tables.inbox).where(tables.inbox.c.message_id == message.id))

        async def mark(conn: AsyncConnection) -> Row[Any]:
            now_ms = await database_now_ms(conn)
            same = (letters.c.id == letter_id) & (letters.c.at_ms == letter.at_ms)  # else it failed again meanwhile
            await conn.execute(update(letters).where(same).values(resent_ms=now_ms))
            return await _find(conn, letter_id)

        await db.write(forget)
        await bus.publish([message])
        return _dead_letter(await db.write(mark))

    async def _find(conn: AsyncConnection, letter_id: str) -> Row[Any]:
        row = (await conn.execute(select(letters).where(letters.c.id == letter_id))).one_or_none()
        if row is None:
            raise NotFound(
                f"There is no dead letter {letter_id!r}",
                todo="Run `knarr dead-letters --service SERVICE` to list them.",
            )
        return row

    return routes


def _dead_letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        id=row.id,
        at=rfc3339_ms(row.at_ms),
        type=row.type,
        saga_id=row.saga_id,
        error=row.error,
        envelope=Envelope.from_json(row.envelope).to_dict(),
        resent_at=rfc3339_ms(row.resent_ms) if row.resent_ms is not None else None,
    )
