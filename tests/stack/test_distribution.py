"""A registry keeps the contract of the image store, and what only a registry can promise."""

from collections.abc import AsyncIterator, Iterator

import pytest

from ocistore import open_store
from ocistore.distribution import DistributionStore
from ocistore.registry import Patience
from ocistore.store import ImageStore
from ocistore.testing import Damage, ImageStoreContract
from seedwork.errors import NotFound, Unavailable
from tests.stack.registries import OwnRegistry, own_registry

pytestmark = pytest.mark.stack("DOCKER_HOST")

QUICK = Patience(attempts=3, timeout_s=20.0, wait_initial_s=0.01, wait_max_s=0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    with own_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def registry(running: OwnRegistry) -> OwnRegistry:
    running.wipe()
    return running


class TestDistributionStore(ImageStoreContract):
    replaces_damaged_blobs = False
    damaged_manifest = (
        NotFound,
        Unavailable,
    )  # a registry that cannot parse it answers 500, as to any fault of its own

    @pytest.fixture
    async def store(self, registry: OwnRegistry) -> AsyncIterator[ImageStore]:
        self.registry = registry
        store = open_store(f"{registry.url}/some/prefix", patience=QUICK)
        assert isinstance(store, DistributionStore)
        yield store
        await store.close()

    def blobs(self, store: ImageStore) -> set[str]:
        """What is left after the registry's garbage collection."""
        self.registry.collect_garbage()
        return self.registry.blobs()

    def damage(self, store: ImageStore, digest: str, how: Damage) -> None:
        self.registry.damage(digest, how)
