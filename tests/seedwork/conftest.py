"""A service's database with nothing but the kernel's tables, and messages to play with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from seedwork.tables import KernelTables, kernel_tables
from seedwork.unit_of_work import Database


@pytest.fixture
def metadata() -> MetaData:
    return MetaData()


@pytest.fixture
def tables(metadata: MetaData) -> KernelTables:
    return kernel_tables(metadata)


@pytest.fixture
async def db(tmp_path: Path, metadata: MetaData, tables: KernelTables) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/kernel.db")
    await database.open()
    async with database.engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
    yield database
    await database.close()
