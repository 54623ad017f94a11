"""A service's database with nothing but the kernel's tables, on SQLite and on a real MySQL."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from seedwork.tables import KernelTables, kernel_tables
from seedwork.testing.servers import mysql_schema
from seedwork.unit_of_work import Database


@pytest.fixture
def metadata() -> MetaData:
    return MetaData()


@pytest.fixture
def tables(metadata: MetaData) -> KernelTables:
    return kernel_tables(metadata)


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.stack("MYSQL_URL"))])
async def db(
    request: pytest.FixtureRequest, tmp_path: Path, metadata: MetaData, tables: KernelTables
) -> AsyncIterator[Database]:
    async with contextlib.AsyncExitStack() as stack:
        url = f"sqlite+aiosqlite:///{tmp_path}/kernel.db"
        if request.param == "mysql":
            url = await stack.enter_async_context(mysql_schema())
        database = Database(url)
        await database.open()
        stack.push_async_callback(database.close)
        async with database.engine.begin() as conn:
            await conn.run_sync(metadata.create_all)
        yield database
