"""A team with a row of every kind that another team must not see: what the matrix tries to reach."""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson

from seedwork.messages import envelope, new_id
from services.builder.logs import BuildLogs
from services.builder.models import builds
from services.deployer.models import addons, volumes
from services.deployer.vault import Vault
from services.registry.models import images
from services.webhook.contract import DeploymentRequested
from services.webhook.models import deliveries, delivery_deployments
from tests.security.house import House

TEAM = "acme"
APP = "secretshop"
DIGEST = "sha256:" + "a" * 64
COMMIT = "c" * 40
MARKERS = (TEAM, APP)
"""Texts that no answer to another team holds."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """Ids of the team's rows."""

    token: str
    """With every scope that a team can have."""
    token_id: str
    app_id: str
    saga_id: str
    delivery_id: str
    letter_id: str


async def settle(platform: House) -> Victim:
    """Give the team `acme` an app, a saga that has ended, and a row in each table that a route reads."""
    token = await platform.token("acme-all", teams=[TEAM], scopes=["read", "deploy", "admin", "reveal"])
    listed = (await platform.ask("webhook", "GET", "/tokens", token)).json()["items"]
    made = await platform.ask("webhook", "POST", "/apps", token, json={"name": APP})
    assert made.status_code == 201, made.text
    app_id = made.json()["id"]
    victim = Victim(
        token=token,
        token_id=listed[0]["id"],
        app_id=app_id,
        saga_id=new_id(),
        delivery_id=new_id(),
        letter_id=new_id(),
    )
    await _insert_rows(platform, victim)
    requested = DeploymentRequested.example().model_copy(update={"app": APP, "commit": None, "source_digest": DIGEST})
    await platform.service("webhook").bus.publish(
        [envelope(requested, source="webhook", saga_id=victim.saga_id, app_id=app_id, team=TEAM, app=APP)]
    )
    async with asyncio.timeout(30):
        while True:
            saga = await platform.ask("saga_coordinator", "GET", f"/sagas/{victim.saga_id}", token)
            known = await platform.ask("deployer", "GET", f"/apps/{app_id}", token)
            if saga.status_code == known.status_code == 200 and saga.json()["state"] == "COMPENSATED":
                return victim
            await asyncio.sleep(0.02)


def _sealed(platform: House) -> str:
    """A password as the deployer keeps it."""
    vault = Vault.open(None, platform.service("deployer").home / "config.key")
    return vault.seal({"password": "the-password-of-the-database"})


async def _insert_rows(platform: House, victim: Victim) -> None:
    common: dict[str, Any] = {"app_id": victim.app_id, "app": APP, "team": TEAM}
    at: dict[str, Any] = {"created_ms": 1}
    await platform.insert(
        "builder", builds, saga_id=victim.saga_id, **common, source_digest=DIGEST, state="failed", attempt=1,
        layers="[]", started_ms=1, ended_ms=2,
    )  # fmt: skip
    BuildLogs(platform.service("builder").home / "logs", max_bytes=1000).open(victim.saga_id, attempt=1).close()
    await platform.insert(
        "registry", images, repository=f"{TEAM}/{APP}", digest=DIGEST, **common, size_bytes=1, published_ms=1
    )
    await platform.insert(
        "deployer", volumes, **common, **at, name="data", path="/data", size_bytes=2**20, state="live"
    )
    await platform.insert(
        "deployer", addons, app_id=victim.app_id, name="postgresql", kind="postgres", state="live",
        saga_id=victim.saga_id, sealed=_sealed(platform), **at,
    )  # fmt: skip
    await platform.insert(
        "webhook", deliveries, delivery_id=victim.delivery_id, team=TEAM, body_sha256="0" * 64, event="push",
        repository=f"{TEAM}/{APP}", received_ms=1, status="accepted", headers="{}", body=b"",
    )  # fmt: skip
    await platform.insert(
        "webhook", delivery_deployments, delivery_id=victim.delivery_id, saga_id=victim.saga_id,
        app_id=victim.app_id, position=0,
    )  # fmt: skip
    for name in platform.apps:
        letters = platform.service(name).tables.dead_letters
        record = {
            "specversion": "1.0", "id": victim.letter_id, "source": "/test", "type": "Nothing",
            "time": "2026-01-01T00:00:00Z", "subject": APP, "dataschema": "/schemas/Nothing/v1",
            "correlationid": victim.saga_id, "appid": victim.app_id, "team": TEAM, "data": {},
        }  # fmt: skip
        await platform.insert(
            name, letters, id=victim.letter_id, at_ms=1, type="Nothing", saga_id=victim.saga_id, error=f"of {APP}",
            envelope=orjson.dumps(record).decode(),
        )  # fmt: skip
