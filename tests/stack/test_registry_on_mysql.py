"""What `registry` asks MySQL: the server's plan must not decide what is found."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.clock import SystemClock
from seedwork.testing.servers import database
from seedwork.unit_of_work import Database
from services.registry.models import image_references, images, metadata
from services.registry.references import References

pytestmark = pytest.mark.stack("MYSQL_URL")

APPS = [f"app-{number}" for number in range(3)]
KEPT = 5


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """Three repositories of five images, each held by a saga; the server has counted them."""
    async with database("mysql", tmp_path, metadata) as db:
        async with db.engine.begin() as conn:
            for app in APPS:
                for number in range(KEPT):
                    await _publish(conn, app, number)
        async with db.engine.connect() as conn:
            await conn.execute(text("ANALYZE TABLE images, image_references"))
        yield db


async def _publish(conn: AsyncConnection, app: str, number: int) -> None:
    image = {"repository": app, "digest": f"sha256:{number}", "app_id": app}
    more = {"app": app, "team": "default", "size_bytes": 1, "published_ms": number}
    await conn.execute(insert(images).values(**image, **more))
    await conn.execute(insert(image_references).values(**image, saga_id=f"saga-{number}", taken_ms=number))


@pytest.mark.parametrize("number", range(KEPT))
async def test_an_image_that_nobody_holds_is_found_wherever_it_stands(db: Database, number: int) -> None:
    """MySQL 9.7 answered a DISTINCT with a NOT EXISTS by looking at the first image of each repository only."""
    references = References(db, SystemClock(), shared=True)
    assert await references.repositories_to_collect() == []
    let_go = delete(image_references).where(
        image_references.c.repository == APPS[1], image_references.c.digest == f"sha256:{number}"
    )
    await db.write(lambda conn: conn.execute(let_go))
    assert await references.repositories_to_collect() == [APPS[1]]
