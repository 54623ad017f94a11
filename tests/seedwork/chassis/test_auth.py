from typing import Annotated

import httpx2
import pytest
from fastapi import Depends
from pydantic import SecretStr

from seedwork.chassis.auth import Auth, Caller, Scope, require
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Unauthenticated
from seedwork.testing.http import running
from tests.seedwork.chassis.conftest import MIGRATIONS, SERVICE_TOKEN, TOKEN, VirtualClock
from tests.seedwork.chassis.dummy import models


@pytest.fixture
def guarded(service: Service) -> Service:
    """A route for each scope."""

    @service.app.get("/read")
    async def read(caller: Annotated[Caller, Depends(require("read"))]) -> str:
        return f"{caller.name} of {caller.team}"

    @service.app.get("/deploy", dependencies=[Depends(require("deploy"))])
    async def deploy() -> None: ...

    @service.app.get("/admin", dependencies=[Depends(require("admin"))])
    async def admin() -> None: ...

    @service.app.get("/service", dependencies=[Depends(require("service"))])
    async def other() -> None: ...

    return service


async def _statuses(client: httpx2.AsyncClient, token: str) -> dict[str, int]:
    headers = {"Authorization": f"Bearer {token}"}
    return {path: (await client.get(path, headers=headers)).status_code for path in ("/read", "/deploy", "/admin")}


async def test_the_operators_token_may_do_everything(guarded: Service) -> None:
    """It is known as `local`, in the operator's team, without anybody writing a row."""
    async with running(guarded.app, token=TOKEN) as client:
        assert (await client.get("/read")).json() == "local of default"
        assert await _statuses(client, TOKEN) == {"/read": 200, "/deploy": 200, "/admin": 200}


async def test_another_service_may_do_everything(guarded: Service) -> None:
    """Services show each other one token."""
    async with running(guarded.app, token=SERVICE_TOKEN) as client:
        assert (await client.get("/service")).status_code == 200
        assert await _statuses(client, SERVICE_TOKEN) == {"/read": 200, "/deploy": 200, "/admin": 200}


async def test_a_token_may_do_what_its_scopes_say(guarded: Service) -> None:
    """`deploy` does not imply `admin`, nor `read`."""
    async with running(guarded.app) as client:
        await guarded.auth.make_known("ci", SecretStr("ci-token"), team="acme", scopes=("read", "deploy"))
        assert await _statuses(client, "ci-token") == {"/read": 200, "/deploy": 200, "/admin": 403}
        refused = await client.get("/admin", headers={"Authorization": "Bearer ci-token"})
        assert "'ci'" in refused.json()["detail"]
        assert "deploy, read" in refused.json()["detail"]


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Bearer nobody-s", "Basic dXNlcjpwdw==", "nobody-s"])
async def test_without_a_valid_token_nobody_gets_in(guarded: Service, header: str | None) -> None:
    """The answer says what to do; it tells a stranger no path of the machine."""
    async with running(guarded.app) as client:
        response = await client.get("/read", headers={"Authorization": header} if header is not None else {})
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert "KNARR_TOKEN" in response.json()["detail"]
        assert "knarr doctor" in response.json()["detail"]
        assert "/" not in response.json()["detail"], "the text names no path of the machine"
        assert "nobody-s" not in response.text


async def test_without_a_service_token_nobody_is_a_service(settings: ServiceSettings) -> None:
    """An empty setting must not make an empty token valid."""
    for empty in (None, SecretStr("")):
        bare = settings.model_copy(update={"service_token": empty})
        service = Service("source", bare, metadata=models.metadata, migrations=MIGRATIONS)
        async with running(service.app):
            with pytest.raises(Unauthenticated):
                await service.auth.caller("")


async def test_health_metrics_and_docs_are_open(guarded: Service) -> None:
    """A balancer has no token."""
    async with running(guarded.app) as client:
        for path in ("/livez", "/readyz", "/healthcheck", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.get("/dead-letters")).status_code == 401


async def test_a_revoked_token_is_refused_everywhere_within_seconds(service: Service, clock: VirtualClock) -> None:
    """Another replica only sees the rows change: what it remembers is believed for five seconds."""
    async with running(service.app):
        replica = Auth(service.db, service.tables, service_token=None, clock=clock)
        await service.auth.make_known("ci", SecretStr("ci-token"), team="acme", scopes=("read",))
        assert (await replica.caller("ci-token")).team == "acme"
        await service.auth.revoke("ci")
        assert (await replica.caller("ci-token")).name == "ci"
        clock.advance(5.0)
        with pytest.raises(Unauthenticated):
            await replica.caller("ci-token")


async def test_a_new_token_works_soon_on_a_replica_that_has_just_looked(service: Service, clock: VirtualClock) -> None:
    """An unknown token makes it look again, at most twice a second."""
    async with running(service.app):
        replica = Auth(service.db, service.tables, service_token=None, clock=clock)
        with pytest.raises(Unauthenticated):
            await replica.caller("ci-token")
        await service.auth.make_known("ci", SecretStr("ci-token"), team="acme", scopes=("read",))
        clock.advance(0.5)
        assert (await replica.caller("ci-token")).name == "ci"


async def test_a_changed_operator_token_takes_the_place_of_the_old_one(settings: ServiceSettings) -> None:
    """Start again with another token: the old one is no longer known."""
    async with running(Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS).app):
        pass
    changed = settings.model_copy(update={"token": SecretStr("another")})
    service = Service("builder", changed, metadata=models.metadata, migrations=MIGRATIONS)
    async with running(service.app):
        assert (await service.auth.caller("another")).name == "local"
        with pytest.raises(Unauthenticated):
            await service.auth.caller(TOKEN)


async def test_the_database_holds_no_token(service: Service) -> None:
    """Whoever reads it learns none."""
    async with running(service.app):
        pass
    files = [each.read_bytes() for each in service.home.iterdir()]
    assert files
    assert not any(TOKEN.encode() in content for content in files)


def test_a_scope_that_does_not_exist_is_found_when_the_route_is_made() -> None:
    """Not at the first request."""
    misspelt: Scope = "raed"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="raed"):
        require(misspelt)
