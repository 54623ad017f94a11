"""The registry that knarr started: what it has, and its garbage collection, with an engine of canned answers."""

import itertools
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dockerengine.testing import CannedEngine, said
from ocistore.layout import OciLayout
from ocistore.testing import put_image
from ocistore.upkeep import Upkeep
from seedwork.clock import SystemClock
from seedwork.errors import Unavailable
from services.registry.adapters.own_registry import OwnRegistry

NAME = "knarr-1-images"
KNOWN: dict[str, Any] = {
    "Config": {"Image": "registry:2", "Cmd": ["/etc/docker/registry/config.yml"], "Env": ["A=b"], "Labels": {"l": "1"}},
    "HostConfig": {"Mounts": [{"Type": "volume", "Source": NAME, "Target": "/var/lib/registry"}]},
}
STOP, START = f"POST containers/{NAME}/stop", f"POST containers/{NAME}/start"
COLLECT = "POST containers/gc/start"


def an_engine(*sizes_kb: int, exit_code: int = 0) -> CannedEngine:
    """An engine with the registry's container; `du` says these sizes in turn, the last one again and again."""
    sizes = itertools.chain(sizes_kb, itertools.repeat(sizes_kb[-1]))

    def du(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=f"{next(sizes)}\t/var/lib/registry\r\n".encode())

    return CannedEngine(
        {
            f"GET containers/{NAME}/json": said(KNOWN),
            f"POST containers/{NAME}/exec": said({"Id": "e"}),
            "POST exec/e/start": du,
            "GET exec/e/json": said({"ExitCode": 0}),
            STOP: httpx2.Response(204),
            START: httpx2.Response(204),
            "POST containers/create": said({"Id": "gc"}),
            COLLECT: httpx2.Response(204),
            "GET containers/gc/json": said({"State": {"Status": "exited", "ExitCode": exit_code}}),
            "GET containers/gc/logs": httpx2.Response(200, content=b"blob eligible for deletion\r\n"),
        }
    )


@pytest.fixture
async def images(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def registry(engine: CannedEngine, images: OciLayout, **changed: Any) -> OwnRegistry:
    made = OwnRegistry(
        **{
            "container": NAME,
            "url": "http://127.0.0.1:1",
            "images": images,
            "upkeep": Upkeep(),
            "limit_bytes": 10 * 1024,
            "clock": SystemClock(),
            "engine": engine.api(),
            **changed,
        }
    )

    async def answers() -> None:
        engine.asked.append("answers")

    made._answers = answers  # type: ignore[method-assign]
    return made


async def test_what_no_image_needs_is_reclaimable(images: OciLayout, tmp_path: Path) -> None:
    """A layer that two images share counts once."""
    one = await put_image(images, "shop", tmp_path, {"lib.py": "shared"}, {"app.py": "1"})
    two = await put_image(images, "shop", tmp_path, {"lib.py": "shared"}, {"app.py": "2"})
    item = await registry(an_engine(100), images).usage()
    needed = one.size_bytes + two.size_bytes - one.layers[0].size_bytes
    assert item.size_bytes == 100 * 1024
    assert item.reclaimable_bytes == 100 * 1024 - needed


async def test_it_collects_while_the_registry_is_stopped(images: OciLayout) -> None:
    """On its volume, with its image and configuration; a container that was left is removed first."""
    engine = an_engine(100, 40)
    freed = await registry(engine, images).reclaim(caches=False, scheduled=False)
    assert freed is not None
    assert freed.freed_bytes == 60 * 1024
    order = [each for each in engine.asked if each in {STOP, COLLECT, START, "answers"}]
    assert order == [STOP, COLLECT, START, "answers"]
    assert f"DELETE containers/{NAME}-collect" in engine.asked
    config = engine.body("POST containers/create")
    assert config["Cmd"] == ["garbage-collect", "/etc/docker/registry/config.yml"]
    assert config["HostConfig"]["Mounts"] == KNOWN["HostConfig"]["Mounts"]


async def test_the_registry_starts_again_also_when_the_collection_failed(images: OciLayout) -> None:
    """And what it said is the reason."""
    engine = an_engine(100, exit_code=1)
    with pytest.raises(Unavailable, match=r"garbage collection failed: blob eligible"):
        await registry(engine, images).reclaim(caches=False, scheduled=False)
    assert engine.asked.index(START) > engine.asked.index(STOP)
    engine.answers[COLLECT] = said({"message": "no room"}, 500)
    engine.asked.clear()
    with pytest.raises(Unavailable, match="no room"):
        await registry(engine, images).reclaim(caches=False, scheduled=False)
    assert engine.asked.index(START) > engine.asked.index(STOP)


async def test_a_registry_without_a_push_has_nothing_to_collect(images: OciLayout) -> None:
    """Distribution 2.8 ends with an error there."""
    engine = an_engine(4, exit_code=1)
    said_so = b"failed to mark: filesystem: Path not found: /docker/registry/v2/repositories\r\n"
    engine.answers["GET containers/gc/logs"] = httpx2.Response(200, content=said_so)
    freed = await registry(engine, images).reclaim(caches=False, scheduled=False)
    assert freed is not None
    assert freed.freed_bytes == 0


async def test_the_schedule_leaves_a_little_garbage(images: OciLayout) -> None:
    """Below the limit the registry is not stopped."""
    engine = an_engine(10)
    assert await registry(engine, images).reclaim(caches=False, scheduled=True) is None
    assert STOP not in engine.asked
    engine = an_engine(11)
    assert await registry(engine, images).reclaim(caches=False, scheduled=True) is not None
    assert STOP in engine.asked


async def test_it_is_not_stopped_while_an_image_is_pushed(images: OciLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writers are builds."""
    monkeypatch.setattr("services.registry.adapters.own_registry._QUIET_S", 0)
    engine, upkeep = an_engine(100), Upkeep()
    async with upkeep.writing():
        with pytest.raises(Unavailable, match="builds are under way"):
            await registry(engine, images, upkeep=upkeep).reclaim(caches=False, scheduled=False)
    assert STOP not in engine.asked
