"""Messages that could not be handled: looked at, and put on the bus again when the cause is gone.

Sending again takes the message out of the inbox's memory first, else it would pass for a duplicate. Other services that
have handled it already still know it, and do nothing.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Row, String, delete, select, true, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from seedwork.access import Access, Caller
from seedwork.bus import Bus
from seedwork.chassis.auth import require
from seedwork.chassis.paging import Page, PagingQuery, page_of
from seedwork.errors import NotFound
from seedwork.messages import Envelope, rfc3339_ms
from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database, database_now_ms


class team_of_envelope(GenericFunction[str]):  # noqa: N801  SQLAlchemy: the name of an SQL function
    """The team in an envelope's JSON. Dead letters are few, so that no column and no index is needed."""

    type = String()
    inherit_cache = True


@compiles(team_of_envelope, "sqlite")
def _on_sqlite(element: team_of_envelope, compiler: SQLCompiler, **options: Any) -> str:
    return f"JSON_EXTRACT({compiler.process(element.clauses, **options)}, '$.team')"


@compiles(team_of_envelope, "mysql")
def _on_mysql(element: team_of_envelope, compiler: SQLCompiler, **options: Any) -> str:
    extracted = f"JSON_EXTRACT({compiler.process(element.clauses, **options)}, '$.team')"
    return f"JSON_UNQUOTE({extracted}) COLLATE utf8mb4_bin"  # of JSON: else it would not compare with a text


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

    @routes.get("", summary="Messages that could not be handled, newest first")
    async def show(paging: PagingQuery, caller: Annotated[Caller, Depends(require("read"))]) -> Page[DeadLetter]:
        query = select(letters).where(_visible(caller.access))
        query = query.order_by(letters.c.at_ms.desc(), letters.c.id.desc()).limit(paging.limit + 1)
        at_ms, last_id = paging.after("at_ms", int), paging.after("id", str)
        if at_ms is not None:
            query = query.where(tuple_(letters.c.at_ms, letters.c.id) < (at_ms, last_id))

        async def read(conn: AsyncConnection) -> list[Row[Any]]:
            return list((await conn.execute(query)).all())

        return page_of(
            await db.read(read), paging, key=lambda row: {"at_ms": row.at_ms, "id": row.id}, show=_dead_letter
        )

    @routes.post("/{letter_id}/resend", summary="Put it on the bus again")
    async def resend(letter_id: str, caller: Annotated[Caller, Depends(require("deploy"))]) -> DeadLetter:
        letter = await db.read(lambda conn: _find(conn, letter_id, caller.access))
        message = Envelope.from_json(letter.envelope)

        async def forget(conn: AsyncConnection) -> None:
            await conn.execute(delete(tables.inbox).where(tables.inbox.c.message_id == message.id))

        async def mark(conn: AsyncConnection) -> Row[Any]:
            now_ms = await database_now_ms(conn)
            same = (letters.c.id == letter_id) & (letters.c.at_ms == letter.at_ms)  # else it failed again meanwhile
            await conn.execute(update(letters).where(same).values(resent_ms=now_ms))
            return await _find(conn, letter_id, caller.access)

        await db.write(forget)
        await bus.publish([message])
        return _dead_letter(await db.write(mark))

    def _visible(access: Access) -> ColumnElement[bool]:
        return true() if access.teams is None else access.only(team_of_envelope(letters.c.envelope))

    async def _find(conn: AsyncConnection, letter_id: str, access: Access) -> Row[Any]:
        query = select(letters).where(letters.c.id == letter_id, _visible(access))
        row = (await conn.execute(query)).one_or_none()
        if row is None:
            raise NotFound(
                f"There is no dead letter {letter_id[:60]!r}",
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
