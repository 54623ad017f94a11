"""Numbers, texts and full disks that a generated request does not reach: refused where they come in."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from knarr.home import Home
from knarr.up import Options, create_apps
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.service import Service
from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings
from seedwork.errors import InvalidInput, StorageFull
from seedwork.testing.http import running
from services.saga_coordinator.api import seq_of
from services.webhook import requests as webhook_requests
from tests.security.serving import MIGRATIONS
from tests.seedwork.chassis.dummy import models

MAX_INTEGER = 2**63 - 1


@pytest.fixture
def documents(tmp_path: Path) -> dict[str, Any]:
    """What each service says about its requests."""
    home = Home(tmp_path / "home")
    home.make()
    options = Options(home=home, host="127.0.0.1", port_base=8700, test_endpoints=True)
    return {name: app.openapi() for name, app in create_apps(options, InProcessBus()).items()}


def test_every_integer_of_a_request_has_a_limit_that_databases_have_too(documents: dict[str, Any]) -> None:
    """Parameters and bodies: a field without one is a server error for somebody who tries."""
    assert documents.keys() == set(SERVICE_PORTS)
    without = [
        f"{service} {method} {path}: {place}"
        for service, document in documents.items()
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for place, schema in _integers(operation, document)
        if schema.get("minimum", schema.get("exclusiveMinimum", -(2**64))) < float(-MAX_INTEGER)
        or schema.get("maximum", 2**64) > float(MAX_INTEGER)  # the document has it as a float
    ]
    assert not without


def _integers(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for parameter in operation.get("parameters", ()):
        yield from _in(parameter["name"], parameter["schema"], document)
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield from _in("body", content["schema"], document)


def _in(place: str, schema: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    if schema.get("type") == "integer":
        yield place, schema
    for name, each in schema.get("properties", {}).items():
        yield from _in(f"{place}.{name}", each, document)
    for each in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from _in(place, each, document)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _in(f"{place}[]", schema[key], document)


def test_an_event_id_beyond_all_logs_is_invalid() -> None:
    """`Last-Event-ID` has up to 20 digits."""
    assert [seq_of(each) for each in (None, "", "x", "-1", "7", str(MAX_INTEGER))] == [0, 0, 0, 0, 7, MAX_INTEGER]
    with pytest.raises(InvalidInput):
        seq_of("9" * 20)


@pytest.fixture
async def dummy(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A service with test endpoints, and a route that finds its disk full."""
    settings = ServiceSettings(home=tmp_path, token=SecretStr("t"), test_endpoints=True)
    service = Service("builder", settings, metadata=models.metadata, migrations=MIGRATIONS)

    @service.app.put("/kept")
    async def keep() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a/path/of/this/machine")

    async with running(service.app, token="t") as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        rb'{"fence": 9223372036854775808}',
        rb'{"attempt": 9223372036854775808}',
        rb'{"data": {"a": 18446744073709551616}}',
        rb'{"data": {"a": "\ud800"}}',
        rb'{"data": {"\ud800": 1}}',
        rb'{"\ud800": 1}',
        b'{"data": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    ],
)
async def test_no_message_holds_what_no_database_and_no_text_holds(dummy: httpx2.AsyncClient, body: bytes) -> None:
    """Fencing tokens beyond 64 bits, lone surrogates, endless nesting: 400 as problem details."""
    answer = await dummy.post("/test/commands/Nothing", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


async def test_a_full_disk_is_507_wherever_it_is_met(dummy: httpx2.AsyncClient) -> None:
    """Without a path of the machine."""
    answer = await dummy.put("/kept")
    assert answer.status_code == 507
    assert answer.json()["code"] == "storage_full"
    assert "machine" not in answer.text


async def test_an_upload_on_a_full_disk_is_no_server_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the last bytes are found not to fit when the file is closed."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"\x1f\x8b" + b"x" * 3000

    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(webhook_requests, "_create", lambda _: os.fdopen(full, "wb"))
    with pytest.raises(StorageFull):
        await webhook_requests._keep(chunks(), tmp_path / "draft")
