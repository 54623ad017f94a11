"""A registry's own world: its database, an image store in a folder, and what builder would have staged."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ocistore.layout import OciLayout
from ocistore.store import Image
from ocistore.testing import put_image
from seedwork.clock import SystemClock
from seedwork.messages import new_id
from seedwork.participant import Work
from seedwork.testing.servers import database
from seedwork.unit_of_work import Database
from services.registry import handlers, models
from services.registry.contract import (
    DropImages,
    ImagePublished,
    ImagesDropped,
    ImageUnpublished,
    PublishImage,
    UnpublishImage,
)
from services.registry.references import References

COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"
OTHER_COMMIT = "0" * 40


@dataclass
class World:
    """One app's sagas at a registry, without bus and jobs."""

    db: Database
    images: OciLayout
    references: References
    folder: Path
    app_id: str = field(default_factory=new_id)
    app: str = "shop"
    team: str = "default"

    async def staged(self, text: str = "x = 1") -> Image:
        """What builder leaves: the same text gives the same digest."""
        return await put_image(
            self.images, f"staging/{self.app_id}", self.folder, {"lib.py": "shared"}, {"app.py": text}
        )

    def work(self, saga_id: str, step: str = "publish") -> Work:
        return Work(saga_id=saga_id, step=step, app_id=self.app_id, team=self.team, app=self.app, attempt=1, fence=1)

    async def publish(
        self, digest: str, *, saga_id: str, commit: str | None = COMMIT, staged: bool = True
    ) -> ImagePublished:
        """Deliver `PublishImage` and commit what goes with its outcome."""
        command = PublishImage(
            app=self.app, digest=digest, staged=f"staging/{self.app_id}" if staged else None, commit=commit
        )
        work = self.work(saga_id)
        answer = await handlers.publish_image(command, work=work, images=self.images, references=self.references)
        await self.commit(work)
        return answer

    async def commit(self, work: Work) -> None:
        """What the kernel does with an outcome."""
        for also in work._also:
            await self.db.write(also)

    async def unpublish(self, saga_id: str) -> ImageUnpublished:
        return await handlers.unpublish_image(
            UnpublishImage(), work=self.work(saga_id), images=self.images, references=self.references
        )

    async def drop(self) -> ImagesDropped:
        return await handlers.drop_images(
            DropImages(app=self.app), work=self.work(new_id()), images=self.images, references=self.references
        )

    async def published(self) -> list[tuple[str, str]]:
        """What the store holds outside the staging area."""
        return [each for each in await self.images.images() if not each[0].startswith("staging/")]

    def blobs(self) -> set[str]:
        """What is on disk, read from outside."""
        return {path.name for path in (self.folder / "images" / "blobs" / "sha256").iterdir()}


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with database("sqlite", tmp_path, models.metadata) as found:
        yield found


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[World]:
    images = OciLayout(tmp_path / "images")
    yield World(db, images, References(db, SystemClock(), shared=False), tmp_path)
    await images.close()
