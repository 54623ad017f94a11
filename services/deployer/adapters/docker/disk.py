"""Images of releases on the Docker engine: which of them no release needs, and their end.

Only images of knarr's own registry count, so other images of the engine are never touched. Layers that images share are
counted once, as the engine does.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from dockerengine import Endpoint, EngineApi, find_endpoint
from seedwork.chassis.disk import DiskItem, Freed
from seedwork.errors import Misconfigured
from services.deployer.adapters.images import Pullable


class EngineImages:
    """See `DiskPart`.

    Args:
        pullable: Tells which images are of our registry.
        needed: Digests that a release may start again from.
        sweep: Removes the others, with containers that have no owner.
        docker_host: The engine's address; None: as the `docker` command finds it.
        engine: For tests.
    """

    what = "images of releases"

    def __init__(
        self,
        *,
        pullable: Pullable,
        needed: Callable[[], Awaitable[AbstractSet[str]]],
        sweep: Callable[[], Awaitable[None]],
        docker_host: str | None = None,
        engine: EngineApi | None = None,
    ) -> None:
        self.place = docker_host or "the Docker engine"
        self._pullable = pullable
        self._needed = needed
        self._sweep = sweep
        self._docker_host = docker_host
        self._engine_now = engine

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`."""
        images, needed = await self._images(), await self._needed()
        return DiskItem(
            what=self.what,
            place=self._engine.endpoint.url,
            size_bytes=_bytes(images),
            reclaimable_bytes=_bytes([each for each in images if not needed & set(_digests(each))]),
            note="without layers that they share with other images",
        )

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  no cache
        """See `DiskPart.reclaim`; the deployer sweeps on a schedule of its own."""
        if scheduled:
            return None
        before = _bytes(await self._images())
        await self._sweep()
        freed = max(0, before - _bytes(await self._images()))
        return Freed(what=self.what, place=self._engine.endpoint.url, freed_bytes=freed)

    async def close(self) -> None:
        """Close the connection to the engine."""
        if self._engine_now is not None:
            await self._engine_now.close()

    async def _images(self) -> list[Mapping[str, Any]]:
        found = await self._engine.call("GET", "system/df", params={"type": "image"})
        images = found.get("Images") or ()
        return [each for each in images if any(self._pullable.is_ours(name) for name in each.get("RepoDigests") or ())]

    @property
    def _engine(self) -> EngineApi:
        if self._engine_now is None:
            named = self._docker_host
            endpoint = Endpoint(url=named, source="KNARR_DOCKER_HOST") if named else find_endpoint()
            if endpoint is None:
                raise Misconfigured("No Docker engine was found", todo="Set KNARR_DOCKER_HOST to its address.")
            self._engine_now = EngineApi(endpoint)
        return self._engine_now


def _bytes(images: Sequence[Mapping[str, Any]]) -> int:
    return sum(max(0, int(each["Size"]) - max(0, int(each.get("SharedSize") or 0))) for each in images)


def _digests(image: Mapping[str, Any]) -> Iterator[str]:
    for name in image.get("RepoDigests") or ():
        yield str(name).rpartition("@")[2]
