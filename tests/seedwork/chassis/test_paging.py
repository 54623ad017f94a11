import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedwork.chassis.paging import Page, Paging, PagingQuery, page_of, paging
from seedwork.chassis.service import Service
from seedwork.errors import InvalidInput
from seedwork.testing.http import running


def _cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


def _numbers(query: Paging, count: int) -> Page[int]:
    last = query.after("n", int)
    rows = [n for n in range(count) if last is None or n > last][: query.limit + 1]
    return page_of(rows, query, key=lambda n: {"n": n}, show=lambda n: n)


@given(count=st.integers(0, 30), limit=st.integers(1, 10))
async def test_walking_the_cursors_gives_each_item_once_in_order(count: int, limit: int) -> None:
    """Also when the last page is exactly full; no page is empty but the first of an empty list."""
    seen: list[int] = []
    cursor: str | None = None
    while True:
        page = _numbers(await paging(cursor=cursor, limit=limit), count)
        assert len(page.items) <= limit
        assert page.items or not seen
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(count))


@pytest.mark.parametrize(
    "cursor",
    [
        "!",
        "a",
        "abc",
        "äöü",
        "e30",
        _cursor([]),
        _cursor("text"),
        _cursor(7),
        _cursor(None),
        _cursor({"m": 1}),
        _cursor({"n": "1"}),
        _cursor({"n": True}),
        _cursor({"n": None}),
        _cursor({"n": 1.5}),
        _cursor({"n": [1]}),
    ],
)
async def test_a_cursor_that_was_not_ours_is_refused(cursor: str) -> None:
    """A 400 that says what to do, never a crash or a wrong page."""
    with pytest.raises(InvalidInput, match="next_cursor"):
        _numbers(await paging(cursor=cursor, limit=5), 10)


@given(st.text(max_size=60))
async def test_no_text_breaks_the_cursor(cursor: str) -> None:
    """Whatever is sent: the first page, or refused."""
    try:
        page = _numbers(await paging(cursor=cursor, limit=5), 10)
    except InvalidInput:
        return
    assert page.items == [0, 1, 2, 3, 4] or cursor


async def test_the_limit_has_limits(service: Service) -> None:
    """1 to 200, 50 if not said."""

    @service.app.get("/numbers")
    async def numbers(query: PagingQuery) -> Page[int]:
        return _numbers(query, 500)

    async with running(service.app) as client:
        assert len((await client.get("/numbers")).json()["items"]) == 50
        assert len((await client.get("/numbers?limit=200")).json()["items"]) == 200
        for limit in ("0", "201", "-1", "x"):
            response = await client.get("/numbers", params={"limit": limit})
            assert response.status_code == 400
            assert response.json()["errors"][0]["field"] == "query.limit"
        assert (await client.get("/numbers?cursor=nonsense")).json()["code"] == "invalid"
