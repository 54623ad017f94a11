"""The image store's port: OCI images by repository and digest, bytes streamed, nothing half-there.

What goes in is a complete image (manifest, config, layers) or nothing; what is removed takes along the blobs that no
other manifest of any repository needs: at once in a directory, with its garbage collection in a registry.
Specification: OCI image-spec 1.1, distribution-spec 1.1.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What names a blob: OCI image-spec, "descriptor"."""

    media_type: str
    digest: str
    """`sha256:` and 64 hex digits."""
    size_bytes: int
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A layer that lies ready on disk, or (`path` null) is known to be in the store's blobs of `from_repository`."""

    descriptor: Descriptor
    diff_id: str
    """`sha256:` of the uncompressed tar."""
    path: Path | None = None
    from_repository: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as it stands in the store."""

    repository: str
    digest: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    """The image config: `config.Env`, `config.Labels`, `rootfs.diff_ids`, `history` …"""
    layers: tuple[Descriptor, ...]
    tags: tuple[str, ...]
    """In no order that means anything."""
    size_bytes: int
    """Manifest, config and layers together."""


class ImageStore(Protocol):
    """An OCI layout in a directory, or a registry that speaks the distribution API."""

    async def put(
        self, repository: str, *, config: bytes, layers: Sequence[LayerFile], tags: Sequence[str] = ()
    ) -> Image:
        """Store a complete image; the same content again is no change. The layer files stay with the caller.

        Raises:
            StorageFull: No room; nothing of it stays.
            Unavailable: The store does not answer.
            InvalidInput: A file is not what its descriptor says, or a repository name is not allowed.
            NotFound: A layer without a file is not in the store (any more); the text names it.
        """

    async def copy(self, repository: str, digest: str, *, to: str, tags: Sequence[str] = ()) -> Image:
        """Give an image a second place; blobs that are there are not copied. `tags` come to those it has there.

        Every blob is looked at there, as `get` does with `verify`, before it is an image; then it is read back.

        Raises:
            NotFound: No such image, or a blob is missing or of the wrong size; the text names it.
        """

    async def get(self, repository: str, digest: str, *, verify: bool = False, tagged: bool = True) -> Image:
        """The image; with `verify`, every blob's presence and size are checked and the manifest is hashed again.

        Without `tagged` its `tags` are empty: a registry has to be asked for each of them.

        Raises:
            NotFound: No such image, or (`verify`) a blob is missing or of the wrong size; the text names it.
        """

    async def tag(self, repository: str, digest: str, *, tags: Sequence[str]) -> Image:
        """Let these be the image's tags, and no others; one that another image of the repository had moves here.

        Raises:
            NotFound: No such image.
        """

    async def remove(self, repository: str, digest: str) -> bool:
        """Take the image out of the repository; true if it was there."""

    async def images(self, prefix: str = "") -> Sequence[tuple[str, str]]:
        """`(repository, digest)` of every image whose repository begins with `prefix`."""

    def read_blob(self, repository: str, digest: str) -> AsyncIterator[bytes]:
        """A blob in pieces of at most 1 MiB; it is hashed on its way.

        Raises:
            NotFound: No image of the repository has such a blob, or (after the last piece) it is damaged.
        """


LABEL_PROCESSES = "io.knarr.processes"
"""Image label: JSON, argument lists by process type."""
LABEL_RELEASE = "io.knarr.release"
"""Image label: JSON, the argument list that runs before traffic moves; absent: none."""
LABEL_FORMATION = "io.knarr.formation"
"""Image label: JSON, instances by process type."""
LABEL_HEALTH_PATH = "io.knarr.health-path"
"""Image label: the path that must answer. Superseded by `LABEL_CHECKS`."""
LABEL_CHECKS = "io.knarr.checks"
"""Image label: JSON, health checks (`HealthCheck`) by process type; absent: `web` must answer `GET /`."""
LABEL_PORT = "io.knarr.port"
"""Image label: the port on which `web` listens whatever PORT says; absent: PORT."""
LABEL_STORAGE = "io.knarr.storage"
"""Image label: JSON, folders that outlive releases (`Storage`)."""
LABEL_CRONS = "io.knarr.crons"
"""Image label: JSON, commands that run on a schedule (`Cron`)."""
LABEL_ENV = "io.knarr.env"
"""Image label: JSON, `app.json`'s env declarations (`EnvVar` by name)."""
LABEL_ADDONS = "io.knarr.addons"
"""Image label: JSON, the add-ons that the app asks for."""
LABEL_CHECKS = "io.knarr.checks"
"""Image label: JSON, lists of health checks (`HealthCheck`) by process type."""
LABEL_PORT = "io.knarr.port"
"""Image label: the port on which `web` listens whatever PORT says; absent: the value of PORT."""
LABEL_STORAGE = "io.knarr.storage"
"""Image label: JSON, the folders that outlive releases (`Storage`)."""
LABEL_CRONS = "io.knarr.crons"
"""Image label: JSON, the commands that run on a schedule (`Cron`)."""
LABEL_APP_ID = "io.knarr.app-id"
"""Image label: the app's identity. No label names the saga or the commit: equal content must give an equal digest."""
LABEL_BASE = "io.knarr.base"
"""Image label: `host` where the image holds no operating system and runs on the machine that built it."""
