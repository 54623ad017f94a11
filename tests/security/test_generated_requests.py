"""No request is a server error, whatever is in its fields: generated from what each service says about itself.

schemathesis makes requests from the OpenAPI document of all services, right ones and wrong ones. In a right one of each
operation every value is then replaced, one after the other, by those that databases, JSON and text encoders dislike.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import hypothesis
import pytest
import schemathesis
import structlog
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation

from knarr.home import Home
from knarr.up import Options, create_apps
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.problems import MEDIA_TYPE
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.testing.http import running

WRONG_EXAMPLES = 2
"""Wrong requests for each operation; some 90 operations in all."""

APP = "shop"

NUMBERS = [2**63, -(2**63) - 1, 10**400]
TEXTS = ["\0", "\ud800", "a" * 5000]
VALUES = [2**63, 10**400, 1e308, "\ud800", "\0", {"\ud800": "\ud800"}]
"""For a place in a body."""
DEEP = b"[" * 100_000
"""JSON that a recursive reader does not survive."""
_PLACES = 6
"""Values of one body that are replaced."""
_NUMBERS_OF_KEYS = ("at_ms", "number", "seq", "created_ms")
_TEXTS_OF_KEYS = ("id", "name", "digest", "repository")


Operation = APIOperation[Any, Any, Any, Any]


@schemathesis.serializer("application/gzip", "application/octet-stream")
def binary(_context: Any, value: Any) -> bytes:
    """Archives are any bytes."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@dataclass
class Platform:
    """All services, running, with the operator's token."""

    loop: asyncio.AbstractEventLoop
    apps: dict[str, FastAPI]
    clients: dict[str, httpx2.AsyncClient]

    async def have_app(self) -> None:
        """Make the app again that an earlier request may have removed."""
        wanted = {"name": APP, "repository": "acme/shop", "ref": "refs/heads/main"}
        made = await self.clients["webhook"].post("/apps", json=wanted)
        assert made.status_code in {201, 409}, made.text


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One for all tests of this file."""
    folder = tmp_path_factory.mktemp("home")
    home = Home(folder / "home")
    before = structlog.get_config()
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet, cache_logger_on_first_use=False)
    home.make()
    with asyncio.Runner() as runner:
        options = Options(home=home, host="127.0.0.1", port_base=8700, test_endpoints=True)
        bus = InProcessBus()
        apps = dict(create_apps(options, bus, {"poll_s": 0.0, "source_allow": ("file:///nowhere/",)}))
        token = home.keep_secret(home.token_file)
        stack = contextlib.AsyncExitStack()

        async def start() -> dict[str, httpx2.AsyncClient]:
            clients = {name: await stack.enter_async_context(running(app, token=token)) for name, app in apps.items()}
            await bus.open()
            return clients

        clients = runner.run(start())
        try:
            yield Platform(runner.get_loop(), apps, clients)
        finally:
            runner.run(stack.aclose())
            structlog.configure(**before)


def cursors() -> list[str]:
    """Cursors as lists make them, with numbers and texts that they do not make."""
    positions = [
        {**dict.fromkeys(_NUMBERS_OF_KEYS, number), **dict.fromkeys(_TEXTS_OF_KEYS, text)}
        for number, text in [*((each, "a") for each in NUMBERS), *((1, each) for each in TEXTS)]
    ]
    return [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in positions]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at that path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@dataclass
class Sent:
    """A request before it is written down."""

    operation: Operation
    path: dict[str, Any]
    query: dict[str, Any]
    headers: dict[str, Any]
    body: Any

    @classmethod
    def of(cls, case: Any) -> "Sent":
        """As it was generated."""
        body = None if type(case.body).__name__ == "NotSet" else case.body
        path = dict(case.path_parameters or {})
        if "app" in path:
            path["app"] = APP  # one that is there: otherwise most answers are 404
        return cls(case.operation, path, dict(case.query or {}), dict(case.headers or {}), body)

    def variants(self) -> Iterator["Sent"]:
        """With each value replaced by each of those that are disliked."""
        for where, each in parameters(self.operation):
            kind = (each.definition.get("schema") or {}).get("type")
            values: list[Any] = cursors() if each.name == "cursor" else NUMBERS if kind == "integer" else TEXTS
            for value in values:
                yield self._with(where, each.name, value)
        if self.operation.body:
            yield dataclasses.replace(self, body=DEEP)
            for place in places(self.body)[:_PLACES]:
                for other in VALUES:
                    yield dataclasses.replace(self, body=replaced(self.body, place, other))

    def _with(self, where: str, name: str, value: Any) -> "Sent":
        copy = dataclasses.replace(self)
        setattr(copy, where, {**getattr(self, where), name: value})
        return copy

    def written(self) -> tuple[str, str, dict[str, str], bytes]:
        """Return method, URL, headers and body."""
        url = self.operation.path
        for name, value in self.path.items():
            url = url.replace(f"{{{name}}}", _quoted(value) or "x")
        query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in self.query.items())
        headers = {
            str(name): " ".join(_text(value).encode("ascii", "replace").decode().replace("\0", "").split())
            for name, value in self.headers.items()
            if str(name).isascii() and str(name).lower() != "authorization"  # the token is right
        }
        content = b"" if self.body is None else self.body if isinstance(self.body, bytes) else _json(self.body)
        if content:
            headers["content-type"] = "application/json"
        return self.operation.method.upper(), f"{url}?{query}" if query else url, headers, content


def parameters(operation: Operation) -> list[tuple[str, Any]]:
    """Where each parameter of an operation stands."""
    groups = {"path": operation.path_parameters, "query": operation.query, "headers": operation.headers}
    return [(where, each) for where, group in groups.items() for each in group]


def _json(value: Any) -> bytes:
    """As a careless client writes it: lone surrogates and numbers of any size go through."""
    return json.dumps(value, default=str).encode()


def _quoted(value: Any) -> str:
    return quote(_text(value), safe="", errors="surrogatepass")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)[:4000]


def operations(apps: dict[str, FastAPI], service: str) -> list[Operation]:
    """All operations of a service; those that all services have, of the first one only."""
    document = schemathesis.openapi.from_dict(apps[service].openapi())
    first, second = list(apps)[:2]
    common = apps[first].openapi()["paths"].keys() & apps[second].openapi()["paths"].keys()
    found = [each.ok() for each in document.get_all_operations() if isinstance(each, Ok)]
    return [each for each in found if service == first or each.path not in common]


@pytest.mark.parametrize("service", SERVICE_PORTS)
def test_no_generated_request_is_a_server_error(platform: Platform, service: str) -> None:
    """Every answer is below 500, or says that another system is away or a disk full; errors are problem details."""
    client = platform.clients[service]
    wrong: dict[str, str] = {}

    async def send(sent: Sent) -> None:
        method, url, headers, content = sent.written()
        async with client.stream(method, url, headers=headers, content=content) as answer:
            status, kind = answer.status_code, answer.headers.get("content-type")
        if (status >= 500 and status not in {502, 503, 504, 507}) or (status >= 400 and kind != MEDIA_TYPE):
            wrong.setdefault(
                f"{method} {sent.operation.path} {status}", f"{status} {method} {url:.300} {headers} {content[:300]!r}"
            )

    for operation in operations(platform.apps, service):
        platform.loop.run_until_complete(platform.have_app())
        for sent in _generated(operation, GenerationMode.POSITIVE, 1):
            for each in (sent, *sent.variants()):
                platform.loop.run_until_complete(send(each))
        for sent in _generated(operation, GenerationMode.NEGATIVE, WRONG_EXAMPLES):
            platform.loop.run_until_complete(send(sent))
    assert not wrong, "\n".join(wrong.values())


def _generated(operation: Operation, mode: GenerationMode, count: int) -> list[Sent]:
    found: list[Sent] = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        found.append(Sent.of(case))

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        collect()
    return found
