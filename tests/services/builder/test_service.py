"""The whole service on its bus: commands in, events out, builds and logs over HTTP, nothing left behind.

The source service is a small HTTP server, the builder is the real one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import orjson
import psutil
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import update

from ocistore.layout import OciLayout
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.migrate import upgrade
from seedwork.chassis.service import Service
from seedwork.errors import Misconfigured
from seedwork.messages import Command, Envelope, Event, envelope, new_id
from seedwork.testing.http import running
from seedwork.testing.migrations import assert_migrations_match
from seedwork.testing.servers import mysql_schema
from seedwork.unit_of_work import Database
from services.builder import staging
from services.builder.app import MIGRATIONS, create_app
from services.builder.contract import (
    BuildDiscarded,
    BuildImage,
    DiscardBuild,
    ImageBuildFailed,
    ImageBuilt,
    RebaseImage,
)
from services.builder.models import metadata, staged
from services.builder.settings import BuilderSettings
from services.saga_coordinator.contract import DeploymentSucceeded
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.support import COMMIT, PROCFILE, PYTHON, Files, archive_of, digest_of

TOKEN = "what-services-share"
BOUND_S = 60.0
FILES: Files = {"Procfile": "web: ./serve\n", "serve": "#!/bin/sh\nexec sleep 60\n"}
SLOW_BUILD = "import os, time\nopen(os.environ['MARK'], 'w').close()\nprint('slow', flush=True)\ntime.sleep(600)\n"


class SourceStub:
    """`GET /sources/{digest}` of the source service, and `GET /apps/{app}/config` of the deployer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.archives: dict[str, bytes] = {}
        self.tokens: list[str] = []
        self.variables: dict[str, dict[str, str]] = {}

    def add(self, files: Files) -> str:
        path, digest = archive_of(self._folder, files)
        self.archives[digest] = path.read_bytes()
        return digest

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.tokens += [
            line.split(": ", 1)[1] for line in head.splitlines() if line.lower().startswith("authorization")
        ]
        content = self._content(head.split()[1])
        status = "200 OK" if content is not None else "404 Not Found"
        body = content if content is not None else b'{"detail": "There is no such archive."}'
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    def _content(self, path: str) -> bytes | None:
        if path.startswith("/apps/"):
            app, _, question = path.removeprefix("/apps/").partition("/config?")
            assert question == "reveal=1&scope=build"
            return orjson.dumps(self.variables[app]) if app in self.variables else None
        return self.archives.get(path.removeprefix("/sources/"))


class Running:
    """The service, and somebody who listens to what it tells."""

    def __init__(
        self, app: FastAPI, client: httpx2.AsyncClient, bus: InProcessBus, folder: Path, source: SourceStub
    ) -> None:
        self.chassis: Service = app.state.service
        self.client = client
        self.bus = bus
        self.home = folder / "home/builder"
        self.images_root = folder / "home/registry/images"
        self.images = OciLayout(self.images_root)
        self.source = source
        self.app_id = new_id()
        self._heard: asyncio.Queue[Envelope] = asyncio.Queue()

    async def hear(self, envelopes: Sequence[Envelope]) -> None:
        for each in envelopes:
            self._heard.put_nowait(each)

    async def tell(self, message: Command | Event, saga_id: str, attempt: int = 1) -> None:
        told = envelope(
            message, source="test", saga_id=saga_id, app_id=self.app_id, app="shop", step="build", attempt=attempt
        )
        await self.bus.publish([told])

    async def answer(self, saga_id: str) -> Envelope:
        async with asyncio.timeout(BOUND_S):
            while True:
                heard = await self._heard.get()
                if heard.correlationid == saga_id:
                    return heard

    async def build(self, files: Files = FILES, description: AppDescription = PROCFILE, saga: str = "") -> Envelope:
        saga = saga or new_id()
        await self.tell(self.command(files, description), saga)
        return await self.answer(saga)

    def command(self, files: Files = FILES, description: AppDescription = PROCFILE) -> BuildImage:
        return BuildImage(app="shop", commit=COMMIT, source_digest=self.source.add(files), description=description)

    async def staged(self) -> list[str]:
        return [digest for _, digest in await self.images.images("staging/")]

    def work_left(self) -> list[str]:
        folder = self.home / "work"
        return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


@contextlib.asynccontextmanager
async def started(folder: Path, **fields: Any) -> AsyncIterator[Running]:
    source = SourceStub(folder)
    server = await asyncio.start_server(source.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = BuilderSettings(
        home=folder / "home",
        service_token=SecretStr(TOKEN),
        source_url=f"http://127.0.0.1:{port}",
        deployer_url=f"http://127.0.0.1:{port}",
        test_endpoints=True,
        stop_grace_s=10,
        **fields,
    )
    bus = InProcessBus()
    app = create_app(settings, bus=bus)
    async with server, running(app, token=TOKEN) as client:
        service = Running(app, client, bus, folder, source)
        await bus.subscribe("test", [ImageBuilt, ImageBuildFailed, BuildDiscarded], service.hear)
        await bus.open()
        yield service
        await bus.close()
        await service.images.close()


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    alone(tmp_path, monkeypatch)
    async with started(tmp_path) as found:
        yield found


def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from the working directory; no interpreters but knarr's own and the system's."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


async def nothing_is_staged(service: Running) -> None:
    async with asyncio.timeout(BOUND_S):
        while await service.staged():  # noqa: ASYNC110  the collector tells nobody
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110  the disk and the process table tell nobody
            await asyncio.sleep(0.02)


def slow_app(mark: Path) -> tuple[Files, AppDescription]:
    """A build that prints `slow`, makes the file `mark`, and goes on for ten minutes."""
    script = SLOW_BUILD.replace("os.environ['MARK']", repr(str(mark)))
    setup = {"pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'}
    return {"requirements.txt": "./lib\n", **{f"lib/{k}": v for k, v in {**setup, "slow.py": script}.items()}}, PYTHON


def processes_of(saga_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("KNARR_SAGA_ID") == saga_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def test_migrations_make_the_tables_that_the_code_expects() -> None:
    """Tables, columns, types, indexes."""
    await assert_migrations_match(metadata, MIGRATIONS)


async def test_a_rebase_where_buildpacks_cannot_work_fails_by_name_and_is_undone(service: Running) -> None:
    """The images are in a folder; the log says the same, and the undo of a build is that of a rebase."""
    saga = new_id()
    await service.tell(RebaseImage(app="shop", repository="shop", digest="sha256:" + "cd" * 32), saga)
    failed = await service.answer(saga)
    assert (failed.type, failed.data["retryable"]) == ("ImageBuildFailed", False)
    assert "knarr up --runtime docker" in failed.data["message"]
    assert "buildpacks" in (await service.client.get(f"/builds/{saga}/log")).text
    await service.tell(DiscardBuild(), saga)
    assert (await service.answer(saga)).type == "BuildDiscarded"


async def test_a_build_is_staged_told_and_shown(service: Running) -> None:
    """Command, event, image, `GET /builds/{saga_id}`; no work folder is left."""
    saga = new_id()
    answer = await service.build(saga=saga)

    assert answer.type == "ImageBuilt"
    assert answer.data["repository"] == f"staging/{service.app_id}"
    assert await service.staged() == [answer.data["digest"]]
    assert service.work_left() == []
    assert set(service.source.tokens) == {f"Bearer {TOKEN}"}
    shown = (await service.client.get(f"/builds/{saga}")).json()
    assert {key: shown[key] for key in ("saga_id", "app", "app_id", "commit", "state", "digest")} == {
        "saga_id": saga,
        "app": "shop",
        "app_id": service.app_id,
        "commit": COMMIT,
        "state": "succeeded",
        "digest": answer.data["digest"],
    }
    assert shown["layers"] == answer.data["layers"]
    assert shown["started_at"] <= shown["ended_at"]
    assert shown["log_bytes"] == len((await service.client.get(f"/builds/{saga}/log")).content)


async def test_a_failed_build_tells_the_last_lines_and_keeps_the_log(service: Running) -> None:
    """Final, with the log's end in the event and the whole log one request away; nothing is staged."""
    saga = new_id()
    answer = await service.build({"requirements.txt": "./none-such\n"}, PYTHON, saga)

    assert answer.type == "ImageBuildFailed"
    assert (answer.data["retryable"], answer.data["code"]) == (False, "build_failed")
    assert any("none-such" in line for line in answer.data["log_tail"])
    log = (await service.client.get(f"/builds/{saga}/log")).text
    assert "none-such" in log
    assert "Failed: " in log
    shown = (await service.client.get(f"/builds/{saga}")).json()
    assert (shown["state"], shown["error"]) == ("failed", answer.data["message"])
    assert await service.staged() == []
    assert service.work_left() == []


async def test_a_dockerfile_names_the_setting_to_change(service: Running) -> None:
    """A final error for the person who pushed."""
    answer = await service.build({"Dockerfile": "FROM scratch\n"}, AppDescription(runtime=Runtime(kind="dockerfile")))

    assert answer.data["code"] == "needs_docker"
    assert "KNARR_BUILDER=buildx" in answer.data["message"]


async def test_a_source_that_is_gone_is_final_and_one_that_does_not_answer_is_not(service: Running) -> None:
    """404 will be 404 again; a damaged archive may arrive whole the next time."""
    gone = service.command()
    service.source.archives.clear()
    saga = new_id()
    await service.tell(gone, saga)
    assert (await service.answer(saga)).data["retryable"] is False

    damaged = service.command()
    service.source.archives[damaged.source_digest] += b"x"
    saga = new_id()
    await service.tell(damaged, saga)
    answer = await service.answer(saga)
    assert (answer.data["retryable"], answer.data["code"]) == (True, "unavailable")
    assert "arrived damaged" in answer.data["message"]


async def test_a_second_attempt_appends_to_the_log(service: Running) -> None:
    """One log a saga; the newest attempt is what is shown."""
    saga, command = new_id(), service.command()
    service.source.archives[command.source_digest] += b"x"
    await service.tell(command, saga)
    assert (await service.answer(saga)).type == "ImageBuildFailed"
    service.source.add(FILES)

    await service.tell(command, saga, attempt=2)

    assert (await service.answer(saga)).type == "ImageBuilt"
    log = (await service.client.get(f"/builds/{saga}/log")).text
    assert log.index("=== attempt 1") < log.index("Failed: ") < log.index("=== attempt 2") < log.index("Image staging/")
    assert (await service.client.get(f"/builds/{saga}")).json()["state"] == "succeeded"


async def test_an_undo_removes_the_image_and_says_so(service: Running) -> None:
    """The log stays."""
    saga = new_id()
    built = await service.build(saga=saga)

    await service.tell(DiscardBuild(), saga)
    answer = await service.answer(saga)

    assert answer.type == "BuildDiscarded"
    assert answer.data["found"] == [f"image staging/{service.app_id}@{built.data['digest']}"]
    assert answer.data["done"] == ["removed it"]
    assert await service.staged() == []
    assert (await service.client.get(f"/builds/{saga}")).json()["state"] == "discarded"
    assert (await service.client.get(f"/builds/{saga}/log")).text


async def test_an_undo_of_nothing_succeeds(service: Running) -> None:
    """It found nothing, and a build that arrives later is refused."""
    saga = new_id()
    await service.tell(DiscardBuild(), saga)
    answer = await service.answer(saga)
    assert (answer.data["found"], answer.data["done"]) == ([], [])

    assert (await service.build(saga=saga)).data["code"] == "undone"
    assert await service.staged() == []


async def test_two_deployments_of_one_commit_do_not_remove_each_others_image(service: Running) -> None:
    """The bytes go with the last reference."""
    one, two = new_id(), new_id()
    digest = (await service.build(saga=one)).data["digest"]
    assert (await service.build(saga=two)).data["digest"] == digest

    await service.tell(DiscardBuild(), one)
    assert "another deployment holds it" in (await service.answer(one)).data["done"][0]
    assert await service.staged() == [digest]

    await service.tell(DiscardBuild(), two)
    assert (await service.answer(two)).data["done"] == ["removed it"]
    assert await service.staged() == []


async def test_a_deployment_that_succeeded_needs_the_staged_image_no_more(service: Running) -> None:
    """It goes by itself; the build and its log are still shown."""
    saga = new_id()
    await service.build(saga=saga)

    await service.tell(DeploymentSucceeded(app="shop", saga="deploy", commit=COMMIT), saga)

    await nothing_is_staged(service)
    assert (await service.client.get(f"/builds/{saga}")).json()["state"] == "succeeded"


async def test_an_undo_ends_a_running_build_with_all_its_processes(service: Running, tmp_path: Path) -> None:
    """A cancelled deployment does not go on computing."""
    saga = new_id()
    await service.tell(service.command(*slow_app(tmp_path / "mark")), saga)
    await until((tmp_path / "mark").exists)
    assert processes_of(saga)

    await service.tell(DiscardBuild(), saga)

    assert (await service.answer(saga)).type == "BuildDiscarded"
    assert processes_of(saga) == []
    assert service.work_left() == []
    assert await service.staged() == []


async def test_a_build_over_its_time_is_stopped_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timed_out`, with what it printed last, and the setting to change."""
    alone(tmp_path, monkeypatch)
    async with started(tmp_path, build_timeout_s=3.0) as service:
        saga = new_id()
        answer = await service.build(*slow_app(tmp_path / "mark"), saga)

        assert (answer.data["retryable"], answer.data["code"]) == (False, "timed_out")
        assert "KNARR_BUILD_TIMEOUT_S" in answer.data["message"]
        assert processes_of(saga) == []
        assert service.work_left() == []


async def test_a_start_clears_up_after_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work folders and processes of builds that nobody watches any more."""
    alone(tmp_path, monkeypatch)
    saga, home = new_id(), tmp_path / "home/builder"
    (home / "work" / saga).mkdir(parents=True)
    env = {"KNARR_SAGA_ID": saga, "KNARR_BUILD_HOME": str(home)}
    left = await asyncio.create_subprocess_exec("/bin/sleep", "600", env=env, start_new_session=True)

    async with started(tmp_path) as service:
        assert service.work_left() == []
        assert await asyncio.wait_for(left.wait(), BOUND_S) < 0


async def test_an_image_whose_remover_was_killed_goes_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: a process that has its database alone knows that nobody else removes it."""
    alone(tmp_path, monkeypatch)
    monkeypatch.setattr(staging, "REMOVAL_S", 10 * BOUND_S)
    async with started(tmp_path) as service:
        await service.build()
        now_ms = await service.chassis.db.now_ms()
        killed = update(staged).values(released_ms=now_ms, removing_ms=now_ms)
        await service.chassis.db.write(lambda conn: conn.execute(killed))

    async with started(tmp_path) as service:
        await nothing_is_staged(service)


@pytest.mark.stack("MYSQL_URL")
async def test_a_replica_that_starts_leaves_the_build_of_another_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where replicas share a database they may share a home, and what lies there is a living one's work."""
    alone(tmp_path, monkeypatch)
    saga, mark = new_id(), tmp_path / "mark"
    async with mysql_schema() as url:
        db = Database(url)
        await db.open()
        await upgrade(db, MIGRATIONS)
        await db.close()
        async with started(tmp_path, database_url=url) as first:
            await first.tell(first.command(*slow_app(mark)), saga)
            await until(mark.exists)
            at_work, folders = processes_of(saga), first.work_left()
            async with started(tmp_path, database_url=url):
                assert processes_of(saga) == at_work
                assert first.work_left() == folders
            await first.tell(DiscardBuild(), saga)
            assert (await first.answer(saga)).type == "BuildDiscarded"
            assert (processes_of(saga), first.work_left()) == ([], [])


async def test_a_log_is_read_by_offset(service: Running) -> None:
    """`X-Next-Offset` says where to go on; past the end there is nothing."""
    saga = new_id()
    await service.build(saga=saga)
    whole = await service.client.get(f"/builds/{saga}/log")
    size = len(whole.content)

    part = await service.client.get(f"/builds/{saga}/log", params={"offset": 10})
    after = await service.client.get(f"/builds/{saga}/log", params={"offset": size + 5})

    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-next-offset"] == part.headers["x-next-offset"] == str(size)
    assert part.content == whole.content[10:]
    assert (after.content, after.headers["x-next-offset"]) == (b"", str(size + 5))


async def test_following_a_log_ends_with_the_build(service: Running, tmp_path: Path) -> None:
    """It begins before the build has printed anything, and has everything at its end."""
    saga = new_id()
    await service.tell(service.command(*slow_app(tmp_path / "mark")), saga)
    following = asyncio.create_task(service.client.get(f"/builds/{saga}/log", params={"follow": "1"}))
    await until((tmp_path / "mark").exists)
    assert not following.done()

    await service.tell(DiscardBuild(), saga)
    followed = await asyncio.wait_for(following, BOUND_S)

    assert followed.status_code == 200
    assert "uv pip install" in followed.text
    ended = await service.client.get(f"/builds/{saga}/log", params={"follow": "1", "offset": len(followed.content)})
    assert ended.content == (await service.client.get(f"/builds/{saga}/log")).content[len(followed.content) :]


async def test_a_stop_ends_a_log_that_is_followed(service: Running, tmp_path: Path) -> None:
    """The build may go on for long; who follows takes the log up again where it ended."""
    saga = new_id()
    await service.tell(service.command(*slow_app(tmp_path / "mark")), saga)
    await until((tmp_path / "mark").exists)
    following = asyncio.create_task(service.client.get(f"/builds/{saga}/log", params={"follow": "1"}))
    await asyncio.sleep(0)
    assert not following.done()
    service.chassis.stopping.set()
    followed = await asyncio.wait_for(following, BOUND_S)
    assert followed.status_code == 200
    assert (await service.client.get(f"/builds/{saga}")).json()["state"] == "running"


async def test_a_build_that_is_not_known_is_not_found(service: Running) -> None:
    """With what to do next; and only ids of sagas are looked for."""
    for path in (f"/builds/{new_id()}", f"/builds/{new_id()}/log"):
        answer = await service.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await service.client.get("/builds/..%2fx/log")).status_code in (400, 404)
    assert (await service.client.get("/builds/nothing")).status_code == 400
    assert (await service.client.get(f"/builds/{new_id()}/log", params={"offset": -1})).status_code == 400


async def test_nobody_reads_builds_without_a_token(service: Running) -> None:
    """Logs may say more than they should."""
    for path in (f"/builds/{new_id()}", f"/builds/{new_id()}/log"):
        assert (await service.client.get(path, headers={"Authorization": ""})).status_code == 401


async def test_what_installs_packages_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password of a private index is in no log, no event and no row."""
    alone(tmp_path, monkeypatch)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://me:hidden-word@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    async with started(tmp_path, build_pass_env=("UV_HTTP_RETRIES",)) as service:
        saga = new_id()
        answer = await service.build({"requirements.txt": "greet\n"}, PYTHON, saga)

        assert (answer.data["retryable"], answer.data["code"]) == (True, "registry_unavailable")
        assert "hidden-word" not in orjson.dumps(answer.data).decode()
        assert "hidden-word" not in (await service.client.get(f"/builds/{saga}/log")).text


async def test_config_vars_reach_the_build_and_no_further(service: Running) -> None:
    """The build step sees the value; the log shows it masked, and the image has it only where the step wrote it."""
    service.source.variables[service.app_id] = {"API_KEY": "hidden-word", "PATH": "/nowhere"}
    step = BuildStep(name="show", command=("sh", "-c", "echo key=$API_KEY; echo $API_KEY | wc -c"), language="node")
    packages = Packages(language="node", tool="npm", manifests=("package.json",))
    described = AppDescription(
        runtime=Runtime(kind="node"), processes={"web": ("node", "s.js")}, packages=(packages,), build=(step,)
    )
    saga = new_id()

    built = await service.build({"package.json": '{"name": "shop"}'}, described, saga)

    text = (await service.client.get(f"/builds/{saga}/log")).text
    assert "key=****\n12\n" in text
    assert "hidden-word" not in text
    assert "hidden-word" not in orjson.dumps(built.data).decode()
    assert not any(b"hidden-word" in path.read_bytes() for path in service.images_root.rglob("*") if path.is_file())


async def test_the_image_is_what_the_specification_asks_for(service: Running) -> None:
    """OCI image-spec 1.1: the required fields of layout, index, manifest and config, and every blob by its digest."""
    built = await service.build()
    layout = next(path.parent for path in service.images_root.rglob("oci-layout"))

    assert orjson.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = orjson.loads((layout / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert [each["digest"] for each in index["manifests"]] == [built.data["digest"]]
    manifest = _blob(layout, index["manifests"][0])
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    config = _blob(layout, manifest["config"])
    assert config["os"] in {"linux", "darwin"}
    assert config["architecture"] in {"amd64", "arm64"}
    assert config["rootfs"]["type"] == "layers"
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == len(config["history"])
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
        assert layer["digest"] == diff_id == digest_of(_path(layout, layer))
    assert config["config"]["WorkingDir"] == "/app"
    assert COMMIT not in orjson.dumps(config).decode()


def _path(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    path = layout.joinpath("blobs", *str(descriptor["digest"]).split(":"))
    assert path.stat().st_size == descriptor["size"]
    return path


def _blob(layout: Path, descriptor: Mapping[str, Any]) -> Any:
    path = _path(layout, descriptor)
    assert digest_of(path) == descriptor["digest"]
    return orjson.loads(path.read_bytes())


def test_a_builder_that_this_version_does_not_have_is_refused(tmp_path: Path) -> None:
    """At the start, with the setting's name."""
    with pytest.raises(Misconfigured, match="KNARR_BUILDER"):
        create_app(BuilderSettings(home=tmp_path, builder="buildx"))
