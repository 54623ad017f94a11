"""`knarr db reseal`: after a change of keys the old one is not needed any more."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from knarr.databases import upgrade_all
from knarr.home import Home
from knarr.resealing import SERVICES, reseal_all
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import InvalidInput, Misconfigured
from seedwork.unit_of_work import Database
from services.deployer import models as deployer
from services.deployer.vault import Vault as ConfigVault
from services.webhook import models as webhook
from services.webhook.vault import Vault as WebhookVault

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
APP_ID = "01900000-0000-7000-8000-000000000000"
SECRET, CONFIG = "correct-horse", {"GREETING": "Hei"}


def webhooks(key: str) -> WebhookVault:
    return WebhookVault(key.encode(), where="the test")


def configs(key: str) -> ConfigVault:
    return ConfigVault(key.encode(), where="the test")


def use(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    for setting in ("KNARR_SECRET_KEY", "KNARR_CONFIG_KEY"):
        monkeypatch.setenv(setting, keys)


@asynccontextmanager
async def database(home: Home, service: str) -> AsyncIterator[Database]:
    db = Database(ServiceSettings(home=home.path).database_url_of(service))
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def write(home: Home, service: str, rows: Sequence[tuple[Table, Mapping[str, Any]]]) -> None:
    async def work(conn: AsyncConnection) -> None:
        for table, values in rows:
            await conn.execute(insert(table).values(values))

    async with database(home, service) as db:
        await db.write(work)


async def kept(home: Home, service: str, table: Table, column: str) -> str:
    """The one value of that column that is not empty."""
    found = select(table.c[column]).where(table.c[column] != "")
    async with database(home, service) as db:
        return str(await db.read(lambda conn: conn.scalar(found)))


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Both services have sealed something with the old key; then the new one was put before it."""
    home = Home(tmp_path)
    await upgrade_all(home, SERVICES)
    app = {
        "app_id": APP_ID,
        "team": "default",
        "name": "shop",
        "ref": "refs/heads/main",
        "root": ".",
        "webhook_secret": webhooks(OLD).encrypt(SECRET),
        "state": "active",
        "created_ms": 1,
    }
    removed = {**app, "app_id": APP_ID[::-1], "webhook_secret": "", "state": "removed"}
    sealed = {
        "app_id": APP_ID,
        "state": "live",
        "saga_id": APP_ID,
        "sealed": configs(OLD).seal(CONFIG),
        "created_ms": 1,
    }
    config = {**sealed, "version": 1, "created_by": "test"}
    addon = {**sealed, "name": "redis", "kind": "redis"}
    await write(home, "webhook", [(webhook.apps, removed), (webhook.apps, app)])
    await write(home, "deployer", [(deployer.config_versions, config), (deployer.addons, addon)])
    use(monkeypatch, f"{NEW},{OLD}")
    return home


async def test_afterwards_the_new_key_opens_everything(home: Home) -> None:
    """Secrets of webhooks, config vars and passwords of add-ons; a second run finds nothing to do."""
    assert await reseal_all(home, SERVICES) == {"webhook": 1, "deployer": 2}
    assert webhooks(NEW).decrypt(await kept(home, "webhook", webhook.apps, "webhook_secret")) == SECRET.encode()
    for table in (deployer.config_versions, deployer.addons):
        assert configs(NEW).unseal(await kept(home, "deployer", table, "sealed")) == CONFIG
    assert await reseal_all(home, SERVICES) == {"webhook": 0, "deployer": 0}


async def test_without_the_old_key_nothing_is_changed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken away too early: the error says so, and putting it back mends it."""
    use(monkeypatch, NEW)
    with pytest.raises(Misconfigured, match="another key"):
        await reseal_all(home, SERVICES)
    use(monkeypatch, f"{NEW},{OLD}")
    assert await reseal_all(home, SERVICES) == {"webhook": 1, "deployer": 2}


async def test_a_service_that_seals_nothing_is_refused(home: Home) -> None:
    """With the names of those that do."""
    with pytest.raises(InvalidInput, match="webhook, deployer"):
        await reseal_all(home, ["builder"])
