"""Makes what is stored agree with what is held: images without a reference go, tags follow, missing ones are reported.

Runs at the start, from time to time, and when a release was retired; what could not be removed then, or was let go of
by a replica that died over it, is found a minute later. It touches only repositories of our own, each under its lock,
and an image that is just being published is held already.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.errors import NotFound, RetryableError
from seedwork.unit_of_work import after_commit
from services.registry.ports import ImageStore
from services.registry.references import Reference, References, tags_of

LOOK_S = 60.0

log = structlog.get_logger(__name__)


async def collect(repository: str, *, images: ImageStore, references: References) -> Sequence[str]:
    """Remove every image of the repository that nobody holds; their digests."""
    async with references.locked(repository):
        holders = await references.of_repository(repository)
        held = {each.digest for each in holders}
        there = await _digests(repository, images)
        unheld = [digest for digest in there if digest not in held]
        for digest in unheld:
            await images.remove(repository, digest)
        await settle_tags(repository, holders, images)
        await references.forget(repository, await references.published_in(repository) - held)
    return unheld


async def settle_tags(repository: str, holders: Sequence[Reference], images: ImageStore) -> None:
    """Let each commit's tag name the image that was taken last for it, and no image that nobody holds for it."""
    wanted = tags_of(holders)
    held = {each.digest for each in holders}
    for digest in await _digests(repository, images):
        if digest not in held:
            continue
        tags = wanted.get(digest, ())
        try:
            if set((await images.get(repository, digest)).tags) != set(tags):
                await images.tag(repository, digest, tags=tags)
        except NotFound as error:  # damaged: the collector reports it, and no undo stops here
            log.warning("an image's tags were left as they are", repository=repository, error=error.message)


async def _digests(repository: str, images: ImageStore) -> list[str]:
    return [digest for name, digest in await images.images(repository) if name == repository]


class Collector:
    """The background task.

    Args:
        images: The image store.
        references: Who holds what.
        every_s: Seconds between two looks at everything.
        look_s: Seconds between two looks for images that nobody holds any more.
        figures: Where its figures are counted.
    """

    def __init__(
        self,
        *,
        images: ImageStore,
        references: References,
        every_s: float,
        look_s: float = LOOK_S,
        figures: CollectorRegistry,
    ) -> None:
        self._images = images
        self._references = references
        self._every_s = every_s
        self._look_s = look_s
        self._wake = asyncio.Event()
        self._collected = Counter(
            "knarr_registry_images_collected", "Images removed that nobody held.", registry=figures
        )
        self._missing = Gauge("knarr_registry_images_missing", "Images held but not in the store.", registry=figures)

    def wake_after(self, conn: AsyncConnection) -> None:
        """Look for images that nobody holds once this transaction is committed."""
        after_commit(conn, self._wake.set)

    async def run(self) -> None:
        """Compare everything, then do so every hour; in between, woken or not, remove what lost its last reference."""
        loop = asyncio.get_running_loop()
        everything_at = loop.time()
        while True:
            if loop.time() >= everything_at:
                await self.everything()
                everything_at = loop.time() + self._every_s
            else:
                await self.unheld()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(everything_at, loop.time() + self._look_s)):
                    await self._wake.wait()
            self._wake.clear()

    async def everything(self) -> None:
        """All our repositories; afterwards the figure of missing images is right."""
        missing = 0
        for repository in await self._references.repositories():
            with _later(repository):
                await self._collect(repository)
                missing += await self._report_missing(repository)
        self._missing.set(missing)

    async def unheld(self) -> None:
        """The repositories in which a published image lost its last reference."""
        for repository in await self._references.repositories_to_collect():
            with _later(repository):
                await self._collect(repository)

    async def _collect(self, repository: str) -> None:
        for digest in await collect(repository, images=self._images, references=self._references):
            self._collected.inc()
            log.info("removed an image that nobody held", repository=repository, digest=digest)

    async def _report_missing(self, repository: str) -> int:
        """Read every published image back; how many are missing or damaged."""
        missing = 0
        for digest in sorted(await self._references.published_in(repository)):
            problem = await self._problem(repository, digest)
            if problem and digest in await self._references.published_in(repository):  # not removed in this moment
                missing += 1
                log.error(
                    "a held image is not complete: its releases cannot start until its commit is deployed again",
                    repository=repository,
                    digest=digest,
                    error=problem,
                )
        return missing

    async def _problem(self, repository: str, digest: str) -> str:
        try:
            await self._images.get(repository, digest, verify=True)
        except NotFound as error:
            return error.message
        return ""


@contextmanager
def _later(repository: str) -> Iterator[None]:
    """One repository that cannot be looked at now does not keep the others from it."""
    try:
        yield
    except RetryableError as error:
        log.warning("images were not collected; the next look will do it", repository=repository, error=error.message)
