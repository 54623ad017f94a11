"""The dummy service in a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from seedwork.chassis.run import serve
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.chassis.streams import until
from tests.seedwork.chassis.dummy import models


def create_app() -> FastAPI:
    """Nothing but the chassis, and a stream without an end."""
    service = Service(
        "builder", ServiceSettings(), metadata=models.metadata, migrations=Path(__file__).parent / "migrations"
    )

    @service.app.get("/for-ever")
    async def for_ever() -> StreamingResponse:
        return StreamingResponse(until(service.stopping, _first_and_nothing_more()))

    return service.app


async def _first_and_nothing_more() -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.Event().wait()


if __name__ == "__main__":
    serve(create_app, "builder")
