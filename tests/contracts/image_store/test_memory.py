"""The fake keeps the contract of the port."""

import pytest

from ocistore.store import ImageStore
from ocistore.testing import Damage, ImageStoreContract, MemoryImageStore


class TestMemoryImageStore(ImageStoreContract):
    @pytest.fixture
    def store(self) -> ImageStore:
        return MemoryImageStore()

    def blobs(self, store: ImageStore) -> set[str]:
        assert isinstance(store, MemoryImageStore)
        return set(store.blobs)

    def damage(self, store: ImageStore, digest: str, how: Damage) -> None:
        assert isinstance(store, MemoryImageStore)
        content = store.blobs.pop(digest)
        if how == "short":
            store.blobs[digest] = content[:-1]
        elif how == "changed":
            store.blobs[digest] = content[:-1] + bytes([content[-1] ^ 1])
