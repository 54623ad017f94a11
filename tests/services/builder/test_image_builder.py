"""The contract of port `ImageBuilder`, on the adapter `layers` and on the fake."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from ocistore.layout import OciLayout
from ocistore.store import (
    LABEL_APP_ID,
    LABEL_CHECKS,
    LABEL_CRONS,
    LABEL_PORT,
    LABEL_PROCESSES,
    LABEL_STORAGE,
    ImageStore,
)
from ocistore.testing import MemoryImageStore
from seedwork.errors import StorageFull
from services.builder.adapters.layers.image import image_labels
from services.builder.ports import BuildOrder, Built, ImageBuilder, staging_repository
from services.source.contract import AppDescription, Cron, HealthCheck, Storage
from tests.services.builder.support import PROCFILE, Bench, FakeImageBuilder, Held, Output, make_bench

FILES = {"Procfile": "web: ./serve\n", "serve": "#!/bin/sh\nexec sleep 60\n"}


def order_for(description: AppDescription) -> BuildOrder:
    """An order without an archive."""
    return BuildOrder(
        saga_id="0192f0c1-2345-7abc-8def-0123456789ab",
        app_id="0192f0c1-0000-7abc-8def-0123456789ab",
        app="shop",
        commit="a" * 40,
        source_digest="sha256:" + "ab" * 32,
        description=description,
        archive=Path("unused"),
        folder=Path("unused"),
    )


async def no_hold(_digest: str) -> None:
    """Nobody collects in these tests."""


class ImageBuilderContract:
    """What every builder does. A subclass has the fixtures `builder` and `images`."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        return make_bench(tmp_path)

    async def _build(
        self,
        builder: ImageBuilder,
        order: BuildOrder,
        *,
        hold: Callable[[str], Awaitable[None]] = no_hold,
        output: Output | None = None,
        notes: list[str] | None = None,
    ) -> Built:
        noted = notes if notes is not None else []
        return await builder.build(order, output=output or Output(), note=noted.append, hold=hold)

    async def test_the_image_is_complete_and_staged_under_its_app(
        self, builder: ImageBuilder, images: ImageStore, bench: Bench
    ) -> None:
        """Manifest, config and every layer are there, where the registry will look for them."""
        built = await self._build(builder, bench.order(PROCFILE, FILES))

        image = await images.get(built.repository, built.digest, verify=True)
        assert built.repository == staging_repository(bench.app_id)
        assert [layer.digest for layer in built.layers] == [layer.digest for layer in image.layers]
        assert [layer.size_bytes for layer in built.layers] == [layer.size_bytes for layer in image.layers]

    async def test_the_reference_is_asked_for_before_the_bytes_are_stored(
        self, builder: ImageBuilder, images: ImageStore, bench: Bench
    ) -> None:
        """Nobody can collect the image between its storing and its reference."""
        held = Held(images)

        built = await self._build(builder, bench.order(PROCFILE, FILES), hold=held)

        assert held.digests == [built.digest]
        assert held.stored_before == [False]

    async def test_the_same_order_gives_the_same_digest_for_another_saga(
        self, builder: ImageBuilder, bench: Bench
    ) -> None:
        """Nothing of the saga, the time or the folder is in the image."""
        first = bench.order(PROCFILE, FILES)
        second = bench.order(PROCFILE, FILES)
        assert first.saga_id != second.saga_id

        assert (await self._build(builder, first)).digest == (await self._build(builder, second)).digest

    async def test_another_commit_with_the_same_content_gives_the_same_digest(
        self, builder: ImageBuilder, bench: Bench
    ) -> None:
        """A push that changes nothing of the app builds the image that runs already."""
        orders = [bench.order(PROCFILE, FILES, commit=commit) for commit in ("a" * 40, "b" * 40, None)]

        digests = {(await self._build(builder, order)).digest for order in orders}

        assert len(digests) == 1

    async def test_another_source_or_description_gives_another_digest(
        self, builder: ImageBuilder, bench: Bench
    ) -> None:
        """The digest depends on the source and on the description."""
        same = bench.order(PROCFILE, FILES)
        other_files = bench.order(PROCFILE, {**FILES, "new": "x"})
        described = AppDescription(**{**PROCFILE.model_dump(), "health_path": "/health"})
        other_description = bench.order(described, FILES)

        digests = {(await self._build(builder, order)).digest for order in (same, other_files, other_description)}

        assert len(digests) == 3

    async def test_building_again_changes_nothing(
        self, builder: ImageBuilder, images: ImageStore, bench: Bench
    ) -> None:
        """A second run of the same step finds the first one's work."""
        order = bench.order(PROCFILE, FILES)
        first = await self._build(builder, order)
        again = replace(order, folder=order.folder.with_name("again"))
        again.folder.mkdir()

        second = await self._build(builder, again)

        assert second.digest == first.digest
        assert await images.images() == [(first.repository, first.digest)]

    async def test_what_is_going_on_is_noted_and_printed(self, builder: ImageBuilder, bench: Bench) -> None:
        """A person who waits sees what for."""
        output, notes = Output(), list[str]()

        await self._build(builder, bench.order(PROCFILE, FILES), output=output, notes=notes)

        assert notes
        assert output.text

    async def test_a_reference_that_cannot_be_written_keeps_the_image_out(
        self, builder: ImageBuilder, images: ImageStore, bench: Bench
    ) -> None:
        """No bytes without somebody who holds them."""

        async def full(_digest: str) -> None:
            raise StorageFull("The database's disk is full")

        with pytest.raises(StorageFull):
            await self._build(builder, bench.order(PROCFILE, FILES), hold=full)

        assert await images.images() == []

    async def test_there_is_nothing_to_stop_when_nothing_runs(self, builder: ImageBuilder, bench: Bench) -> None:
        """An undo without a build succeeds."""
        assert await builder.stop(bench.order(PROCFILE, FILES).saga_id) == 0
        assert await builder.stop() == 0


class TestLayersBuilder(ImageBuilderContract):
    @pytest.fixture
    def builder(self, bench: Bench) -> ImageBuilder:
        return bench.builder

    @pytest.fixture
    def images(self, bench: Bench) -> OciLayout:
        return bench.images


class TestFakeImageBuilder(ImageBuilderContract):
    @pytest.fixture
    def images(self) -> MemoryImageStore:
        return MemoryImageStore()

    @pytest.fixture
    def builder(self, images: MemoryImageStore) -> ImageBuilder:
        return FakeImageBuilder(images)


def test_an_image_says_what_the_description_says() -> None:
    """Checks, port, storage and crons are labels that parse into the description's own types."""
    check = HealthCheck(type="liveness", path="/health", headers={"Host": "shop"})
    description = PROCFILE.model_copy(
        update={
            "checks": {"web": (check,), "worker": ()},
            "port": 3000,
            "storage": (Storage(path="/data", size_bytes=1024),),
            "crons": (Cron(schedule="0 3 * * *", command=("python", "nightly.py")),),
        }
    )

    labels = image_labels(order_for(description), description.processes)

    checks = TypeAdapter(dict[str, tuple[HealthCheck, ...]]).validate_json(labels[LABEL_CHECKS])
    assert checks == {"web": (check,)}
    assert labels[LABEL_PORT] == "3000"
    assert TypeAdapter(tuple[Storage, ...]).validate_json(labels[LABEL_STORAGE]) == description.storage
    assert TypeAdapter(tuple[Cron, ...]).validate_json(labels[LABEL_CRONS]) == description.crons


def test_an_image_has_no_label_for_what_is_not_there() -> None:
    """A label without content would change the digest of every app when a new label is added."""
    labels = image_labels(order_for(PROCFILE), PROCFILE.processes)

    assert set(labels) == {LABEL_APP_ID, LABEL_PROCESSES}
