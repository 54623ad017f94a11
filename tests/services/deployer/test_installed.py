"""The packages in an image, as the layers of its builder have them."""

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ocistore.layout import OciLayout
from ocistore.manifest import digest_of
from ocistore.store import Descriptor, Image, LayerFile
from seedwork.errors import InvalidInput, TooLarge
from seedwork.messages import new_id
from services.deployer.installed import Package, cyclonedx_of, packages_of

SITE = "layers/python/lib/python3.11/site-packages"
FLASK = {f"{SITE}/flask-3.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: Flask\nVersion: 3.0.0\n\nName: x\n"}
DPKG = (
    "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
)


def layer(folder: Path, files: Mapping[str, str], *, compressed: bool) -> LayerFile:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    plain = packed.getvalue()
    path = folder / new_id()
    path.write_bytes(gzip.compress(plain) if compressed else plain)
    descriptor = Descriptor(
        media_type=f"application/vnd.oci.image.layer.v1.tar{'+gzip' if compressed else ''}",
        digest=digest_of(path.read_bytes()),
        size_bytes=path.stat().st_size,
    )
    return LayerFile(descriptor=descriptor, diff_id=digest_of(plain), path=path)


async def image_of(images: OciLayout, folder: Path, *layers: Mapping[str, str]) -> Image:
    files = [layer(folder, each, compressed=bool(number % 2)) for number, each in enumerate(layers)]
    config = {"config": {}, "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in files]}}
    return await images.put("shop", config=json.dumps(config).encode(), layers=files)


async def test_packages_are_found_by_what_their_installers_left(images: OciLayout, tmp_path: Path) -> None:
    """Python, Node, Debian and Alpine; manifests of the app itself are none."""
    files = {
        **FLASK,
        "app/package.json": '{"name": "app", "version": "1"}',
        "app/node_modules/left-pad/package.json": '{"name": "left-pad", "version": "1.3.0"}',
        "app/node_modules/left-pad/lib/package.json": '{"name": "inside", "version": "1"}',
        "app/node_modules/@acme/ui/package.json": '{"name": "@acme/ui", "version": "2.0.0"}',
        "app/node_modules/broken/package.json": "{",
        "./var/lib/dpkg/status": DPKG,
        "lib/apk/db/installed": "P:musl\nV:1.2.4\n\nP:nothing\n",
    }
    found = await packages_of(await image_of(images, tmp_path, {}, files), images)
    assert found == [
        Package("apk", "musl", "1.2.4"),
        Package("deb", "libc6", "2.36-9"),
        Package("npm", "@acme/ui", "2.0.0"),
        Package("npm", "left-pad", "1.3.0"),
        Package("pypi", "flask", "3.0.0"),
    ]


async def test_what_a_higher_layer_removes_or_replaces_is_not_there(images: OciLayout, tmp_path: Path) -> None:
    """Whiteouts of files and folders, and opaque folders."""
    lower = {**FLASK, "var/lib/dpkg/status": DPKG, "app/node_modules/a/package.json": '{"name": "a", "version": "1"}'}
    newer = DPKG.replace("2.36-9", "2.36-10")
    upper = {f"{SITE}/.wh.flask-3.0.0.dist-info": "", "var/lib/dpkg/status": newer, "app/.wh..wh..opq": ""}
    found = await packages_of(await image_of(images, tmp_path, lower, upper), images)
    assert found == [Package("deb", "libc6", "2.36-10")]


async def test_an_image_that_is_too_large_or_damaged_is_said_to_be(
    images: OciLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small layer may unpack to one without end."""
    image = await image_of(images, tmp_path, FLASK)
    for limit in ("_PACKAGES", "_UNPACKED_BYTES"):
        with monkeypatch.context() as smaller:
            smaller.setattr(f"services.deployer.installed.{limit}", 0)
            with pytest.raises(TooLarge):
                await packages_of(image, images)
    path = tmp_path / "damaged"
    path.write_bytes(b"x" * 2000)
    digest = digest_of(path.read_bytes())
    descriptor = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=digest, size_bytes=2000)
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest]}}).encode()
    broken = LayerFile(descriptor=descriptor, diff_id=digest, path=path)
    with pytest.raises(InvalidInput, match="damaged"):
        await packages_of(await images.put("shop", config=config, layers=[broken]), images)


async def test_the_document_is_one_that_scanners_read() -> None:
    """A component for each package, with its package URL."""
    packages = [Package("npm", "@acme/ui", "2.0.0"), Package("pypi", "flask", "3.0.0")]
    document = json.loads(await asyncio.to_thread(cyclonedx_of, "shop", "sha256:1", packages))
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "shop")
    assert {each["purl"] for each in document["components"]} == {"pkg:npm/%40acme/ui@2.0.0", "pkg:pypi/flask@3.0.0"}
