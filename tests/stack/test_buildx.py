"""A Docker engine keeps the contract of the image builder, and what only an engine can get wrong."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ocistore.distribution import DistributionStore
from seedwork.messages import new_id
from services.builder.adapters.buildx.wiring import make_buildx_builder
from services.builder.ports import ImageBuilder
from services.builder.settings import BuilderSettings
from tests.services.builder.support import Bench
from tests.services.builder.test_image_builder import ImageBuilderContract

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")


@pytest.fixture
def settings(tmp_path: Path) -> BuilderSettings:
    registry = os.environ["REGISTRY"]
    return BuilderSettings(
        home=tmp_path / "home", builder="buildx", image_store=f"http://{registry}/knarr-test/{new_id()}"
    )


@pytest.fixture
async def images(settings: BuilderSettings) -> AsyncIterator[DistributionStore]:
    store = settings.open_image_store()
    assert isinstance(store, DistributionStore)
    yield store
    for repository, digest in await store.images():
        await store.remove(repository, digest)
    await store.close()


class TestBuildxBuilder(ImageBuilderContract):
    @pytest.fixture
    def builder(self, settings: BuilderSettings, images: DistributionStore, bench: Bench) -> ImageBuilder:
        return make_buildx_builder(settings, settings.home_of("builder"), images, bench.sandbox)
