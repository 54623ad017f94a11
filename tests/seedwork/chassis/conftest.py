"""A service that knows nothing, to see what the chassis brings; HTTP without sockets."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table

from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from seedwork.messages import Command, Event, FailureEvent
from seedwork.tables import kernel_tables

MIGRATIONS = Path(__file__).parent / "dummy" / "migrations"
TOKEN = "the-operator-s-token"
SERVICE_TOKEN = "what-services-share"


class MakeThing(Command):
    """Make something of that size."""

    size: int

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"size": 1}


class ThingMade(Event):
    """It is there."""

    size: int

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"size": 1}


class ThingFailed(FailureEvent):
    """It is not."""


@pytest.fixture
def migrations() -> Path:
    """The dummy service's two migrations."""
    return MIGRATIONS


@pytest.fixture
def metadata() -> MetaData:
    """The dummy service's tables, as its newest migration leaves them."""
    made = MetaData()
    kernel_tables(made)
    things = Table("things", made, Column("id", String(36), primary_key=True), Column("size_bytes", BigInteger))
    Index("ix_things", things.c.id)
    return made


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """Settings that see neither this machine's environment nor its files."""
    monkeypatch.chdir(tmp_path)
    return ServiceSettings(
        home=tmp_path / "home", token=TOKEN, service_token=SERVICE_TOKEN, test_endpoints=True, stop_grace_s=5
    )


@pytest.fixture
def service(settings: ServiceSettings, metadata: MetaData) -> Service:
    """The dummy service, wired, not started."""
    return Service("builder", settings, metadata=metadata, migrations=MIGRATIONS)


Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def running() -> Running:
    """Starts an app and gives a client that shows the operator's token."""

    @contextlib.asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app),
                base_url="http://builder",
                headers={"Authorization": f"Bearer {TOKEN}"},
            ) as client,
        ):
            yield client

    return run
