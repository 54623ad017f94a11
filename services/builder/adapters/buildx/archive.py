"""An image that buildx exported as an OCI archive: its config, and its layers as files.

The format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md, in a tar file.
"""

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from ocistore.manifest import check_digest
from ocistore.store import Descriptor, LayerFile
from seedwork.errors import InvalidInput, Unavailable

_JSON_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024


def read_archive(path: Path, folder: Path) -> tuple[bytes, list[LayerFile]]:
    """Return the config of the one image in the archive, and its layers as files below `folder`.

    Raises:
        Unavailable: It is no archive of one image; what it holds is not what its digests say.
    """
    try:
        with tarfile.open(path) as archive:
            index = orjson.loads(_json(archive, "index.json"))
            (entry,) = index["manifests"]
            manifest = orjson.loads(_blob(archive, entry["digest"]))
            config = _blob(archive, manifest["config"]["digest"])
            diff_ids = orjson.loads(config)["rootfs"]["diff_ids"]
            layers = [
                _layer(archive, described, diff_id, folder)
                for described, diff_id in zip(manifest["layers"], diff_ids, strict=True)
            ]
            return config, layers
    except (tarfile.TarError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, InvalidInput) as error:
        raise Unavailable(
            "buildx exported no image that can be read",
            why=f"{type(error).__name__}: {error}",
            todo="Is buildx 0.13 or newer, and BuildKit 0.11 or newer?",
        ) from error


def _layer(archive: tarfile.TarFile, described: Mapping[str, Any], diff_id: str, folder: Path) -> LayerFile:
    digest = check_digest(described["digest"])
    path = folder / digest.replace(":", "-")
    hashed = hashlib.sha256()
    content = _member(archive, digest)
    with path.open("wb") as file:
        while piece := content.read(_PIECE_BYTES):
            hashed.update(piece)
            file.write(piece)
    _check(digest, hashed.hexdigest())
    return LayerFile(
        descriptor=Descriptor(media_type=described["mediaType"], digest=digest, size_bytes=path.stat().st_size),
        diff_id=check_digest(diff_id),
        path=path,
    )


def _blob(archive: tarfile.TarFile, digest: str) -> bytes:
    """A small one."""
    text = _member(archive, check_digest(digest)).read(_JSON_BYTES)
    _check(digest, hashlib.sha256(text).hexdigest())
    return text


def _json(archive: tarfile.TarFile, name: str) -> bytes:
    return _file(archive, name).read(_JSON_BYTES)


def _member(archive: tarfile.TarFile, digest: str) -> IO[bytes]:
    return _file(archive, f"blobs/{digest.replace(':', '/')}")


def _file(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file


def _check(digest: str, found: str) -> None:
    if digest != f"sha256:{found}":
        raise ValueError(f"{digest} is not what it is called")
