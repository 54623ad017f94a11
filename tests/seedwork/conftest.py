"""A service's database with nothing but the kernel's tables, on SQLite and on a real MySQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from seedwork.tables import KernelTables, kernel_tables
from seedwork.testing.servers import database
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
    async with database(request.param, tmp_path, metadata) as found:
        yield found
