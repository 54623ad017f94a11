"""The build cache of the Docker engine that builds: its size, and its least recently used part removed above a limit.

The engine's cache has no owner: what other programs built there is in it, too, and counts. It holds nothing that cannot
be built again. Builders other than the engine's own (`KNARR_BUILDX_BUILDER`, `KNARR_BUILDKIT_HOST`) keep theirs in
bounds themselves.
"""

from dockerengine import EngineApi, find_endpoint
from seedwork.chassis.disk import DiskItem, Freed
from seedwork.errors import Misconfigured


class EngineCache:
    """See `DiskPart`.

    Args:
        limit_bytes: The schedule removes what was not used for longest until this much is left.
        engine: For tests; else it is found at the first use.
    """

    what = "build cache"

    def __init__(self, *, limit_bytes: int, engine: EngineApi | None = None) -> None:
        self.place = "the Docker engine"
        self._limit_bytes = limit_bytes
        self._engine_now = engine

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`."""
        sizes = await self._records()
        return DiskItem(
            what=self.what,
            place=self._engine.endpoint.url,
            size_bytes=sum(sizes.values()),
            reclaimable_bytes=sum(size for (_, in_use), size in sizes.items() if not in_use),
            limit_bytes=self._limit_bytes,
            note="of all programs that build on this engine",
        )

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  the limit is always kept
        """See `DiskPart.reclaim`: down to the limit, or to nothing with `caches`."""
        keep = 0 if caches else self._limit_bytes
        before = sum((await self._records()).values())
        if before <= keep:
            return None
        await self._engine.call("POST", "build/prune", params={"all": "true", "keep-storage": str(keep)})
        freed = max(0, before - sum((await self._records()).values()))
        return Freed(what=self.what, place=self._engine.endpoint.url, freed_bytes=freed)

    async def close(self) -> None:
        """Close the connection to the engine."""
        if self._engine_now is not None:
            await self._engine_now.close()

    async def _records(self) -> dict[tuple[str, bool], int]:
        """Return the size of each record that has bytes of its own, by its id and whether a build uses it."""
        found = await self._engine.call("GET", "system/df", params={"type": "build-cache"})
        records = found.get("BuildCache") or ()
        return {(str(each["ID"]), bool(each["InUse"])): int(each["Size"]) for each in records if not each["Shared"]}

    @property
    def _engine(self) -> EngineApi:
        if self._engine_now is None:
            endpoint = find_endpoint()
            if endpoint is None:
                raise Misconfigured("No Docker engine was found", todo="Set DOCKER_HOST to the engine that builds.")
            self._engine_now = EngineApi(endpoint)
        return self._engine_now
