"""Images of releases on an engine, with canned answers."""

from typing import Any

from dockerengine.testing import CannedEngine, said
from services.deployer.adapters.docker.disk import EngineImages
from services.deployer.adapters.images import Pullable

OURS = "127.0.0.1:8790"


def an_image(name: str, size: int, *, shared: int = 0) -> dict[str, Any]:
    return {"RepoDigests": [name], "Size": size, "SharedSize": shared}


async def test_only_images_of_our_registry_count_and_needed_ones_stay() -> None:
    """Layers that images share are no image's own; -1 is the engine's word for not computed."""
    images = [
        an_image(f"{OURS}/shop@sha256:live", 100, shared=60),
        an_image(f"{OURS}/shop@sha256:old", 30, shared=-1),
        an_image("python@sha256:base", 1000),
        {"RepoDigests": None, "Size": 7, "SharedSize": 0},
    ]
    engine = CannedEngine({"GET system/df": said({"Images": images})})

    async def needed() -> frozenset[str]:
        return frozenset({"sha256:live"})

    async def sweep() -> None:
        engine.answers["GET system/df"] = said({"Images": [images[0]]})

    part = EngineImages(pullable=Pullable(OURS), needed=needed, sweep=sweep, engine=engine.api())
    item = await part.usage()
    assert (item.size_bytes, item.reclaimable_bytes) == (70, 30)
    assert await part.reclaim(caches=False, scheduled=True) is None
    freed = await part.reclaim(caches=False, scheduled=False)
    assert freed is not None
    assert freed.freed_bytes == 30
