import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.chassis import migrate
from seedwork.errors import Misconfigured
from seedwork.tables import kernel_tables
from seedwork.testing.migrations import assert_migrations_match
from seedwork.unit_of_work import Database, opened
from tests.seedwork.chassis.conftest import MIGRATIONS
from tests.seedwork.chassis.dummy import models


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/a folder/service.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the dummy's migrations, to be changed."""
    return Path(copytree(MIGRATIONS, tmp_path / "migrations", ignore=ignore_patterns("__pycache__")))


async def _tables(db: Database) -> set[str]:
    def names(connection: Connection) -> set[str]:
        return set(inspect(connection).get_table_names())

    return await db.read(lambda conn: conn.run_sync(names))


async def _revision(db: Database) -> str:
    async def look(conn: AsyncConnection) -> str:
        return str((await conn.execute(text("SELECT version_num FROM alembic_version"))).scalar_one())

    return await db.read(look)


async def test_the_migrations_make_what_the_code_expects() -> None:
    """The frozen kernel tables of the first release and everything after, against `tables.py`."""
    await assert_migrations_match(models.metadata, MIGRATIONS)


async def test_a_forgotten_migration_is_noticed() -> None:
    """The check can fail: a column and a table more than the migrations make."""
    changed = MetaData()
    kernel_tables(changed)
    Table("things", changed, Column("id", Integer, primary_key=True), Column("colour", Integer))
    Table("more", changed, Column("id", Integer, primary_key=True))
    with pytest.raises(AssertionError) as caught:
        await assert_migrations_match(changed, MIGRATIONS)
    for difference in ("add_table", "add_column", "remove_column", "modify_type", "remove_index"):
        assert difference in str(caught.value)


async def test_an_empty_database_is_brought_up_to_date(url: str) -> None:
    """And once more: nothing to do."""
    async with opened(url) as db:
        await migrate.upgrade(db, MIGRATIONS)
        await migrate.upgrade(db, MIGRATIONS)
        assert {"inbox", "outbox", "jobs", "dead_letters", "tokens", "things"} <= await _tables(db)
        assert await _revision(db) == "0002"


async def test_a_database_that_is_up_to_date_starts_without_alembic(url: str) -> None:
    """Each start but the first is quick, and small in memory."""
    async with opened(url) as db:
        await migrate.upgrade(db, MIGRATIONS)
    script = f"""
        import asyncio, sys
        from pathlib import Path
        from seedwork.chassis.migrate import upgrade
        from seedwork.unit_of_work import opened

        async def main():
            async with opened({url!r}) as db:
                await upgrade(db, Path({str(MIGRATIONS)!r}))
            assert not [name for name in sys.modules if name.startswith(("alembic", "mako"))]

        asyncio.run(main())
    """
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


async def test_several_processes_may_start_at_once(url: str) -> None:
    """Whoever comes second finds the work done."""
    async with opened(url) as first, opened(url) as second, opened(url) as third:
        await asyncio.gather(*[migrate.upgrade(db, MIGRATIONS) for db in (first, second, third)])
        assert await _revision(first) == "0002"


async def test_a_migration_that_fails_leaves_nothing(url: str, folder: Path) -> None:
    """SQLite does DDL in the transaction: the next try begins where this one began."""
    broken = folder / "versions" / "0003_broken.py"
    broken.write_text(
        "from alembic import op\nrevision = '0003'\ndown_revision = '0002'\n\n"
        "def upgrade():\n    op.execute('CREATE TABLE half (id INTEGER)')\n    op.execute('nonsense')\n"
    )
    async with opened(url) as db:
        with pytest.raises(Exception, match="nonsense"):
            await migrate.upgrade(db, folder)
        assert await _tables(db) == set()
        broken.unlink()
        await migrate.upgrade(db, folder)
        assert await _revision(db) == "0002"


async def test_a_database_of_a_newer_version_is_left_alone(url: str, folder: Path) -> None:
    """The error says how to go on."""
    async with opened(url) as db:
        await migrate.upgrade(db, folder)
        (folder / "versions" / "0002_second.py").unlink()
        with pytest.raises(Misconfigured, match=r"newer version.*Install that version"):
            await migrate.upgrade(db, folder)


def test_a_fork_in_the_migrations_is_an_error(folder: Path) -> None:
    """Two people added one at the same time: somebody must put them in line."""
    (folder / "versions" / "0002_other.py").write_text('revision = "0002b"\ndown_revision = "0001"\n')
    with pytest.raises(Misconfigured, match=r"one line of migrations: its ends are \['0002', '0002b'\]"):
        migrate.revisions(folder)


def test_a_folder_without_migrations_is_an_error(tmp_path: Path) -> None:
    """A wrong path must not mean an empty database."""
    with pytest.raises(Misconfigured, match="one line of migrations"):
        migrate.revisions(tmp_path)


def test_revisions_are_read_however_alembic_writes_them(tmp_path: Path) -> None:
    """With annotations, as its template does, and without."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "a.py").write_text("revision: str = 'aaa'\ndown_revision: str | None = None\n")
    (tmp_path / "versions" / "b.py").write_text('revision = "bbb"\ndown_revision: Union[str, None] = "aaa"\n')
    assert migrate.revisions(tmp_path) == ("bbb", frozenset({"aaa", "bbb"}))
