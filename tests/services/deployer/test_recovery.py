"""The service in a process of its own, killed with -9: afterwards what should run runs once, and nothing else does."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

import services
from ocistore.layout import OciLayout
from ocistore.store import Image
from seedwork.messages import new_id
from tests.services.deployer.conftest import PATIENCE_S, PYTHON, WEB, Shelf, eventually

TOKEN = "the-operators-token"
ROOT = Path(services.__file__).parents[1]


@dataclass
class Platform:
    """`python -m services.deployer` on a home that outlives it."""

    home: Path
    shelf: Shelf
    port_base: int
    process: "subprocess.Popen[bytes] | None" = None
    fence: int = 0
    sagas: list[str] = field(default_factory=list)

    def start(self) -> None:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KNARR_")},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'libs'}",
            "KNARR_HOME": str(self.home),
            "KNARR_PORT_BASE": str(self.port_base),
            "KNARR_APP_PORT_BASE": str(self.port_base + 10),
            "KNARR_TOKEN": TOKEN,
            "KNARR_TEST_ENDPOINTS": "true",
            "KNARR_WORKER_SETTLE_S": "0.2",
            "KNARR_APP_STOP_GRACE_S": "3",
        }
        log = (self.home.parent / "deployer.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.deployer"], env=env, stdout=log, stderr=log, cwd=self.home.parent
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait()

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port_base + 5}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=PATIENCE_S,
        )

    async def ready(self) -> None:
        async def asked() -> int:
            assert self.process is not None
            assert self.process.poll() is None, (self.home.parent / "deployer.log").read_text()
            try:
                async with self.client() as client:
                    return (await client.get("/readyz")).status_code
            except httpx2.TransportError:
                return 0

        await eventually(asked, until=lambda status: status == 200)

    async def send(self, name: str, saga_id: str, data: Mapping[str, Any]) -> None:
        body = {"app_id": self.shelf.app_id, "saga_id": saga_id, "step": "deploy", "fence": self.fence, "data": data}
        async with self.client() as client:
            answer = await client.post(f"/test/commands/{name}", json=body)
        assert answer.status_code == 200, answer.text

    async def deploy(self, image: Image) -> str:
        """Ask for it; whoever calls waits for what it wants to see."""
        self.fence += 1
        self.sagas.append(new_id())
        data = {"app": "shop", "repository": image.repository, "digest": image.digest}
        await self.send("DeployRelease", self.sagas[-1], data)
        return self.sagas[-1]

    async def app(self) -> dict[str, Any]:
        async with self.client() as client:
            found: dict[str, Any] = (await client.get("/apps/shop")).json()
            return found

    async def live(self, number: int) -> None:
        await eventually(self.app, until=lambda app: app.get("release") == number and app["health"] == "healthy")
        await eventually(self.app, until=lambda app: len(app["instances"]) == 1)

    async def text(self, path: str = "") -> str:
        async with httpx2.AsyncClient(timeout=PATIENCE_S) as client:
            return (await client.get(f"http://127.0.0.1:{self.port_base + 10}/{path}")).text

    async def instances(self) -> list[tuple[str, str]]:
        """Saga and label of every process that runs for the app, read from the process table."""
        found = []
        for process in psutil.process_iter():
            try:
                env = process.environ()
                if env.get("KNARR_APP_ID") == self.shelf.app_id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((env["KNARR_SAGA_ID"], env["KNARR_INSTANCE"]))
            except (psutil.Error, OSError):
                continue
        return found

    def folders(self) -> set[str]:
        return {path.name for path in (self.home / "deployer" / "releases").iterdir()}


@pytest.fixture
async def platform(tmp_path: Path, ports: int) -> AsyncIterator[Platform]:
    home = tmp_path / "home"
    home.mkdir()
    folder = tmp_path / "layers-made"
    folder.mkdir()
    images = OciLayout(home / "registry" / "images")
    platform = Platform(home, Shelf(images, folder), ports)
    platform.start()
    try:
        await platform.ready()
        yield platform
        assert platform.stop() == 0
        assert await platform.instances() == []
    finally:
        if platform.process and platform.process.poll() is None:
            platform.kill()
        await images.close()


async def test_after_kill_9_the_app_runs_once_again_at_its_address(platform: Platform) -> None:
    """The kernel ends the instance with the platform; the restart brings it back, once."""
    saga = await platform.deploy(await platform.shelf.image(version="one"))
    await platform.live(1)
    first = await platform.text("pid")
    platform.kill()
    await eventually(platform.instances, until=lambda found: found == [])

    platform.start()
    await platform.ready()
    await platform.live(1)
    assert await platform.text() == "one"
    assert await platform.text("pid") != first
    assert await platform.instances() == [(saga, "web.1")]


@pytest.mark.parametrize("moment", ["unpacking", "starting"])
async def test_killed_in_the_middle_of_a_deployment_it_is_carried_on(platform: Platform, moment: str) -> None:
    """The first version answers meanwhile; in the end the second one does, alone."""
    await platform.deploy(await platform.shelf.image(version="one"))
    await platform.live(1)
    slow = "import time; time.sleep(1)\n" + WEB.format(version="two")
    saga = await platform.deploy(await platform.shelf.image({"app.py": slow}))
    reached: Mapping[str, Callable[[], Awaitable[object]]] = {
        "unpacking": lambda: _value(any(platform.home.rglob(f"*{saga}*"))),
        "starting": lambda: _member(platform.instances(), (saga, "web.1")),
    }
    await eventually(reached[moment])
    platform.kill()

    platform.start()
    await platform.ready()
    await platform.live(2)
    assert await platform.text() == "two"
    assert await platform.instances() == [(saga, "web.1")]
    await eventually(lambda: _value(platform.folders() == {saga}))


async def test_killed_while_the_release_command_runs_nothing_of_it_stays_and_it_runs_again(platform: Platform) -> None:
    """At least once, before traffic moves."""
    code = "import pathlib, time; p = pathlib.Path('" + str(platform.home.parent / "ran") + "')\n"
    code += "first = not p.exists(); p.touch(); time.sleep(600 if first else 0)"
    saga = await platform.deploy(await platform.shelf.image(release=(PYTHON, "-c", code)))
    await eventually(lambda: _member(platform.instances(), (saga, "release.1")))
    await eventually(lambda: _value((platform.home.parent / "ran").exists()))
    platform.kill()
    platform.start()
    await platform.ready()
    await platform.live(1)
    assert await platform.instances() == [(saga, "web.1")]


async def test_killed_in_the_middle_of_an_undo_it_is_carried_on(platform: Platform) -> None:
    """The version before serves, and nothing of the undone release is left."""
    slow = "import time; time.sleep(0.7)\n" + WEB.format(version="one")
    first = await platform.deploy(await platform.shelf.image({"app.py": slow}))
    await platform.live(1)
    second = await platform.deploy(await platform.shelf.image(version="two"))
    await platform.live(2)
    await platform.send("RollBackRelease", second, {})
    await eventually(lambda: _member(platform.instances(), (first, "web.1")))
    platform.kill()

    platform.start()
    await platform.ready()
    await platform.live(1)
    assert await platform.text() == "one"
    assert await platform.instances() == [(first, "web.1")]
    await eventually(lambda: _value(not any((platform.home / "deployer").rglob(f"*{second}*"))))


async def test_a_graceful_stop_ends_every_instance(platform: Platform) -> None:
    """And the next start brings them back."""
    await platform.deploy(await platform.shelf.image(version="one"))
    await platform.live(1)
    assert await asyncio.to_thread(platform.stop) == 0
    assert await platform.instances() == []
    platform.start()
    await platform.ready()
    await platform.live(1)
    assert await platform.text() == "one"


async def _value(value: object) -> object:
    return value


async def _member(found: Awaitable[list[tuple[str, str]]], wanted: tuple[str, str]) -> bool:
    return wanted in await found
