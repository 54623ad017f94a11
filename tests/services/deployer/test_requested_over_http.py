"""One-off commands, stop and start, and selected log lines over HTTP, on a runtime that runs nothing."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ocistore.layout import OciLayout
from seedwork.adapters.in_process import InProcessBus
from seedwork.messages import new_id
from seedwork.testing.http import running
from services.deployer import models, runs
from services.deployer.adapters.memory import MemoryRuntime
from services.deployer.app import create_app
from services.deployer.app_logs import Selection, selected
from services.deployer.ports import Release, RunningCommand
from services.deployer.settings import DeployerSettings
from services.deployer.vault import Vault
from services.webhook.contract import AppCreated
from tests.services.deployer.conftest import Shelf, eventually
from tests.services.deployer.test_service import ANSWERS, TOKEN, Stack


class Command:
    """A command whose output and end the test decides."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self.exit_code: int | None = None
        self.closed = asyncio.Event()
        self.pieces: asyncio.Queue[bytes | int] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not isinstance(piece := await self.pieces.get(), int):
            yield piece
        self.exit_code = piece

    async def close(self) -> None:
        self.closed.set()


class Runtime(MemoryRuntime):
    """Keeps the commands that were started, and has a log of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[Command] = []
        self.releases: list[Release] = []
        self.log: list[bytes] = []
        self.coming: asyncio.Queue[bytes] = asyncio.Queue()

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:
        assert label.startswith("run.")
        self.releases.append(release)
        self.commands.append(Command(argv))
        return self.commands[-1]

    async def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        yield b"".join(self.log[max(0, len(self.log) - lines) :])
        while follow:
            yield await self.coming.get()


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
async def stack(
    tmp_path: Path, images: OciLayout, shelf: Shelf, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    monkeypatch.chdir(tmp_path)
    settings = DeployerSettings(home=tmp_path / "home", token=SecretStr(TOKEN))
    bus = InProcessBus()
    app = create_app(settings, bus=bus, images=images, runtime=runtime)
    async with running(app, token=TOKEN) as client:
        stack = Stack(bus, client, shelf, settings.home_of("deployer"), app.state.service)
        await bus.subscribe("coordinator", ANSWERS, stack.hear)
        await bus.open()
        yield stack
        await bus.close()


async def started(stack: Stack, runtime: Runtime, *argv: str) -> tuple[asyncio.Task[httpx2.Response], Command]:
    asking = asyncio.create_task(stack.client.post("/apps/shop/runs", json={"command": list(argv)}))
    before = len(runtime.commands)

    async def running_command() -> list[Command]:
        if asking.done():
            raise AssertionError(asking.result().text)
        return runtime.commands[before:]

    (command,) = await eventually(running_command)
    return asking, command


# ── one-off commands ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_command_runs_in_the_current_release_and_its_status_is_passed_on(
    stack: Stack, runtime: Runtime
) -> None:
    """Bytes as they come, whatever they are; at the end the exit status."""
    await stack.deploy(await stack.shelf.image(env={"COLOUR": {"value": "blue"}}))
    asking, command = await started(stack, runtime, "rake", "db:seed", "with space")
    for piece in (b"one\r", b"\xff\x00", 3):
        command.pieces.put_nowait(piece)
    answer = await asking
    lines = [orjson.loads(line) for line in answer.text.splitlines()]
    assert b"".join(base64.b64decode(line["output"]) for line in lines[:-1]) == b"one\r\xff\x00"
    assert lines[-1] == {"exit_code": 3}
    assert command.argv == ["rake", "db:seed", "with space"]
    assert (runtime.releases[0].number, runtime.releases[0].env["COLOUR"]) == (1, "blue")
    await command.closed.wait()


async def test_a_caller_that_goes_away_ends_the_command(stack: Stack, runtime: Runtime) -> None:
    """Ctrl-C of the command line closes the connection."""
    await stack.deploy(await stack.shelf.image())
    asking, command = await started(stack, runtime, "sleep", "3600")
    asking.cancel()
    await command.closed.wait()


async def test_a_command_ends_with_the_service_and_says_no_status(stack: Stack, runtime: Runtime) -> None:
    """The last line is missing: the command did not end by itself."""
    await stack.deploy(await stack.shelf.image())
    asking, command = await started(stack, runtime, "sleep", "3600")
    stack.service.stopping.set()
    assert "exit_code" not in (await asking).text
    await command.closed.wait()


async def test_a_command_needs_a_release(stack: Stack) -> None:
    """The text has the command that makes one."""
    await stack.send(AppCreated(app="shop"), new_id())
    await eventually(lambda: stack.client.get("/apps/shop"), until=lambda answer: answer.status_code == 200)
    answer = await stack.client.post("/apps/shop/runs", json={"command": ["ls"]})
    assert answer.status_code == 409
    assert "`knarr deploy DIR --app shop`" in answer.text


@pytest.mark.parametrize("command", [[], [""], ["a\0b"], ["x" * 70_000], ["x"] * 1001, "ls -l", [1]])
async def test_what_is_no_command_is_refused(stack: Stack, runtime: Runtime, command: object) -> None:
    """Before anything is started."""
    await stack.deploy(await stack.shelf.image())
    answer = await stack.client.post("/apps/shop/runs", json={"command": command})
    assert answer.status_code in {400, 422}
    assert runtime.commands == []


async def test_commands_at_the_same_time_are_bounded_and_ended_ones_make_room(
    stack: Stack, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one is a process with the memory of the app."""
    monkeypatch.setattr(runs, "MAX_RUNS", 1)
    await stack.deploy(await stack.shelf.image())
    asking, command = await started(stack, runtime, "sleep", "1")
    assert (await stack.client.post("/apps/shop/runs", json={"command": ["ls"]})).status_code == 409
    command.pieces.put_nowait(0)
    await asking
    await command.closed.wait()
    asking, command = await started(stack, runtime, "ls")
    command.pieces.put_nowait(0)
    await asking


# ── stop and start ───────────────────────────────────────────────────────────────────────────────────────────────────


async def post(stack: Stack, path: str) -> dict[str, object]:
    answer = await stack.client.post(path)
    assert answer.status_code in {200, 202}, answer.text
    found: dict[str, object] = answer.json()
    if found["saga_id"]:
        assert (await stack.carry_out(str(found["saga_id"]))).type == "ReleaseDeployed"
    return found


async def formation(stack: Stack) -> dict[str, int]:
    found: dict[str, int] = (await stack.app())["formation"]
    return found


async def test_a_stopped_app_gets_back_what_it_had(stack: Stack) -> None:
    """Also after releases that were made while it was stopped."""
    image = await stack.shelf.image(processes={"worker": ("w",), "cron": ("c",)}, formation={"web": 1, "worker": 2})
    await stack.deploy(image)
    await post(stack, "/apps/shop/stop")
    assert set((await formation(stack)).values()) == {0}
    await stack.deploy(await stack.shelf.image(version="two", processes={"worker": ("w",)}, formation={"web": 1}))
    assert set((await formation(stack)).values()) == {0}
    await post(stack, "/apps/shop/start")
    assert await formation(stack) == {"web": 1, "worker": 2}


async def test_stopping_what_is_stopped_and_starting_what_runs_changes_nothing(stack: Stack) -> None:
    """And says so: no saga, `changed` is false."""
    await stack.deploy(await stack.shelf.image())
    assert await post(stack, "/apps/shop/start") == {"id": None, "saga_id": None, "config_version": 1, "changed": False}
    await post(stack, "/apps/shop/stop")
    assert (await post(stack, "/apps/shop/stop"))["changed"] is False


async def test_an_app_that_never_ran_starts_with_one_web(stack: Stack) -> None:
    """Its release says zero, so there is nothing to restore."""
    await stack.deploy(await stack.shelf.image(processes={"worker": ("w",)}, formation={"web": 0, "worker": 0}))
    await post(stack, "/apps/shop/start")
    assert await formation(stack) == {"web": 1, "worker": 0}


async def test_the_same_config_again_is_said_to_change_nothing(stack: Stack) -> None:
    """`knarr config set` shows it."""
    await stack.deploy(await stack.shelf.image())
    first = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})
    await stack.carry_out(first.json()["saga_id"])
    again = (await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})).json()
    assert (first.json()["changed"], again["changed"], again["saga_id"]) == (True, False, None)


# ── scopes of config vars ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_config_var_for_builds_reaches_no_instance_and_starts_nothing(stack: Stack) -> None:
    """Set as a scope first: the next deployment takes the version, and running instances are left alone."""
    await stack.deploy(await stack.shelf.image())
    await stack.client.patch("/apps/shop/config/scopes", json={"TOKEN": "build"})
    both = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})
    await stack.carry_out(both.json()["saga_id"])

    asked = (await stack.client.patch("/apps/shop/config", json={"TOKEN": "hidden-word"})).json()

    assert (asked["changed"], asked["saga_id"]) == (True, None)
    shown = await stack.client.get("/apps/shop/config", params={"reveal": 1, "scope": "build"})
    assert shown.json() == {"COLOUR": "blue", "TOKEN": "hidden-word"}
    assert (await stack.client.get("/apps/shop/config/scopes")).json() == {"TOKEN": "build"}


async def test_a_config_var_for_instances_reaches_no_build(stack: Stack) -> None:
    """The scope `run` starts no saga: instances see what they saw; `both` takes it back."""
    await stack.deploy(await stack.shelf.image())
    first = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})
    await stack.carry_out(first.json()["saga_id"])

    asked = await stack.client.patch("/apps/shop/config/scopes", json={"COLOUR": "run"})

    assert asked.json()["saga_id"] is None
    question: dict[str, str | int] = {"reveal": 1, "scope": "build"}
    assert (await stack.client.get("/apps/shop/config", params=question)).json() == {}
    await stack.client.patch("/apps/shop/config/scopes", json={"COLOUR": "both"})
    assert (await stack.client.get("/apps/shop/config", params=question)).json() == {"COLOUR": "blue"}


async def test_a_build_gets_the_urls_of_addons_that_are_there(stack: Stack) -> None:
    """Not of one whose first release is not live yet, and not with the scope `run`; a config var of the name wins."""
    await stack.deploy(await stack.shelf.image())
    app_id = (await stack.client.get("/apps/shop")).json()["id"]
    row = {"app_id": app_id, "version": None, "saga_id": new_id(), "created_ms": 1}
    sealed = Vault.open(None, stack.home / "config.key").seal({"password": "hidden-word"})

    async def add(conn: AsyncConnection) -> None:
        for kind, state in (("postgres", "live"), ("redis", "pending"), ("mysql", "live")):
            await conn.execute(insert(models.addons).values(**row, name=kind, kind=kind, state=state, sealed=sealed))

    await stack.service.db.write(add)
    question: dict[str, str | int] = {"reveal": 1, "scope": "build"}
    given = (await stack.client.get("/apps/shop/config", params=question)).json()
    assert set(given) == {"DATABASE_URL", "MYSQL_URL"}
    assert "hidden-word" in given["DATABASE_URL"]
    await stack.client.patch("/apps/shop/config/scopes", json={"DATABASE_URL": "run"})
    await stack.client.patch("/apps/shop/config", json={"MYSQL_URL": "mine"})
    assert (await stack.client.get("/apps/shop/config", params=question)).json() == {"MYSQL_URL": "mine"}


async def test_taking_a_config_var_from_instances_releases_the_app(stack: Stack) -> None:
    """What runs must not keep it."""
    await stack.deploy(await stack.shelf.image())
    first = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})
    await stack.carry_out(first.json()["saga_id"])

    asked = (await stack.client.patch("/apps/shop/config/scopes", json={"COLOUR": "build"})).json()

    assert asked["saga_id"] is not None


@pytest.mark.parametrize("body", [{}, {"COLOUR": "sometimes"}, {"PORT": "build"}, {"no name": "run"}])
async def test_a_scope_that_is_not_known_is_refused(stack: Stack, body: dict[str, str]) -> None:
    """And a name that no config var can have."""
    await stack.deploy(await stack.shelf.image())

    assert (await stack.client.patch("/apps/shop/config/scopes", json=body)).status_code == 400


# ── selected lines of the log ────────────────────────────────────────────────────────────────────────────────────────

LOG = [
    b"2026-12-01T10:00:00.000Z web.1 | one\n",
    b"2026-12-01T10:00:01.000Z worker.1 | two\n",
    b"2026-12-01T10:00:02.000Z web.2 | th\rree\t\xff\n",
    b"2026-12-01T10:00:03.000Z web.1 | four\n",
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("?process=web", [0, 2, 3]),
        ("?process=web.1", [0, 3]),
        ("?process=web&lines=1", [3]),
        ("?process=web&lines=0", []),
        ("?process=we", []),
        ("?since=2026-12-01T10:00:02Z", [2, 3]),
        ("?since=2026-12-01T12:00:02%2B02:00&process=web.2", [2]),
    ],
)
async def test_lines_are_selected_before_they_are_counted(
    stack: Stack, runtime: Runtime, query: str, expected: list[int]
) -> None:
    """`lines=1` of one process is its last line, not a line among the last one of all."""
    await stack.deploy(await stack.shelf.image())
    runtime.log = LOG
    answer = await stack.client.get(f"/apps/shop/logs{query}")
    assert answer.content == b"".join(LOG[each] for each in expected)


async def test_a_time_without_a_zone_is_refused(stack: Stack) -> None:
    """It would mean another moment on another machine."""
    await stack.deploy(await stack.shelf.image())
    assert (await stack.client.get("/apps/shop/logs?since=2026-12-01T10:00:02")).status_code in {400, 422}


async def test_a_followed_selection_begins_with_its_last_lines_and_goes_on(runtime: Runtime) -> None:
    """Lines of others stay out, also when a piece ends in the middle of a line."""
    runtime.log = LOG
    for piece in (b"2026-12-01T10:00:04.000Z we", b"b.1 | five\n2026-12-01T10:00:05.000Z worker.1 | six\n", LOG[0]):
        runtime.coming.put_nowait(piece)
    lines = selected(runtime, "a", Selection(process="web"), lines=1, follow=True)
    assert [await anext(lines) for _ in range(3)] == [LOG[3], b"2026-12-01T10:00:04.000Z web.1 | five\n", LOG[0]]
