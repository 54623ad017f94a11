"""The whole service on its bus, with a real repository: commands in, events out, nothing left behind."""

import asyncio
import contextlib
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from pydantic import SecretStr

from seedwork.adapters.in_process import InProcessBus
from seedwork.messages import Command, Envelope, Event, envelope, new_id
from seedwork.testing.http import running
from seedwork.testing.migrations import assert_migrations_match
from services.saga_coordinator.contract import DeploymentSucceeded
from services.source.app import MIGRATIONS, create_app
from services.source.contract import DiscardSource, FetchSource, SourceDiscarded, SourceFetched, SourceFetchFailed
from services.source.models import metadata
from services.source.settings import SourceSettings
from tests.services.source.conftest import drafts, stored
from tests.services.source.origins import GitOrigin

TOKEN = "what-services-share"
APP = {"requirements.txt": b"", "Procfile": b"web: python app.py"}
BOUND_S = 20


class Running:
    """The service, and somebody who listens to what it tells."""

    def __init__(self, client: httpx2.AsyncClient, bus: InProcessBus, home: Path) -> None:
        self.client = client
        self.bus = bus
        self.home = home
        self.app_id = new_id()
        self._heard: asyncio.Queue[Envelope] = asyncio.Queue()

    async def hear(self, envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            self._heard.put_nowait(each)

    async def tell(self, message: Command | Event, saga_id: str, attempt: int = 1) -> None:
        told = envelope(
            message, source="test", saga_id=saga_id, app_id=self.app_id, app="shop", step="source", attempt=attempt
        )
        await self.bus.publish([told])

    async def answer(self, saga_id: str) -> Envelope:
        async with asyncio.timeout(BOUND_S):
            while True:
                heard = await self._heard.get()
                if heard.correlationid == saga_id:
                    return heard


@contextlib.asynccontextmanager
async def started(tmp_path: Path, **fields: Any) -> AsyncIterator[Running]:
    settings = SourceSettings(
        home=tmp_path / "home",
        service_token=SecretStr(TOKEN),
        source_allow=(f"file://{tmp_path}/",),
        test_endpoints=True,
        stop_grace_s=5,
        **fields,
    )
    bus = InProcessBus()
    async with running(create_app(settings, bus=bus), token=TOKEN) as client:
        service = Running(client, bus, tmp_path / "home/source")
        await bus.subscribe("test", [SourceFetched, SourceFetchFailed, SourceDiscarded], service.hear)
        await bus.open()
        yield service
        await bus.close()


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.chdir(tmp_path)
    async with started(tmp_path) as found:
        yield found


@pytest.fixture
def origin(tmp_path: Path) -> GitOrigin:
    return GitOrigin(tmp_path / "host")


def command(origin: GitOrigin, commit: str, **fields: Any) -> FetchSource:
    return FetchSource(app="shop", clone_url=origin.url, ref="refs/heads/main", commit=commit, **fields)


async def until(there: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not there():  # noqa: ASYNC110 - the disk tells nobody
            await asyncio.sleep(0.01)


def fetches_of(url: str) -> list[psutil.Process]:
    """Processes of git, ours and those below, that have this URL or its path among their arguments."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(url.removeprefix("file://") in argument for argument in process.cmdline()):
                found.append(process)
    return found


async def test_migrations_make_the_tables_that_the_code_expects() -> None:
    """Tables, columns, types, indexes."""
    await assert_migrations_match(metadata, MIGRATIONS)


async def test_a_commit_is_fetched_read_and_discarded(service: Running, origin: GitOrigin) -> None:
    """Command, event, archive over HTTP, undo, nothing left."""
    commit, saga = origin.commit(APP), new_id()
    await service.tell(command(origin, commit), saga)
    heard = await service.answer(saga)
    assert (heard.type, heard.sagastep, heard.appid) == ("SourceFetched", "source", service.app_id)
    event = SourceFetched.model_validate(heard.data)
    answer = await service.client.get(f"/sources/{event.digest}")
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == event.size_bytes == len(answer.content)
    assert f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == event.digest
    await service.tell(DiscardSource(), saga)
    heard = await service.answer(saga)
    assert heard.type == "SourceDiscarded"
    assert heard.data["found"] == [f"reference to archive {event.digest}"]
    assert stored(service.home) == set()
    assert drafts(service.home) == []


async def test_the_archive_goes_when_its_deployment_has_succeeded(service: Running, origin: GitOrigin) -> None:
    """The image is published then; what another saga holds stays until that one ends, too."""
    commit, first, second = origin.commit(APP), new_id(), new_id()
    for saga in (first, second):
        await service.tell(command(origin, commit), saga)
        await service.answer(saga)
    await service.tell(DeploymentSucceeded(app="shop", saga="deploy", commit=commit), first)
    await service.tell(DiscardSource(), second)
    heard = await service.answer(second)
    assert heard.type == "SourceDiscarded"
    await until(lambda: not stored(service.home))


async def test_failures_are_answers_with_advice(service: Running, origin: GitOrigin) -> None:
    """Final where the user has to act."""
    commit = origin.commit({"requirements.txt": b""})
    cases = {
        "app_invalid": command(origin, commit),
        "commit_not_found": command(origin, "0" * 40),
        "not_allowed": command(origin, commit).model_copy(update={"clone_url": "https://example.org/a/b.git"}),
        "repository_refused": command(origin, commit).model_copy(update={"clone_url": f"{origin.url}x"}),
        "root_not_found": command(origin, commit, root="web"),
        "upload_not_found": FetchSource(app="shop", source_digest=f"sha256:{'a' * 64}"),
    }
    for code, wanted in cases.items():
        saga = new_id()
        await service.tell(wanted, saga)
        heard = await service.answer(saga)
        event = SourceFetchFailed.model_validate(heard.data)
        assert (heard.type, event.code, event.retryable) == ("SourceFetchFailed", code, False)
        assert len(event.message) > 40
    assert stored(service.home) == set()
    assert drafts(service.home) == []


async def test_a_superseded_commit_names_the_saga(service: Running, origin: GitOrigin) -> None:
    """The coordinator shows it."""
    older, newer, saga, other = origin.commit(APP), origin.commit(APP | {"f": b""}), new_id(), new_id()
    await service.tell(command(origin, older, known_commits={other: newer}), saga)
    event = SourceFetchFailed.model_validate((await service.answer(saga)).data)
    assert (event.code, event.superseded_by) == ("superseded", other)


async def test_an_undo_stops_a_fetch_that_runs(service: Running, origin: GitOrigin, tmp_path: Path) -> None:
    """It does not wait for a host that never answers, and nothing of the fetch is left."""
    stuck = tmp_path / "host/stuck.git"
    origin.git("clone", "--quiet", "--bare", str(origin.bare), str(stuck))
    (stuck / "HEAD").unlink()
    os.mkfifo(stuck / "HEAD")  # whoever opens it waits for somebody who writes
    saga, url = new_id(), f"file://{stuck}"
    await service.tell(command(origin, "a" * 40).model_copy(update={"clone_url": url}), saga)
    await until(lambda: fetches_of(url))
    await service.tell(DiscardSource(), saga)
    heard = await service.answer(saga)
    assert (heard.type, heard.data["found"]) == ("SourceDiscarded", [])
    assert fetches_of(url) == []
    assert drafts(service.home) == []


async def test_what_a_killed_process_left_half_made_is_cleared_at_the_next_start(
    service: Running, tmp_path: Path
) -> None:
    """One process alone uses this folder, so that nobody else can be at work in it."""
    (service.home / "drafts/left.tar").write_bytes(b"x")
    async with started(tmp_path, database_url=f"sqlite+aiosqlite:///{tmp_path}/other.db") as second:
        assert drafts(second.home) == []


async def test_the_builder_s_view_of_a_large_archive_is_streamed(service: Running, origin: GitOrigin) -> None:
    """In pieces, whole at the end."""
    saga = new_id()
    await service.tell(command(origin, origin.commit(APP | {"large": os.urandom(3_000_000)})), saga)
    event = SourceFetched.model_validate((await service.answer(saga)).data)
    whole = service.home / "copy.tar"
    async with service.client.stream("GET", f"/sources/{event.digest}") as answer:
        whole.write_bytes(b"".join([piece async for piece in answer.aiter_bytes()]))
    with tarfile.open(whole) as archive:
        assert archive.getnames() == ["Procfile", "large", "requirements.txt"]


@pytest.mark.parametrize("kind", ["commands/FetchSource", "commands/DiscardSource", "events/DeploymentSucceeded"])
async def test_each_message_can_be_tried_by_hand(service: Running, kind: str) -> None:
    """With its own example, where nothing else is given."""
    answer = await service.client.post(f"/test/{kind}", json={})
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
