"""The build cache of an engine, with canned answers."""

import os
from pathlib import Path
from typing import Any

import httpx2

from dockerengine import EngineApi
from dockerengine.testing import CannedEngine, said
from services.builder.adapters.buildpacks.disk import BuildpackCaches
from services.builder.adapters.buildx.disk import EngineCache


def a_record(name: str, size: int, *, in_use: bool = False, shared: bool = False) -> dict[str, Any]:
    return {"ID": name, "Size": size, "InUse": in_use, "Shared": shared}


def an_engine() -> CannedEngine:
    """One with 100 bytes of cache, which a prune makes 30."""
    engine = CannedEngine()
    records = [a_record("a", 70), a_record("b", 30, in_use=True), a_record("c", 1000, shared=True)]
    engine.answers["GET system/df"] = said({"BuildCache": records})

    def prune(_: httpx2.Request) -> httpx2.Response:
        engine.answers["GET system/df"] = said({"BuildCache": records[1:]})
        return said({"SpaceReclaimed": 70})

    engine.answers["POST build/prune"] = prune
    return engine


async def test_layers_of_images_do_not_count() -> None:
    """The engine counts them with the images; what a build uses is not reclaimable."""
    item = await EngineCache(limit_bytes=50, engine=an_engine().api()).usage()
    assert (item.size_bytes, item.reclaimable_bytes, item.limit_bytes) == (100, 70, 50)


async def test_above_the_limit_the_oldest_goes() -> None:
    """The engine keeps as much as the limit says."""
    engine = an_engine()
    freed = await EngineCache(limit_bytes=50, engine=engine.api()).reclaim(caches=False, scheduled=True)
    assert freed is not None
    assert freed.freed_bytes == 70
    assert dict(engine.requests[1].url.params) == {"all": "true", "keep-storage": "50"}


async def test_below_the_limit_nothing_is_done() -> None:
    """Unless the cache is to be emptied."""
    engine = an_engine()
    cache = EngineCache(limit_bytes=100, engine=engine.api())
    assert await cache.reclaim(caches=False, scheduled=False) is None
    assert engine.asked == ["GET system/df"]
    assert await cache.reclaim(caches=True, scheduled=False) is not None
    assert engine.requests[2].url.params["keep-storage"] == "0"


async def test_caches_of_buildpacks_go_in_the_order_of_their_last_build(tmp_path: Path) -> None:
    """Above the limit; one that a build uses stays, and so do volumes of other homes."""

    def a_volume(name: str, home: str = "1") -> dict[str, Any]:
        labels = {"io.knarr.builder-home": home, "io.knarr.build-cache": name, "io.knarr.app-id": name}
        return {"Name": name, "Labels": labels, "UsageData": {"Size": 100}}

    for name, at in (("old", 10), ("busy", 20), ("new", 30)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    engine = CannedEngine({f"DELETE volumes/{name}": httpx2.Response(204) for name in ("old", "new", "other")})
    engine.answers["DELETE volumes/busy"] = said({"message": "volume is in use"}, 409)
    volumes = [
        a_volume("new"),
        a_volume("busy"),
        a_volume("old"),
        a_volume("other", "2"),
        {"Name": "x", "Labels": None},
    ]
    engine.answers["GET system/df"] = said({"Volumes": volumes})
    api = engine.api()

    async def label() -> str:
        return "io.knarr.builder-home=1"

    caches = BuildpackCaches(engine=lambda: api, label=label, last_built=tmp_path.joinpath, limit_bytes=250)
    assert (await caches.usage()).size_bytes == 300
    freed = await caches.reclaim(caches=False, scheduled=True)
    assert freed is not None
    assert freed.freed_bytes == 100
    assert [each for each in engine.asked if each.startswith("DELETE")] == ["DELETE volumes/old"]
    engine.asked.clear()
    await caches.reclaim(caches=True, scheduled=False)
    assert "DELETE volumes/new" in engine.asked
    assert "DELETE volumes/other" not in engine.asked


async def test_where_buildpacks_never_built_no_engine_is_asked(tmp_path: Path) -> None:
    """There may be none."""

    async def label() -> None: ...

    def no_engine() -> EngineApi:
        raise AssertionError

    caches = BuildpackCaches(engine=no_engine, label=label, last_built=tmp_path.joinpath, limit_bytes=1)
    assert (await caches.usage()).size_bytes == 0
    assert await caches.reclaim(caches=True, scheduled=False) is None
