"""All services of a platform in this process, without sockets: what the security tests ask.

Granted tokens are made by the route of `webhook` and reach the other services by their own code, over ASGI.
"""

import importlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from knarr.up import settings_class
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.granted import RemoteTokens
from seedwork.chassis.service import Service
from seedwork.chassis.service_ports import SERVICE_PORTS, TOKENS_SERVICE
from seedwork.testing.http import running

OPERATOR = "the-token-of-the-operator"
SERVICE = "the-token-that-services-share"


@dataclass
class House:
    """A running platform."""

    apps: Mapping[str, FastAPI]
    clients: Mapping[str, httpx2.AsyncClient]
    """By service; they show no token."""

    async def ask(self, service: str, method: str, path: str, token: str | None, **options: Any) -> httpx2.Response:
        """Send one request with that token."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return await self.clients[service].request(
            method, path, headers=headers | options.pop("headers", {}), **options
        )

    async def token(
        self, name: str, *, teams: Sequence[str], scopes: Sequence[str], expires_at: str | None = None
    ) -> str:
        """Grant a token as the operator; its secret."""
        body = {"name": name, "teams": list(teams), "scopes": list(scopes), "expires_at": expires_at}
        answer = await self.ask("webhook", "POST", "/tokens", OPERATOR, json=body)
        assert answer.status_code == 201, answer.text
        self.look_again()
        return str(answer.json()["token"])

    def look_again(self) -> None:
        """Let every service read the tokens at its next request, as it does after some seconds."""
        for name in self.apps:
            self.service(name).auth.forget()

    def service(self, name: str) -> Service:
        """The chassis of a service."""
        service: Service = self.apps[name].state.service
        return service

    async def insert(self, service: str, table: Table, **values: Any) -> None:
        """Write a row."""

        async def write(conn: AsyncConnection) -> None:
            await conn.execute(insert(table).values(**values))

        await self.service(service).db.write(write)


@asynccontextmanager
async def house(home: Path, **settings: Any) -> AsyncIterator[House]:
    """Start all services on one bus."""
    bus = InProcessBus()
    apps = {}
    for name in SERVICE_PORTS:
        wanted = {**settings, **({"runtime": "memory"} if name == "deployer" else {})}
        made = settings_class(name)(
            home=home, token=SecretStr(OPERATOR), service_token=SecretStr(SERVICE), test_endpoints=True, **wanted
        )
        apps[name] = importlib.import_module(f"services.{name}.app").create_app(made, bus=bus)
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(running(app)) for name, app in apps.items()}
        asking = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(apps[TOKENS_SERVICE]),
            base_url="http://tokens",
            headers={"Authorization": f"Bearer {SERVICE}"},
        )
        await stack.enter_async_context(asking)
        for name, app in apps.items():
            if name != TOKENS_SERVICE:
                app.state.service.auth.read_granted_by(RemoteTokens(asking))
        await bus.open()
        stack.push_async_callback(bus.close)
        yield House(apps, clients)
