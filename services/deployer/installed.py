"""The packages in an image, found by what their installers left in its layers, as a CycloneDX document.

Read are the metadata of Python packages (`*.dist-info/METADATA`), `package.json` in `node_modules`, and the databases
of dpkg and apk. What was copied into an image without an installer is not seen; nor are the modules in a Go program.

An image is written by the app's build, so everything that is read here is bounded.
"""

import asyncio
import gzip
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from functools import partial
from typing import BinaryIO, cast

import orjson

from ocistore.store import Descriptor, Image, ImageStore
from seedwork.archives import disk_errors
from seedwork.errors import InvalidInput, TooLarge
from seedwork.threads import in_thread
from services.deployer.bounded import BoundedStream

_UNPACKED_BYTES = 16 * 1024**3
"""Of one layer."""
_FILE_BYTES = 32 * 1024**2
"""Of one file that is read; larger ones are passed over. The database of dpkg in a large image has 5 MiB."""
_PACKAGES = 100_000
_DPKG, _APK = ("var/lib/dpkg/status", "var/lib/dpkg/status.d/"), "lib/apk/db/installed"
_NOT_LISTED = "The packages of the image are not listed"
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """An installed package."""

    kind: str
    """As package URLs name it: `pypi`, `npm`, `deb`, `apk`."""
    name: str
    """With its scope, for npm: `@scope/name`."""
    version: str


async def packages_of(image: Image, images: ImageStore) -> list[Package]:
    """Return the packages in an image, each once, in order.

    Raises:
        InvalidInput: A layer is damaged.
        TooLarge: A layer, or the number of packages, is larger than is read.
    """
    found: dict[str, tuple[Package, ...]] = {}
    for layer in image.layers:
        with tempfile.TemporaryFile() as file:
            with disk_errors():
                async for piece in images.read_blob(image.repository, layer.digest):
                    await asyncio.to_thread(file.write, piece)
            await in_thread(partial(_add, found, cast("BinaryIO", file), layer))
    return sorted({each for packages in found.values() for each in packages})


def cyclonedx_of(name: str, digest: str, packages: Iterable[Package]) -> bytes:
    """Return the packages as a CycloneDX document (JSON, version 1.5).

    Args:
        name: Of the app.
        digest: Of the image.
        packages: What is in it.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot5
    from packageurl import PackageURL

    bom = Bom()
    described = Component(type=ComponentType.CONTAINER, name=name, version=digest, bom_ref=digest)
    bom.metadata.component = described
    for each in packages:
        scope, _, plain = each.name.rpartition("/")
        purl = PackageURL(each.kind, scope or None, plain, each.version)
        bom.components.add(
            Component(
                type=ComponentType.LIBRARY,
                name=plain,
                group=scope or None,
                version=each.version,
                purl=purl,
                bom_ref=purl.to_string(),
            )
        )
    bom.register_dependency(described, bom.components)
    return JsonV1Dot5(bom).output_as_string(indent=2).encode()


def _add(found: dict[str, tuple[Package, ...]], file: BinaryIO, layer: Descriptor, stop: threading.Event) -> None:
    """Read a layer on top of those below it: its files replace theirs, its whiteouts remove them."""
    file.seek(0)
    unpacked = gzip.GzipFile(fileobj=file) if layer.media_type.endswith("gzip") else file
    bounded = BoundedStream(unpacked, limit_bytes=_UNPACKED_BYTES, stop=stop, what=_NOT_LISTED)
    try:
        with tarfile.open(fileobj=cast("BinaryIO", bounded), mode="r|") as tar:
            for entry in tar:
                path = entry.name.lstrip("/").removeprefix("./")
                folder, _, base = path.rpartition("/")
                if base.startswith(_WHITEOUT):
                    _remove(
                        found, folder if base == _OPAQUE else f"{folder}/{base.removeprefix(_WHITEOUT)}".lstrip("/")
                    )
                elif entry.isreg() and entry.size <= _FILE_BYTES and _is_read(path):
                    content = tar.extractfile(entry)
                    found[path] = tuple(_read(path, content.read() if content else b""))
                    if sum(map(len, found.values())) > _PACKAGES:
                        raise TooLarge(_NOT_LISTED, why=f"there are more than {_PACKAGES}")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(_NOT_LISTED, why=f"a layer is damaged: {error}") from error


def _remove(found: dict[str, tuple[Package, ...]], path: str) -> None:
    for known in [each for each in found if each == path or each.startswith(f"{path}/")]:
        del found[known]


def _is_read(path: str) -> bool:
    """Whether a file says which packages there are."""
    parts = path.split("/")
    match parts[-1]:
        case "METADATA":
            return len(parts) > 1 and parts[-2].endswith(".dist-info")
        case "package.json":
            scoped = len(parts) > 3 and parts[-4] == "node_modules" and parts[-3].startswith("@")
            return scoped or (len(parts) > 2 and parts[-3] == "node_modules")
    return path == _APK or path == _DPKG[0] or path.startswith(_DPKG[1])


def _read(path: str, content: bytes) -> Iterator[Package]:
    """Packages of one file; a file that cannot be read holds none."""
    if path.endswith("/METADATA"):
        headers = BytesHeaderParser().parsebytes(content.partition(b"\n\n")[0])
        yield from _package("pypi", headers.get("Name"), headers.get("Version"))
    elif path.endswith("/package.json"):
        with suppress(orjson.JSONDecodeError):
            said = orjson.loads(content)
            if isinstance(said, dict):
                yield from _package("npm", said.get("name"), said.get("version"))
    elif path == _APK:
        yield from _stanzas("apk", content, name="P:", version="V:")
    else:
        yield from _stanzas("deb", content, name="Package: ", version="Version: ")


def _stanzas(kind: str, content: bytes, *, name: str, version: str) -> Iterator[Package]:
    """Packages of a database whose entries are lines, with an empty one between them."""
    for stanza in content.decode(errors="replace").split("\n\n"):
        lines = stanza.split("\n")
        if "Status: deinstall ok config-files" not in lines:
            values = [
                next((line[len(key) :] for line in lines if line.startswith(key)), None) for key in (name, version)
            ]
            yield from _package(kind, *values)


def _package(kind: str, name: object, version: object) -> Iterator[Package]:
    if isinstance(name, str) and isinstance(version, str) and 0 < len(name) <= 300 and 0 < len(version) <= 200:
        yield Package(kind, name.strip().lower() if kind == "pypi" else name.strip(), version.strip())
