"""The whole service in the test's process: real SQLite, the in-process bus, HTTP without sockets."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.migrate import upgrade
from seedwork.chassis.service import Service
from seedwork.clock import SystemClock
from seedwork.errors import KnarrError, NotFound
from seedwork.messages import Envelope, Event, envelope
from seedwork.unit_of_work import opened
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.webhook.app import MIGRATIONS, TELLS, create_app
from services.webhook.ports import RemoteRefs
from services.webhook.settings import WebhookSettings
from tests.services.webhook.github_payloads import SECRET, Webhook

TOKEN = "an-operator-token-for-tests"
BOUND_S = 20.0


class FakeRefs:
    """`RemoteRefs` from a dict; errors can be planted, and answers held back."""

    def __init__(self) -> None:
        self.tips: dict[tuple[str, str], str] = {}
        self.error: KnarrError | None = None
        self.asked: list[tuple[str, str]] = []
        self.while_asked: Callable[[], Any] | None = None
        self.defaults: dict[str, str] = {}
        """The default branch by clone URL."""

    async def tip(self, clone_url: str, ref: str) -> str:
        """See `RemoteRefs`."""
        self.asked.append((clone_url, ref))
        if self.error:
            raise self.error
        answer = self.tips.get((clone_url, ref))
        if self.while_asked:
            await self.while_asked()
        if answer is None:
            raise NotFound(f"{clone_url} has no {ref}")
        return answer

    async def default_branch(self, clone_url: str) -> str:
        """See `RemoteRefs`."""
        if self.error:
            raise self.error
        if clone_url not in self.defaults:
            raise NotFound(f"{clone_url} names no default branch")
        return self.defaults[clone_url]

    async def named(self, clone_url: str, name: str) -> tuple[str, str]:
        """See `RemoteRefs`."""
        if self.error:
            raise self.error
        for ref in (f"refs/heads/{name}", f"refs/tags/{name}"):
            if (clone_url, ref) in self.tips:
                return ref, self.tips[clone_url, ref]
        raise NotFound(f"{clone_url} has no {name}")


class FakeArchives:
    """`SourceArchive` in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.error: KnarrError | None = None

    async def put(self, digest: str, archive: Path) -> None:
        """See `SourceArchive`."""
        if self.error:
            raise self.error
        self.kept[digest] = await asyncio.to_thread(archive.read_bytes)


class ManualClock(SystemClock):
    """Wall time that also goes on when a test says so."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        """The machine's time, and what was added."""
        return super().now_ms() + self.ahead_ms


@dataclass
class Knarr:
    """A running intake, and what it told."""

    app: FastAPI
    client: httpx2.AsyncClient
    bus: InProcessBus
    refs: FakeRefs
    archives: FakeArchives
    clock: ManualClock
    told: list[Envelope] = field(default_factory=list)
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def service(self) -> Service:
        """The chassis."""
        service: Service = self.app.state.service
        return service

    async def send(self, webhook: Webhook) -> httpx2.Response:
        """Send a webhook as GitHub does: without a token."""
        client = httpx2.AsyncClient(transport=self.client._transport, base_url="http://knarr")
        return await client.post("/github-webhook", content=webhook.body, headers=webhook.headers)

    async def make_app(self, name: str = "shop", **fields: Any) -> dict[str, Any]:
        """An app that follows acme/shop with the usual secret."""
        wanted = {"name": name, "repository": "acme/shop", "webhook_secret": SECRET, **fields}
        response = await self.client.post("/apps", json=wanted)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    async def deliveries(self) -> Sequence[dict[str, Any]]:
        """All deliveries, the newest first."""
        response = await self.client.get("/deliveries", params={"limit": 200})
        assert response.status_code == 200, response.text
        items: Sequence[dict[str, Any]] = response.json()["items"]
        return items

    async def events(self, kind: str, count: int) -> list[Envelope]:
        """The messages of that type, once there are so many; exactly so many."""
        async with asyncio.timeout(BOUND_S), self.heard:
            await self.heard.wait_for(lambda: sum(each.type == kind for each in self.told) >= count)
        found = [each for each in self.told if each.type == kind]
        assert len(found) == count, [each.to_dict() for each in found]
        return found

    async def end_saga(self, app_id: str, saga_id: str, saga: str = "remove", reason: str | None = None) -> None:
        """What the coordinator tells at the end of a saga; with a reason, that it was undone."""
        ended: Event = DeploymentSucceeded(app="shop", saga=saga)
        if reason is not None:
            ended = DeploymentFailed(app="shop", saga=saga, reason=reason)
        await self.bus.publish([envelope(ended, source="saga_coordinator", saga_id=saga_id, app_id=app_id)])


@contextlib.asynccontextmanager
async def running(home: Path, *, refs: RemoteRefs | None = None, **settings: Any) -> AsyncIterator[Knarr]:
    """The service, started and stopped."""
    bus, fake, archives, clock = InProcessBus(), FakeRefs(), FakeArchives(), ManualClock()
    chosen: dict[str, Any] = {"home": home, "token": SecretStr(TOKEN), "poll_s": 0.0, "_env_file": None, **settings}
    app = create_app(WebhookSettings(**chosen), bus=bus, clock=clock, refs=refs or fake, archives=archives)
    async with app.router.lifespan_context(app):
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app),
            base_url="http://knarr",
            headers={"Authorization": f"Bearer {TOKEN}"},
        ) as client:
            knarr = Knarr(app, client, bus, fake, archives, clock)

            async def listen(envelopes: Sequence[Envelope]) -> None:
                async with knarr.heard:
                    knarr.told.extend(envelopes)
                    knarr.heard.notify_all()

            await bus.subscribe("listener", list(TELLS), listen)
            await bus.open()
            yield knarr
        await bus.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema, made once: most tests are not about migrations."""
    file = tmp_path_factory.mktemp("migrated") / "webhook.db"

    async def make() -> None:
        async with opened(f"sqlite+aiosqlite:///{file}") as db:
            await upgrade(db, MIGRATIONS)

    asyncio.run(make())
    return file


@pytest.fixture
def home(tmp_path: Path, migrated: Path) -> Path:
    """Knarr's home, with the intake's empty database in it."""
    folder = tmp_path / "home"
    (folder / "webhook").mkdir(parents=True, mode=0o700)
    shutil.copy(migrated, folder / "webhook" / "webhook.db")
    return folder


@pytest.fixture
async def knarr(home: Path) -> AsyncIterator[Knarr]:
    """A fresh intake that polls nothing by itself."""
    async with running(home) as started:
        yield started
