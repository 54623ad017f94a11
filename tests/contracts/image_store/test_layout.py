"""The directory keeps the contract of the port, and what only a directory can promise."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ocistore.layout import OciLayout
from ocistore.store import ImageStore
from ocistore.testing import Damage, ImageStoreContract


class TestOciLayout(ImageStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ImageStore]:
        self.root = tmp_path / "images"
        store = OciLayout(self.root)
        yield store
        await store.close()
        assert list((self.root / "ingest").glob("*")) == []

    def blobs(self, store: ImageStore) -> set[str]:
        assert isinstance(store, OciLayout)
        return {f"sha256:{path.name}" for path in (self.root / "blobs" / "sha256").glob("*")}

    def damage(self, store: ImageStore, digest: str, how: Damage) -> None:
        assert isinstance(store, OciLayout)
        path = self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
        content = path.read_bytes()
        path.unlink()
        if how == "short":
            path.write_bytes(content[:-1])
        elif how == "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
