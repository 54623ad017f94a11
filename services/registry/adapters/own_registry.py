"""The registry that `knarr up` started in a container: its size, and its garbage collection.

A collection needs the registry stopped. Distribution 2.x remembers in memory which blobs it has, and would not let a
blob be pushed again that the collection removed. So the container is stopped, the same image collects on the same
volume, and the container starts again. Builds are not under way meanwhile; what else asks the registry is tried again.

Killed in between, the registry is started by the next `knarr up`, and a collection that was cut off removed only what
no image needs.
"""

import time

import httpx2
import structlog

from dockerengine import EngineApi, find_endpoint
from ocistore.upkeep import Upkeep
from seedwork.chassis.disk import DiskItem, Freed
from seedwork.clock import Clock
from seedwork.errors import KnarrError, Misconfigured, Unavailable
from services.registry.ports import ImageStore

DATA = "/var/lib/registry"
COLLECTOR = "-collect"
"""After the registry's name: the container that collects. `knarr up` removes one that was left."""
_QUIET_S = 60.0
"""Seconds that a collection waits for builds to end."""
_COLLECT_S = 1800.0
_READY_S = 60.0
_READY_LOOK_S = 0.2
_NEVER_USED = "Path not found: /docker/registry/v2/repositories"
"""What a collection says in a registry to which nothing was pushed yet."""

log = structlog.get_logger(__name__)


class OwnRegistry:
    """The disk of the registry in a container; see `DiskPart`.

    Args:
        container: Its name.
        url: Where it answers.
        images: The store in it.
        upkeep: Says when nothing is written.
        limit_bytes: The schedule collects when nothing needs more than this.
        clock: For waiting.
        engine: Makes the connection to the engine; for tests.
    """

    what = "images in the registry"

    def __init__(
        self,
        *,
        container: str,
        url: str,
        images: ImageStore,
        upkeep: Upkeep,
        limit_bytes: int,
        clock: Clock,
        engine: EngineApi | None = None,
    ) -> None:
        self.place = f"container {container}"
        self._container = container
        self._url = url
        self._images = images
        self._upkeep = upkeep
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._engine_now = engine

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`: what no image needs is reclaimable."""
        size_bytes = await self._size()
        needed = await self._needed()
        return DiskItem(
            what=self.what,
            place=self.place,
            size_bytes=size_bytes,
            reclaimable_bytes=max(0, size_bytes - needed),
            limit_bytes=self._limit_bytes,
            note="the limit is for what no image needs",
        )

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  it has no cache
        """See `DiskPart.reclaim`: run the registry's garbage collection."""
        before = await self._size()
        if scheduled and before - await self._needed() <= self._limit_bytes:
            return None
        async with self._upkeep.alone(wait_s=_QUIET_S):
            await self._collect()
        freed = max(0, before - await self._size())
        return Freed(what=self.what, place=self.place, freed_bytes=freed)

    async def _size(self) -> int:
        text = await self._engine.output(self._container, "du", "-sk", DATA)
        try:
            return int(text.split()[0]) * 1024
        except (IndexError, ValueError) as error:
            raise Unavailable("The registry's size cannot be read", why=text[:200]) from error

    async def _needed(self) -> int:
        """Return the bytes of all blobs that an image of the store has, each once."""
        sizes: dict[str, int] = {}
        for repository, digest in await self._images.images():
            try:
                image = await self._images.get(repository, digest, tagged=False)
            except KnarrError as error:
                log.warning("an image was not counted", repository=repository, digest=digest, error=error.message)
                continue
            config = image.manifest["config"]
            sizes |= {each.digest: each.size_bytes for each in image.layers}
            sizes[str(config["digest"])] = int(config["size"])
            sizes[digest] = image.size_bytes - int(config["size"]) - sum(each.size_bytes for each in image.layers)
        return sum(sizes.values())

    async def _collect(self) -> None:
        known = await self._engine.call("GET", f"containers/{self._container}/json")
        config = {
            "Image": known["Config"]["Image"],
            "Entrypoint": ["registry"],
            "Cmd": ["garbage-collect", known["Config"]["Cmd"][-1]],
            "Env": known["Config"]["Env"],
            "Labels": known["Config"]["Labels"],
            "HostConfig": {"Mounts": known["HostConfig"]["Mounts"], "NetworkMode": "none"},
        }
        await self._engine.call("POST", f"containers/{self._container}/stop", params={"t": "10"})
        try:
            code, text = await self._engine.run(config, name=self._container + COLLECTOR, limit_s=_COLLECT_S)
        finally:
            await self._engine.call("POST", f"containers/{self._container}/start")
            await self._answers()
        if code and _NEVER_USED not in text:
            raise Unavailable("The registry's garbage collection failed", why=text.strip()[-500:])

    async def _answers(self) -> None:
        deadline = time.monotonic() + _READY_S
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
            while True:
                try:
                    await client.get(f"{self._url}/v2/")
                except httpx2.HTTPError as error:
                    if time.monotonic() > deadline:
                        raise Unavailable(f"The registry at {self._url} does not answer", why=str(error)) from error
                    await self._clock.sleep(_READY_LOOK_S)
                else:
                    return

    @property
    def _engine(self) -> EngineApi:
        if self._engine_now is None:
            endpoint = find_endpoint()
            if endpoint is None:
                raise Misconfigured("No Docker engine was found", todo="Set DOCKER_HOST to the engine of the registry.")
            self._engine_now = EngineApi(endpoint)
        return self._engine_now

    async def close(self) -> None:
        """Close the connection to the engine."""
        if self._engine_now is not None:
            await self._engine_now.close()


class OtherStore:
    """A store that cleans up by itself or elsewhere: a folder is measured, a registry is named."""

    what = "images"

    def __init__(self, place: str) -> None:
        self.place = place

    async def usage(self) -> DiskItem:
        """See `DiskPart.usage`."""
        note = "a registry run elsewhere: its operator runs its garbage collection"
        return DiskItem(what=self.what, place=self.place, note=note)

    async def reclaim(self, *, caches: bool, scheduled: bool) -> Freed | None:  # noqa: ARG002  the protocol's
        """See `DiskPart.reclaim`."""
        return None
