from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
from fastapi import FastAPI

from seedwork.chassis.service import Service

Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx2.AsyncClient]]


async def test_a_service_that_adds_nothing_starts_and_says_that_it_is_ready(service: Service, running: Running) -> None:
    """Everything a service needs comes from the chassis."""
    async with running(service.app) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})
        assert (await client.get("/livez")).json() == {"status": "ok"}
        health = (await client.get("/healthcheck")).json()
        assert health["status"] == "ok"
        assert {"started", "database", "task outbox", "task jobs"} <= set(health["checks"])
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "knarr builder"
