"""Lists: `{items, next_cursor}`, walked with `?cursor=&limit=`.

A cursor is opaque to the client: base64url of a small JSON object with the sort key of the last item seen. Pages stay
right while rows are added or removed, since the next one begins *after a key*, never at an offset.

    @router.get("/things")
    async def things(paging: PagingQuery) -> Page[Thing]:
        last = paging.after("id", str)                      # None on the first page
        rows = ... WHERE id > last ORDER BY id LIMIT paging.limit + 1
        return page_of(rows, paging, key=lambda row: {"id": row.id}, show=thing)
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Depends, Query
from pydantic import BaseModel

from seedwork.errors import InvalidInput

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_INTEGER = 2**63 - 1
"""The largest number that every database keeps; larger ones are refused where they come in."""

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", str, int)


class Page(BaseModel, Generic[T]):
    """A part of a list; `next_cursor` is null on the last page."""

    items: list[T]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Paging:
    """What the client asked for."""

    limit: int = DEFAULT_LIMIT
    """Items a page, 1 to 200. Ask the database for one more, so that `page_of` knows whether there is a next page."""
    position: Mapping[str, Any] = field(default_factory=dict)
    """The sort key of the last item seen; empty on the first page."""

    def after(self, name: str, kind: type[K]) -> K | None:
        """One part of the sort key of the last item seen; None on the first page.

        Raises:
            InvalidInput: The cursor was not made by this list.
        """
        if not self.position:
            return None
        value = self.position.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _bad_cursor()
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise _bad_cursor()
        return value


async def paging(
    cursor: Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items a page.")] = DEFAULT_LIMIT,
) -> Paging:
    """The dependency behind `PagingQuery`."""
    return Paging(limit=limit, position=_decode(cursor) if cursor else {})


PagingQuery = Annotated[Paging, Depends(paging)]


def page_of(
    rows: Sequence[R],
    paging: Paging,
    *,
    key: Callable[[R], Mapping[str, str | int]],
    show: Callable[[R], T],
) -> Page[T]:
    """A page from up to `paging.limit + 1` rows.

    Args:
        rows: In the list's order, beginning after `paging.position`.
        paging: What the client asked for.
        key: The sort key of a row; what `paging.after` gives back for the next page.
        show: The row as the client sees it.
    """
    kept = rows[: paging.limit]
    more = len(rows) > len(kept)
    return Page(items=[show(row) for row in kept], next_cursor=_encode(key(kept[-1])) if more and kept else None)


def _encode(position: Mapping[str, str | int]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(dict(position))).rstrip(b"=").decode()


def _decode(cursor: str) -> Mapping[str, Any]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = orjson.loads(raw)
    except (binascii.Error, ValueError) as error:
        raise _bad_cursor() from error
    if not isinstance(position, dict) or not position:
        raise _bad_cursor()
    return position


def _bad_cursor() -> InvalidInput:
    return InvalidInput(
        "The cursor is not one of this list",
        todo="Use `next_cursor` of the page before, or leave `cursor` out to begin again.",
    )
