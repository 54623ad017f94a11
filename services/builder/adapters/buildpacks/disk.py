"""The volumes in which buildpacks keep what they reuse, one an app; above a limit the least recently built apps' go.

A cache that goes makes the app's next build longer and nothing else. Volumes of other homes on the engine stay.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from dockerengine import EngineApi
from seedwork.chassis.disk import DiskItem, Freed
from seedwork.errors import Conflict, NotFound
from services.builder.adapters.buildpacks.phases import LABEL_CACHE


class BuildpackCaches:
    """See `DiskPart`.

    Args:
        engine: Of the volumes; called only where a build used buildpacks.
        label: `name=value` that this home's volumes have; None: none was made yet.
        last_built: The file of an app, by its id, whose time says when the app was built.
        limit_bytes: Of all caches together.
    """

    what = "caches of buildpacks"
    place = "the Docker engine"

    def __init__(
        self,
        *,
        engine: Callable[[], EngineApi],
        label: Callable[[], Awaitable[str | None]],
        last_built: Callable[[str], Path],
        limit_bytes: int,
    ) -> None:
        self._engine = engine
        self._label = label
        self._last_built = last_built
        self._limit_bytes = limit_bytes

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`."""
        size = sum(each[1] for each in await self._caches())
        return DiskItem(
            what=self.what, place=self.place, size_bytes=size, reclaimable_bytes=size, limit_bytes=self._limit_bytes
        )

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  the limit is always kept
        """See `DiskPart.reclaim`: down to the limit, or to nothing with `caches`; one that a build uses stays."""
        keep, freed = 0 if caches else self._limit_bytes, 0
        found = await self._caches()
        left = sum(size for _, size, _ in found)
        for name, size, app_id in sorted(found, key=lambda each: self._when(each[2])):
            if left <= keep:
                break
            try:
                await self._engine().call("DELETE", f"volumes/{name}")
            except (Conflict, NotFound):
                continue
            self._last_built(app_id).unlink(missing_ok=True)
            freed, left = freed + size, left - size
        return Freed(what=self.what, place=self.place, freed_bytes=freed) if freed else None

    async def _caches(self) -> list[tuple[str, int, str]]:
        """Return name, bytes and app of each."""
        label = await self._label()
        if label is None:
            return []
        name, _, value = label.partition("=")
        found: Mapping[str, Any] = await self._engine().call("GET", "system/df", params={"type": "volume"})
        ours = [
            each
            for each in found.get("Volumes") or ()
            if (labels := each.get("Labels") or {}).get(name) == value and LABEL_CACHE in labels
        ]
        return [
            (str(each["Name"]), max(0, int(each["UsageData"]["Size"])), str(each["Labels"].get("io.knarr.app-id")))
            for each in ours
        ]

    def _when(self, app_id: str) -> float:
        try:
            return self._last_built(app_id).stat().st_mtime
        except FileNotFoundError:
            return 0.0
