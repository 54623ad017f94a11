"""Bills of materials (SBOM) of a release: the documents that buildpacks left in its image, else one that is made of it.

The lifecycle writes them to a layer of their own, one document for each buildpack, layer and format:
`/layers/sbom/launch/<buildpack>/[<layer>/]sbom.<cdx|spdx|syft>.json`. They are kept as long as the image, so as long as
the release. Specification: https://github.com/buildpacks/spec, "Platform Interface", "Bill of Materials".

What an image holds is written by the app's build, so its size is bounded here.
"""

import asyncio
import gzip
import tarfile
import tempfile
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Literal, cast

from ocistore.store import Descriptor, Image, ImageStore
from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput, NotFound, TooLarge
from seedwork.threads import in_thread
from services.deployer.bounded import BoundedStream
from services.deployer.image import buildpacks_layers
from services.deployer.installed import cyclonedx_of, packages_of

Format = Literal["cyclonedx", "spdx", "syft"]
MEDIA_TYPES: dict[Format, str] = {
    "cyclonedx": "application/vnd.cyclonedx+json",
    "spdx": "application/spdx+json",
    "syft": "application/vnd.syft+json",
}
_ENDINGS: dict[str, Format] = {"sbom.cdx.json": "cyclonedx", "sbom.spdx.json": "spdx", "sbom.syft.json": "syft"}
_PREFIX = "layers/sbom/launch/"
_LAYER_BYTES = 64 * 1024**2
"""Of the layer as it is stored."""
_DOCUMENT_BYTES = 32 * 1024**2
"""Of one document. Those of large Java apps have about 3 MiB."""
_UNPACKED_BYTES = 256 * 1024**2
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A bill of materials in the image."""

    name: str
    """Which buildpack and layer it is of: `heroku_python/venv`."""
    format: Format
    size_bytes: int | None
    """None: it is made of the image when it is asked for."""


PACKAGES = Document(name="packages", format="cyclonedx", size_bytes=None)
"""Of an image that buildpacks did not build: the packages that are found in it."""
_one_at_a_time = asyncio.Lock()
"""Held while an image is searched for packages: all its layers are read for that."""


async def documents(image: Image, images: ImageStore) -> list[Document]:
    """List the documents of an image by name. An image of another builder than buildpacks has `PACKAGES`.

    Raises:
        InvalidInput: The layer is damaged.
        TooLarge: The layer is larger than is read.
    """
    if buildpacks_layers(image) is None:
        return [PACKAGES]
    async with _opened(image, images) as layer:
        if layer is None:
            return []

        def listed(stop: threading.Event) -> list[Document]:
            return sorted((each for each, _ in layer.read(stop)), key=lambda each: (each.name, each.format))

        return await in_thread(listed)


async def document(app: str, image: Image, images: ImageStore, *, kind: Format, name: str | None) -> bytes:
    """Return one document.

    Args:
        app: Name of the app.
        image: Of the release.
        images: Where it is.
        kind: In which format.
        name: Of the document; None: the only one of that format.

    Raises:
        NotFound: There is none, or more than one and no name; the text lists what there is.
        TooLarge: It is larger than may be sent.
    """
    known = [each for each in await documents(image, images) if each.format == kind]
    chosen = [each for each in known if name is None or each.name == name]
    if len(chosen) != 1:
        names = ", ".join(each.name for each in known[:50])
        raise NotFound(
            f"The release has {'more than one document' if chosen else 'no such document'} in the format {kind}",
            why=f"there are {names}" if known else "its builder wrote none",
            todo="Name one with `--name`." if known else "List what there is: `knarr releases sbom APP`",
        )
    if chosen[0].size_bytes is None:
        async with _one_at_a_time:
            packages = await packages_of(image, images)
        return await asyncio.to_thread(cyclonedx_of, app, image.digest, packages)
    if chosen[0].size_bytes > _DOCUMENT_BYTES:
        raise TooLarge(
            f"The document {chosen[0].name} is not sent",
            why=f"it has {chosen[0].size_bytes} bytes, at most {_DOCUMENT_BYTES} are sent",
            todo="Read it from the image with `pack sbom download`.",
        )
    async with _opened(image, images) as layer:

        def content(stop: threading.Event) -> bytes:
            found = layer.read(stop) if layer else iter(())
            return next((b"".join(pieces) for each, pieces in found if each == chosen[0]), b"")

        return await in_thread(content)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The layer as a file. Names in it are absolute (`/layers/sbom/…`), so it is no archive of `seedwork.archives`."""

    file: BinaryIO
    compressed: bool

    def read(self, stop: threading.Event) -> Iterator[tuple[Document, Iterator[bytes]]]:
        self.file.seek(0)
        unpacked = gzip.GzipFile(fileobj=self.file) if self.compressed else self.file
        what = "The bill of materials is not read"
        bounded = BoundedStream(unpacked, limit_bytes=_UNPACKED_BYTES, stop=stop, what=what)
        try:
            with tarfile.open(fileobj=cast("BinaryIO", bounded), mode="r|") as tar:
                for entry in tar:
                    folder, _, file = entry.name.lstrip("/").rpartition("/")
                    kind = _ENDINGS.get(file)
                    opened = tar.extractfile(entry) if entry.isreg() and kind and folder.startswith(_PREFIX) else None
                    if opened and kind:
                        found = Document(name=folder.removeprefix(_PREFIX), format=kind, size_bytes=entry.size)
                        yield found, iter(partial(opened.read, _PIECE_BYTES), b"")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput("The bill of materials cannot be read", why=f"its layer is damaged: {error}") from error


@asynccontextmanager
async def _opened(image: Image, images: ImageStore) -> AsyncIterator[_Layer | None]:
    """The layer of the documents in a file of its own; None: the image has none."""
    layer = _layer_of(image)
    if layer is None:
        yield None
        return
    if layer.size_bytes > _LAYER_BYTES:
        raise TooLarge(
            "The bill of materials is not read",
            why=f"its layer has {layer.size_bytes} bytes, at most {_LAYER_BYTES} are read",
            todo="Read it from the image with `pack sbom download`.",
        )
    with tempfile.TemporaryFile() as file:
        with disk_errors():
            async for piece in images.read_blob(image.repository, layer.digest):
                await asyncio.to_thread(file.write, piece)
        yield _Layer(cast("BinaryIO", file), compressed=layer.media_type.endswith("gzip"))


def _layer_of(image: Image) -> Descriptor | None:
    """The layer that the lifecycle names in its label, by the digest of its uncompressed tar."""
    said = (buildpacks_layers(image) or {}).get("sbom")
    wanted = said.get("sha") if isinstance(said, dict) else None
    diff_ids = image.config.get("rootfs", {}).get("diff_ids") or ()
    return next((layer for layer, diff_id in zip(image.layers, diff_ids, strict=False) if diff_id == wanted), None)
