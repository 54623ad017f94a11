"""The build cache of an engine, with canned answers."""

from typing import Any

import httpx2

from dockerengine.testing import CannedEngine, said
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
