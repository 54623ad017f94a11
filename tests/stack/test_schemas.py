"""Each service's schema on MySQL: made and migrated by one command, looked at by the services."""

import asyncio
import importlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from knarr.databases import migrations_of, upgrade_all
from knarr.home import Home
from seedwork.chassis import migrate
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.errors import KnarrError, Misconfigured
from seedwork.messages import new_id
from seedwork.testing.http import running
from seedwork.testing.migrations import assert_migrations_match
from seedwork.testing.servers import mysql_schema
from seedwork.unit_of_work import opened
from services.registry.app import create_app
from services.registry.settings import RegistrySettings

pytestmark = pytest.mark.stack("MYSQL_URL", "MYSQL_ROOT_URL")


@pytest.mark.parametrize("service", SERVICE_PORTS)
async def test_the_migrations_make_the_tables_of_the_code_on_mysql_too(service: str) -> None:
    """Types, keys, indexes and nulls."""
    models = importlib.import_module(f"services.{service}.models")
    async with mysql_schema() as url:
        await assert_migrations_match(models.metadata, migrations_of(service), url=url)


@pytest.fixture
async def template(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """`KNARR_DATABASE_URL` for services whose schemas and users are not there yet; gone afterwards."""
    prefix = f"paas_{new_id().replace('-', '')[-10:]}"
    root_url = os.environ["MYSQL_ROOT_URL"]
    server = make_url(root_url)
    url = f"mysql+asyncmy://{prefix}_{{service}}:p%40ss'w%2Ford@{server.host}:{server.port}/{prefix}_{{service}}"
    monkeypatch.setenv("KNARR_DATABASE_URL", url)
    monkeypatch.setenv("KNARR_DATABASE_ADMIN_URL", root_url)
    yield url
    for service in SERVICE_PORTS:
        await on_server(root_url, f"DROP DATABASE IF EXISTS `{prefix}_{service}`")
        await on_server(root_url, f"DROP USER IF EXISTS '{prefix}_{service}'@'%'")


async def test_one_command_makes_schema_and_user_of_each_service_and_may_be_repeated(
    template: str, tmp_path: Path
) -> None:
    """Twice, and by two at once; a service's user sees its own schema and no other."""
    home = Home(tmp_path)
    first, second = await asyncio.gather(
        upgrade_all(home, ["registry", "builder"]), upgrade_all(home, ["registry", "builder"])
    )
    assert first == second == await upgrade_all(home, ["registry", "builder"])
    builder = template.replace("{service}", "builder")
    async with opened(builder) as db:
        schemas = await db.read(lambda conn: conn.scalars(text("SHOW DATABASES LIKE 'paas%'")))
        assert list(schemas) == [make_url(builder).database]


async def test_a_service_refuses_to_start_on_a_schema_that_is_not_ready(template: str, tmp_path: Path) -> None:
    """No schema, an empty one, one of a newer version: each says what to do, and nobody migrates behind your back."""
    settings = RegistrySettings(home=tmp_path)
    assert "knarr db upgrade" in await refusal(settings)
    await upgrade_all(Home(tmp_path), ["registry"])
    async with running(create_app(settings)) as client:
        assert (await client.get("/readyz")).status_code == 200
    async with opened(template.replace("{service}", "registry")) as db:
        await db.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
        assert "newer version" in await refusal(settings)
        await db.write(lambda conn: conn.execute(text("DELETE FROM alembic_version")))
        assert "this version of knarr needs revision" in await refusal(settings)


async def test_a_first_migration_that_was_interrupted_is_begun_anew(tmp_path: Path) -> None:
    """MySQL keeps the tables that were made; without a revision nobody has used them."""
    async with mysql_schema() as url, opened(url) as db:
        await db.write(lambda conn: conn.execute(text("CREATE TABLE inbox (message_id VARCHAR(36) PRIMARY KEY)")))
        await migrate.upgrade(db, migrations_of("registry"))
        head, _ = migrate.revisions(migrations_of("registry"))
        assert (await db.read(lambda conn: conn.scalar(text("SELECT version_num FROM alembic_version")))) == head


async def test_tables_of_somebody_else_are_not_touched() -> None:
    """They have rows, and no revision of ours."""
    async with mysql_schema() as url, opened(url) as db:
        await db.write(lambda conn: conn.execute(text("CREATE TABLE customers (name VARCHAR(36) PRIMARY KEY)")))
        await db.write(lambda conn: conn.execute(text("INSERT INTO customers VALUES ('ingrid')")))
        with pytest.raises(Misconfigured, match="customers"):
            await migrate.upgrade(db, migrations_of("registry"))
        assert await db.read(lambda conn: conn.scalar(text("SELECT name FROM customers"))) == "ingrid"


async def refusal(settings: RegistrySettings) -> str:
    with pytest.raises(KnarrError) as refused:
        async with running(create_app(settings)):
            pass
    return refused.value.message


async def on_server(url: str, statement: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as conn:
            await conn.execute(text(statement))
    finally:
        await engine.dispose()
