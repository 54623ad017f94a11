"""`knarr db reseal`: what is sealed with an earlier key, sealed with the first one, so that the earlier one can go.

Beside running services, as often as you like: a row that somebody changes in between keeps what they wrote.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from knarr.home import Home
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import InvalidInput
from seedwork.secret_box import SecretBox
from seedwork.unit_of_work import Database
from services.deployer import models as deployer
from services.deployer.settings import DeployerSettings
from services.deployer.vault import Vault as ConfigVault
from services.webhook import models as webhook
from services.webhook.settings import WebhookSettings
from services.webhook.vault import Vault as WebhookVault

SERVICES = ("webhook", "deployer")
"""Those that encrypt what they keep."""


async def reseal_all(home: Home, services: Sequence[str]) -> Mapping[str, int]:
    """Renew what these have sealed; how many values of each.

    Raises:
        InvalidInput: A service seals nothing.
        Misconfigured: A value was sealed with a key that is not among the settings.
        Unavailable: A database does not answer.
    """
    return {name: await _reseal(name, home) for name in services}


async def _reseal(service: str, home: Home) -> int:
    settings, box, columns = _sealed(service, home)
    db = Database(settings.database_url_of(service), tls_ca=settings.database_tls_ca)
    await db.open()
    try:
        return sum([await _renew(db, column, box) for column in columns])
    finally:
        await db.close()


def _sealed(service: str, home: Home) -> tuple[ServiceSettings, SecretBox, Sequence[Column[Any]]]:
    """Where a service keeps what is sealed, and what opens it."""
    if service == "webhook":
        intake = WebhookSettings(home=home.path)
        key = intake.home_of(service) / "secret.key"
        return intake, WebhookVault.open(intake.secret_key, key), [webhook.apps.c.webhook_secret]
    if service == "deployer":
        deploying = DeployerSettings(home=home.path)
        key = deploying.home_of(service) / "config.key"
        columns = [deployer.config_versions.c.sealed, deployer.addons.c.sealed]
        return deploying, ConfigVault.open(deploying.config_key, key), columns
    raise InvalidInput(f"{service!r} seals nothing", todo=f"These do: {', '.join(SERVICES)}.", code="usage")


async def _renew(db: Database, column: Column[Any], box: SecretBox) -> int:
    async def renew(conn: AsyncConnection) -> int:
        found = [kept for (kept,) in await conn.execute(select(column).distinct()) if kept]
        renewed = {kept: new for kept in found if (new := box.renewed(kept)) is not None}
        for kept, new in renewed.items():
            await conn.execute(update(column.table).where(column == kept).values({column: new}))
        return len(renewed)

    return await db.write(renew)
