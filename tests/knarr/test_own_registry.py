"""The registry beside `knarr up`, with an engine of canned answers."""

import asyncio
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import pytest

from dockerengine import Endpoint
from dockerengine.testing import CannedEngine, said
from knarr import own_registry
from knarr.home import Home
from knarr.own_registry import OwnRegistry, start_registry
from ocistore.upkeep import upkeep_of
from seedwork.errors import Misconfigured, NotFound, Unavailable

NAME = "knarr-1-images"
INSPECT = f"GET containers/{NAME}/json"
CREATE, START, REMOVE = "POST containers/create", f"POST containers/{NAME}/start", f"DELETE containers/{NAME}"
TAKEN = {"message": "Bind for 127.0.0.1:8790 failed: port is already allocated"}


def a_container(port: int = 8790, image: str = "registry:2") -> dict[str, Any]:
    """As the engine shows it."""
    return {
        "Config": {"Labels": {"io.knarr.registry": image}},
        "HostConfig": {"PortBindings": {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "127.0.0.1"}}},
    }


@pytest.fixture
def engine() -> CannedEngine:
    """One that has the image and no container yet."""
    return CannedEngine(
        {
            "GET images/registry:2/json": said({}),
            "POST volumes/create": said({}),
            CREATE: said({"Id": "1"}),
            f"PUT containers/{NAME}/archive": httpx2.Response(200),
            START: httpx2.Response(204),
            REMOVE: httpx2.Response(204),
        }
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    async def at_once(*_: Any) -> None: ...

    monkeypatch.setattr(own_registry, "_answers", at_once)
    monkeypatch.setattr(own_registry, "_containers_are_reached", at_once)
    home = Home(tmp_path / "home")
    home.make()
    return home


async def started(engine: CannedEngine, home: Home, *, port: int = 8790) -> OwnRegistry:
    async with engine.api() as api:
        return await start_registry(api, home, installation="knarr-1", image="registry:2", port=port)


async def test_it_is_made_with_a_password_on_loopback(engine: CannedEngine, home: Home) -> None:
    """The container knows a hash; the password is in the home, for its user only."""
    registry = await started(engine, home)
    assert registry.url == "http://127.0.0.1:8790"
    config = engine.body(CREATE)
    assert config["HostConfig"]["PortBindings"]["5000/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8790"}]
    assert "REGISTRY_AUTH=htpasswd" in config["Env"]
    assert registry.password not in str(config)
    put = engine.requests[engine.asked.index(f"PUT containers/{NAME}/archive")]
    with tarfile.open(fileobj=io.BytesIO(put.content)) as tar:
        file = tar.extractfile("knarr/htpasswd")
        assert file is not None
        user, _, hashed = file.read().strip().partition(b":")
    assert user == b"knarr"
    assert bcrypt.checkpw(registry.password.encode(), hashed)
    assert home.registry_password_file.stat().st_mode & 0o077 == 0


async def test_one_that_is_there_stays_with_its_port(engine: CannedEngine, home: Home) -> None:
    """Whatever the port base is now: images are known by it."""
    engine.answers[INSPECT] = said(a_container(8795))
    assert (await started(engine, home)).port == 8795
    assert CREATE not in engine.asked
    assert START in engine.asked


async def test_one_of_another_image_is_made_again(engine: CannedEngine, home: Home) -> None:
    """Its volume stays."""
    engine.answers[INSPECT] = said(a_container(image="registry:1"))
    await started(engine, home)
    assert engine.asked.index(REMOVE) < engine.asked.index(CREATE)
    assert not [each for each in engine.asked if each.startswith("DELETE volumes")]


async def test_a_taken_port_is_passed_over(engine: CannedEngine, home: Home) -> None:
    """The next one is tried; what was half made goes."""
    answers = [said(TAKEN, 500), httpx2.Response(204)]
    engine.answers[START] = lambda _: answers.pop(0)
    assert (await started(engine, home)).port == 8791
    engine.answers[START] = said(TAKEN, 500)
    with pytest.raises(Unavailable, match=r"8790 to 8799 of 127\.0\.0\.1 are taken.*--port-base"):
        await started(engine, home)


async def test_another_fault_of_the_start_is_its_own(engine: CannedEngine, home: Home) -> None:
    """It is no reason to try other ports."""
    engine.answers[START] = said({"message": "no such runtime"}, 500)
    with pytest.raises(Unavailable, match="no such runtime"):
        await started(engine, home)
    assert engine.asked.count(START) == 1


async def test_an_image_that_cannot_be_pulled_is_named(engine: CannedEngine, home: Home) -> None:
    """With the command that shows why, and the setting that names another one."""
    del engine.answers["GET images/registry:2/json"]
    engine.answers["POST images/create"] = httpx2.Response(200, content=b'{"error":"no route to host"}\n')
    with pytest.raises(NotFound, match=r"registry:2 .*no route to host.*docker pull registry:2.*KNARR_REGISTRY_IMAGE"):
        await started(engine, home)


async def test_an_engine_whose_containers_are_elsewhere_is_refused() -> None:
    """Rootless, or in a virtual machine: apps would never answer."""
    shown = a_container()
    shown["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] = ""
    engine = CannedEngine({INSPECT: said(shown)})
    async with engine.api() as api:
        with pytest.raises(Misconfigured, match=r"cannot be reached from here.*rootless"):
            await own_registry._containers_are_reached(api, NAME)


async def test_one_that_went_is_started_again_at_its_port(
    engine: CannedEngine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while its garbage is collected, for which it is stopped; a start that failed is tried again."""
    registry = OwnRegistry(container=NAME, port=8795, password="secret")
    monkeypatch.setattr(own_registry, "_LOOK_S", 0)
    monkeypatch.setattr(own_registry, "EngineApi", lambda _: engine.api())
    away = asyncio.Event()
    answers = iter(["connection refused", "connection refused", None, None])

    async def fault(_: OwnRegistry) -> str | None:
        found = next(answers)
        if found is None:
            away.set()
        return found

    monkeypatch.setattr(own_registry, "_fault", fault)
    starts = [said(TAKEN, 500), httpx2.Response(204)]
    engine.answers[START] = lambda _: starts.pop(0)
    endpoint = Endpoint(url="unix:///x.sock", source="a test")
    async with upkeep_of(registry.url).alone(wait_s=30):
        work = own_registry.watch_registry(endpoint, home, registry, installation="knarr-1", image="registry:2")
        watching = asyncio.create_task(work)
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.asked == []
    await away.wait()
    watching.cancel()
    assert starts == []
    made = [json.loads(request.content) for request in engine.requests if request.url.path.endswith("/create")]
    bindings = [each["HostConfig"]["PortBindings"]["5000/tcp"][0]["HostPort"] for each in made if "HostConfig" in each]
    assert bindings == ["8795", "8795"]
