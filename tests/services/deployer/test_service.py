"""The whole service on local processes: commands in, answers out, and what people read and ask over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from pydantic import SecretStr

from ocistore.layout import OciLayout
from ocistore.store import Image
from seedwork.adapters.in_process import InProcessBus
from seedwork.chassis.service import Service
from seedwork.messages import Command, Envelope, Event, Message, envelope, new_id
from seedwork.testing.http import running
from seedwork.testing.migrations import assert_migrations_match
from services.deployer import models
from services.deployer.app import MIGRATIONS, create_app
from services.deployer.contract import (
    AppRetired,
    DeployRelease,
    ReleaseDeployed,
    ReleaseDeployFailed,
    ReleaseRequested,
    ReleaseRolledBack,
    RetireApp,
    RetireAppFailed,
    RollBackRelease,
)
from services.deployer.settings import DeployerSettings
from services.webhook.contract import AppCreated
from tests.services.deployer.conftest import PRINTS, WEB, Shelf, eventually

TOKEN = "the-operators-token"
ANSWERS: list[type[Message]] = [
    ReleaseDeployed,
    ReleaseDeployFailed,
    ReleaseRolledBack,
    AppRetired,
    RetireAppFailed,
    ReleaseRequested,
]

SHOUT = """
import threading
def shout():
    while True:
        print("x" * 1000)
threading.Thread(target=shout, daemon=True).start()
"""


class Stack:
    """The service on a bus, with somebody who plays the coordinator."""

    def __init__(
        self, bus: InProcessBus, client: httpx2.AsyncClient, shelf: Shelf, home: Path, service: Service
    ) -> None:
        self.client = client
        self.shelf = shelf
        self.home = home
        self.service = service
        self.auth = service.auth
        self._bus = bus
        self._heard: list[Envelope] = []
        self._came = asyncio.Condition()
        self._fence = 0

    async def hear(self, envelopes: Sequence[Envelope]) -> None:
        async with self._came:
            self._heard += envelopes
            self._came.notify_all()

    async def send(self, message: Command | Event, saga_id: str) -> Envelope:
        self._fence += isinstance(message, DeployRelease)
        sent = envelope(
            message,
            source="saga_coordinator",
            saga_id=saga_id,
            app_id=self.shelf.app_id,
            app="shop",
            step="deploy",
            attempt=1,
            fence=self._fence,
        )
        await self._bus.publish([sent])
        return sent

    async def ask(self, command: Command, saga_id: str) -> Envelope:
        """Send a command and wait for its answer."""
        sent = await self.send(command, saga_id)
        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(lambda: any(each.causationid == sent.id for each in self._heard))
        return next(each for each in self._heard if each.causationid == sent.id)

    async def deploy(self, image: Image, saga_id: str | None = None, **command: Any) -> Envelope:
        asked = DeployRelease(app="shop", repository=image.repository, digest=image.digest, **command)
        return await self.ask(asked, saga_id or new_id())

    async def requested(self, saga_id: str) -> ReleaseRequested:
        """What was asked of the coordinator under that saga's id."""
        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(lambda: any(each.correlationid == saga_id for each in self._heard))
        found = next(each for each in self._heard if each.correlationid == saga_id)
        return ReleaseRequested.model_validate(found.data)

    async def carry_out(self, saga_id: str) -> Envelope:
        """What the coordinator makes of a `ReleaseRequested`, after the registry's part."""
        asked = await self.requested(saga_id)
        return await self.ask(DeployRelease(repository="shop", **asked.model_dump(exclude={"requested_by"})), saga_id)

    async def app(self) -> dict[str, Any]:
        answer = await self.client.get("/apps/shop")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def get(self, path: str = "") -> httpx2.Response:
        """From the app itself."""
        async with httpx2.AsyncClient(timeout=20) as client:
            return await client.get((await self.app())["url"] + path)

    def carriers(self, saga_id: str) -> list[str]:
        """Whatever carries the saga's id outside the database: files, and processes by their environment."""
        found = [str(path) for path in self.home.rglob(f"*{saga_id}*")]
        for process in psutil.process_iter():
            try:
                if process.environ().get("KNARR_SAGA_ID") == saga_id:
                    found.append(f"process {process.pid}")
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture
def settings(tmp_path: Path, ports: int, monkeypatch: pytest.MonkeyPatch) -> DeployerSettings:
    monkeypatch.chdir(tmp_path)
    return DeployerSettings(
        home=tmp_path / "home",
        token=SecretStr(TOKEN),
        app_port_base=ports,
        start_timeout_s=20,
        app_stop_grace_s=5,
        worker_settle_s=0.2,
    )


@pytest.fixture
async def stack(settings: DeployerSettings, images: OciLayout, shelf: Shelf) -> AsyncIterator[Stack]:
    bus = InProcessBus()
    app = create_app(settings, bus=bus, images=images)
    async with running(app, token=TOKEN) as client:
        stack = Stack(bus, client, shelf, settings.home_of("deployer"), app.state.service)
        await bus.subscribe("coordinator", ANSWERS, stack.hear)
        await bus.open()
        yield stack
        await bus.close()


async def test_the_migrations_make_the_tables_that_the_code_expects() -> None:
    """Column by column."""
    await assert_migrations_match(models.metadata, MIGRATIONS)


# ── deploying and undoing, seen from outside ─────────────────────────────────────────────────────────────────────────


async def test_a_deployed_app_answers_at_its_address(stack: Stack) -> None:
    """What the answer, the API and the app itself say fits together."""
    image, saga = await stack.shelf.image(version="one"), new_id()
    answer = await stack.deploy(image, saga)
    assert answer.type == "ReleaseDeployed", answer.data

    shown = await stack.app()
    assert (shown["id"], shown["name"], shown["release"], shown["digest"]) == (
        stack.shelf.app_id,
        "shop",
        1,
        image.digest,
    )
    assert (shown["health"], shown["url"]) == ("healthy", answer.data["url"])
    (instance,) = shown["instances"]
    assert (instance["process"], instance["state"], instance["restarts"]) == ("web.1", "up", 0)
    assert (await stack.get()).text == "one"

    (release,) = (await stack.client.get("/apps/shop/releases")).json()["items"]
    assert release["manifest_hash"] == answer.data["manifest_hash"]
    assert (release["number"], release["state"], release["saga_id"]) == (1, "live", saga)


async def test_clients_see_no_error_while_releases_come_and_go(stack: Stack) -> None:
    """Over a kept connection and over new ones: through a deployment, a failed one, its undo, and a live one's undo."""
    await stack.deploy(await stack.shelf.image(version="one"))
    url = (await stack.app())["url"]
    seen: set[str] = set()
    wrong: list[str] = []
    stop = asyncio.Event()

    async def watch(*, keep: bool) -> None:
        limits = httpx2.Limits(max_keepalive_connections=1 if keep else 0)
        async with httpx2.AsyncClient(timeout=20, limits=limits) as client:
            while not stop.is_set():
                try:
                    answer = await client.get(url)
                except httpx2.HTTPError as error:
                    wrong.append(repr(error))
                    continue
                seen.add(answer.text)
                if answer.status_code != 200:
                    wrong.append(answer.text)
                await asyncio.sleep(0.005)

    watchers = [asyncio.create_task(watch(keep=keep)) for keep in (True, False)]
    second, broken = new_id(), new_id()
    assert (await stack.deploy(await stack.shelf.image(version="two"), second)).type == "ReleaseDeployed"
    assert (await stack.deploy(await stack.shelf.image({"app.py": "boom"}), broken)).type == "ReleaseDeployFailed"
    await stack.ask(RollBackRelease(), broken)
    undone = await stack.ask(RollBackRelease(), second)
    assert undone.data["done"][0] == "release 1 serves again"
    stop.set()
    await asyncio.gather(*watchers)

    assert wrong == []
    assert seen == {"one", "two"}
    assert (await stack.get()).text == "one"


async def test_after_an_undo_nothing_carries_the_sagas_id(stack: Stack) -> None:
    """Read from disk and from the process table; the answer says what was found."""
    first, saga = new_id(), new_id()
    await stack.deploy(await stack.shelf.image(version="one"), first)
    await stack.deploy(await stack.shelf.image(version="two"), saga)
    assert len(stack.carriers(saga)) >= 2
    answer = await stack.ask(RollBackRelease(), saga)

    assert stack.carriers(saga) == []
    assert stack.carriers(first) != []
    assert "instance web.1 of release 2" in answer.data["found"]
    assert f"folder releases/{saga}" in answer.data["found"]


async def test_a_failed_deployment_leaves_nothing_even_before_its_undo(stack: Stack) -> None:
    """The worker cleans up after itself; the failure says what the app printed."""
    saga = new_id()
    answer = await stack.deploy(await stack.shelf.image({"app.py": "import nothing_like_this"}), saga)
    assert answer.type == "ReleaseDeployFailed"
    assert (answer.data["retryable"], answer.data["code"]) == (False, "start_failed")
    assert "No module named 'nothing_like_this'" in answer.data["log_tail"][-1]
    assert stack.carriers(saga) == []


async def test_an_undo_stops_a_deployment_that_is_under_way(stack: Stack) -> None:
    """It is cancelled, takes its things away, and answers no more."""
    saga = new_id()
    sleeping = await stack.shelf.image({"app.py": "import time; time.sleep(600)"})
    asked = DeployRelease(app="shop", repository=sleeping.repository, digest=sleeping.digest)
    await stack.send(asked, saga)

    async def runs() -> list[str]:
        return [each for each in stack.carriers(saga) if each.startswith("process")]

    await eventually(runs)
    answer = await stack.ask(RollBackRelease(), saga)
    assert answer.type == "ReleaseRolledBack"
    assert stack.carriers(saga) == []


async def test_a_retired_app_is_gone(stack: Stack) -> None:
    """404 here, nothing listens at its address, no file of it is left but shared layers."""
    saga = new_id()
    await stack.deploy(await stack.shelf.image(), saga)
    url = (await stack.app())["url"]
    answer = await stack.ask(RetireApp(app="shop"), new_id())

    assert answer.type == "AppRetired", answer.data
    assert (await stack.client.get("/apps/shop")).status_code == 404
    with pytest.raises(httpx2.ConnectError):
        await httpx2.AsyncClient().get(url)
    assert stack.carriers(saga) == []
    assert not list(stack.home.rglob(f"*{stack.shelf.app_id}*"))


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_config_before_the_first_release_starts_no_saga(stack: Stack) -> None:
    """200 with the version; the first release runs with it."""
    await stack.send(AppCreated(app="shop"), new_id())
    await eventually(lambda: stack.client.get("/apps/shop"), until=lambda answer: answer.status_code == 200)
    answer = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue"})
    assert (answer.status_code, answer.json()) == (
        200,
        {"id": None, "saga_id": None, "config_version": 1, "changed": True},
    )

    await stack.deploy(await stack.shelf.image())
    assert "COLOUR=blue" in (await stack.get("env")).text


async def test_a_config_change_is_a_saga_of_its_own(stack: Stack) -> None:
    """202 with its id and place; carried out, the app has the new values, and null removed one."""
    await stack.deploy(await stack.shelf.image())
    first = await stack.client.patch("/apps/shop/config", json={"COLOUR": "blue", "SIZE": "large"})
    assert first.status_code == 202
    saga = first.json()["saga_id"]
    assert first.json()["id"] == saga
    assert first.headers["location"].endswith(f"/sagas/{saga}")
    asked = await stack.requested(saga)
    assert (asked.kind, asked.config_version, asked.requested_by) == ("config", 2, "local")
    assert "blue" not in asked.model_dump_json()
    assert (await stack.carry_out(saga)).type == "ReleaseDeployed"

    second = (await stack.client.patch("/apps/shop/config", json={"SIZE": None})).json()
    await stack.carry_out(second["saga_id"])
    env = (await stack.get("env")).text
    assert "COLOUR=blue" in env
    assert "SIZE=" not in env


async def test_a_change_builds_on_the_one_that_waits(stack: Stack) -> None:
    """So that the newer one contains it; setting what is set already starts nothing."""
    await stack.deploy(await stack.shelf.image())
    await stack.client.patch("/apps/shop/config", json={"A": "1"})
    again = (await stack.client.patch("/apps/shop/config", json={"B": "2"})).json()
    await stack.carry_out(again["saga_id"])
    assert (await stack.client.get("/apps/shop/config?reveal=1")).json() == {"A": "1", "B": "2"}
    nothing = await stack.client.patch("/apps/shop/config", json={"B": "2"})
    assert (nothing.status_code, nothing.json()["saga_id"]) == (200, None)


async def test_values_are_masked_unless_an_admin_reveals_them(stack: Stack) -> None:
    """`read` sees names only."""
    await stack.auth.make_known("reader", SecretStr("readers-token"), team="default", scopes=["read"])
    await stack.deploy(await stack.shelf.image())
    await stack.client.patch("/apps/shop/config", json={"PASSWORD": "hunter2hunter2"})
    reader = {"Authorization": "Bearer readers-token"}
    assert (await stack.client.get("/apps/shop/config", headers=reader)).json() == {"PASSWORD": "********"}
    refused = await stack.client.get("/apps/shop/config?reveal=1", headers=reader)
    assert (refused.status_code, "hunter2" in refused.text) == (403, False)
    revealed = await stack.client.get("/apps/shop/config?reveal=1")
    assert revealed.json() == {"PASSWORD": "hunter2hunter2"}


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({"PORT": "80"}, 400, "knarr gives it to each instance itself"),
        ({"KNARR_HOME_ID": "x"}, 400, "knarr gives it"),
        ({"a-b": "x"}, 400, "letters, digits and _"),
        ({"A": "x\u0000y"}, 400, "no NUL"),
        ({"A": "x" * 70_000}, 400, "64 KiB"),
        ({}, 400, "No config var is named"),
        ({"A": 1}, 422, "string"),
    ],
)
async def test_config_that_cannot_be_is_refused(stack: Stack, change: dict[str, Any], status: int, why: str) -> None:
    """The text names what is wrong; nothing is stored."""
    await stack.deploy(await stack.shelf.image())
    answer = await stack.client.patch("/apps/shop/config", json=change)
    assert answer.status_code in {status, 400}
    assert why in answer.text
    assert (await stack.client.get("/apps/shop/config")).json() == {}


async def test_scaling_is_a_saga_and_is_bounded(stack: Stack) -> None:
    """Processes that exist, numbers that are possible."""
    await stack.deploy(await stack.shelf.image())
    answer = await stack.client.patch("/apps/shop/formation", json={"web": 2})
    assert answer.status_code == 202
    await stack.carry_out(answer.json()["saga_id"])
    assert [each["process"] for each in (await stack.app())["instances"]] == ["web.1", "web.2"]

    for wanted, why in (({"clock": 1}, "no process 'clock'"), ({"web": 21}, "0 to 20"), ({"web": -1}, "0 to 20")):
        refused = await stack.client.patch("/apps/shop/formation", json=wanted)
        assert refused.status_code == 400
        assert why in refused.text


async def test_scaled_to_nothing_an_app_says_so(stack: Stack) -> None:
    """503 with the command that starts one."""
    await stack.deploy(await stack.shelf.image())
    url = (await stack.app())["url"]
    saga = (await stack.client.patch("/apps/shop/formation", json={"web": 0})).json()["saga_id"]
    await stack.carry_out(saga)
    async with httpx2.AsyncClient() as client:
        page = await client.get(url)
    assert page.status_code == 503
    assert "`knarr scale shop web=1`" in page.text
    shown = await stack.app()
    assert (shown["url"], shown["state"]) == (None, "stopped")


async def test_a_restart_brings_fresh_instances(stack: Stack) -> None:
    """The same image and config under a new number."""
    await stack.deploy(await stack.shelf.image())
    before = (await stack.get("pid")).text
    saga = (await stack.client.post("/apps/shop/restart")).json()["saga_id"]
    answer = await stack.carry_out(saga)
    assert (answer.data["number"], answer.data["config_version"]) == (2, 1)
    assert (await stack.get("pid")).text != before


async def test_a_rollback_names_the_release_that_comes_back(stack: Stack) -> None:
    """404 for a number that never was, 409 for one that cannot come back."""
    await stack.deploy(await stack.shelf.image(version="one"))
    await stack.deploy(await stack.shelf.image(version="two"))
    for number, status in ((9, 404), (2, 409)):
        refused = await stack.client.post("/apps/shop/releases", json={"rollback_to": number})
        assert refused.status_code == status, refused.text
    saga = (await stack.client.post("/apps/shop/releases", json={"rollback_to": 1})).json()["saga_id"]
    assert (await stack.carry_out(saga)).data["number"] == 3
    assert (await stack.get()).text == "one"


async def test_nothing_can_be_asked_of_an_app_that_is_not_deployed(stack: Stack) -> None:
    """409 says to deploy first; an unknown app is a 404."""
    await stack.send(AppCreated(app="shop"), new_id())
    await eventually(lambda: stack.client.get("/apps/shop"), until=lambda answer: answer.status_code == 200)
    assert (await stack.app())["health"] == "none"
    assert (await stack.client.post("/apps/shop/restart")).status_code == 409
    assert (await stack.client.patch("/apps/shop/formation", json={"web": 2})).status_code == 409
    assert (await stack.client.get("/apps/nowhere")).status_code == 404


async def test_apps_of_another_team_are_not_seen(stack: Stack) -> None:
    """By name or id."""
    await stack.auth.make_known("other", SecretStr("others-token"), team="other", scopes=["read", "deploy", "admin"])
    await stack.deploy(await stack.shelf.image())
    for name in ("shop", stack.shelf.app_id):
        answer = await stack.client.get(f"/apps/{name}", headers={"Authorization": "Bearer others-token"})
        assert answer.status_code == 404


async def test_logs_name_the_process_of_each_line(stack: Stack) -> None:
    """The last lines, as the bytes that were printed."""
    await stack.deploy(await stack.shelf.image())

    async def lines() -> list[bytes]:
        answer = await stack.client.get("/apps/shop/logs?lines=1")
        return [answer.content] if b"listening" in answer.content else []

    (line,) = await eventually(lines)
    assert line.endswith(b"web.1 | " + PRINTS)


async def test_a_stop_ends_a_log_that_is_followed(stack: Stack) -> None:
    """It would go on for as long as the app does."""
    await stack.deploy(await stack.shelf.image())
    following = asyncio.create_task(stack.client.get("/apps/shop/logs?follow=1"))
    await asyncio.sleep(0)
    assert not following.done()
    stack.service.stopping.set()
    answer = await asyncio.wait_for(following, 30)
    assert answer.status_code == 200


async def test_a_laptop_has_no_addons(stack: Stack) -> None:
    """An empty list; removing one says so."""
    await stack.deploy(await stack.shelf.image())
    assert (await stack.client.get("/apps/shop/addons")).json() == {"items": [], "next_cursor": None}
    answer = await stack.client.delete("/apps/shop/addons/db?confirm=db")
    assert answer.status_code == 404
    assert (await stack.client.delete("/apps/shop/addons/db?confirm=other")).status_code == 400


async def test_an_app_that_prints_without_end_fills_no_disk_and_still_answers(stack: Stack) -> None:
    """Its log is bounded, what was dropped is counted, and the app is not held up."""
    image = await stack.shelf.image({"app.py": SHOUT + WEB.format(version="loud")})
    assert (await stack.deploy(image)).type == "ReleaseDeployed"
    log = stack.home / "logs" / f"{stack.shelf.app_id}.log"

    async def dropped() -> bool:
        return b"[knarr dropped" in log.read_bytes()

    await eventually(dropped)
    assert (await stack.get()).text == "loud"
    assert sum(path.stat().st_size for path in log.parent.iterdir()) <= 17 * 1024 * 1024
