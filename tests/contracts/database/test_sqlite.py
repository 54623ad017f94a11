"""SQLite keeps the contract of the database, and is durable when it answers."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.testing.database_contract import DatabaseContract
from seedwork.unit_of_work import Database


class TestSqlite(DatabaseContract):
    @pytest.fixture
    async def url(self, tmp_path: Path) -> str:
        return f"sqlite+aiosqlite:///{tmp_path}/contract.db"

    async def test_a_commit_is_durable_when_it_is_answered(self, db: Database) -> None:
        """WAL and synchronous=FULL (2)."""

        async def pragmas(conn: AsyncConnection) -> tuple[str, int]:
            mode = (await conn.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
            sync = (await conn.exec_driver_sql("PRAGMA synchronous")).scalar_one()
            return mode, sync

        assert await db.write(pragmas) == ("wal", 2)
