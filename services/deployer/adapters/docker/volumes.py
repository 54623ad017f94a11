"""Volumes of an app as named volumes of the engine, mounted into each of its containers.

Their labels are not those of the app's other things: nothing that removes an app or a release finds them. Content is
read and written through a container that is made of an empty image and never started, so no program of an app is
needed for it, and none runs.

The engine's local driver enforces no size.
"""

import contextlib
import io
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedwork.archives import ArchiveLimits, read_tar
from seedwork.messages import new_id
from seedwork.threads import in_thread
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Engine
from services.deployer.adapters.naming import short_hash
from services.deployer.ports import Release, Volume

VOLUME = "io.knarr.volume"
VOLUME_APP_ID = "io.knarr.volume-app-id"
HELPER_IMAGE = "knarr/empty"
"""An image without a file. It is made on the engine when it is not there."""

_PLACE = "/volume"
"""Where helper containers have the volume."""
_IMPORT = ArchiveLimits(max_bytes=16 * 1024**4, max_entries=10_000_000, max_depth=256, max_path_bytes=4096)


def volume_name(installation: str, volume: Volume) -> str:
    """Return the name of a volume on the engine: the same whatever the app is called now."""
    return f"{installation}-{short_hash(volume.app_id)}-storage-{volume.name}"


def mounts(installation: str, release: Release) -> list[dict[str, Any]]:
    """Return `HostConfig.Mounts` of a release's containers."""
    return [
        {"Type": "volume", "Source": volume_name(installation, each), "Target": each.path} for each in release.volumes
    ]


class DockerVolumes:
    """See `Volumes`; and makes the volumes of a release.

    Args:
        engine: Keeps them.
        installation: Whose they are.
    """

    def __init__(self, engine: Engine, *, installation: str) -> None:
        self._engine = engine
        self._installation = installation

    async def ensure(self, release: Release) -> None:
        """Make the volumes of a release that are not there, owned by the user that the image runs as."""
        for volume in release.volumes:
            if not await self._engine.volumes(self._labels(volume)):
                await self._make(volume, owner=_owner(release.image.config))

    async def used_bytes(self, volume: Volume) -> int | None:
        """See `Volumes.used_bytes`."""
        return (await self._engine.volume_sizes()).get(volume_name(self._installation, volume))

    async def read(self, volume: Volume) -> AsyncGenerator[bytes, None]:
        """See `Volumes.read`."""
        container_id = await self._helper(volume)
        try:
            async for piece in self._engine.read_files(container_id, f"{_PLACE}/."):
                yield piece
        finally:
            await self._engine.remove(container_id)

    async def replace(self, volume: Volume, archive: Path) -> None:
        """See `Volumes.replace`. The archive is read to its end before anything is changed."""
        await in_thread(lambda stop: [None for _ in read_tar(archive, limits=_IMPORT, stop=stop)])
        owner = await self._owner_of(volume)
        await self._engine.remove_volume(volume_name(self._installation, volume))
        await self._make(volume, owner=owner)
        container_id = await self._helper(volume)
        try:
            with archive.open("rb") as content:
                await self._engine.write_files(container_id, _PLACE, content)
        finally:
            await self._engine.remove(container_id)

    async def delete(self, volume: Volume) -> Sequence[str]:
        """See `Volumes.delete`."""
        known = await self._engine.volumes(self._labels(volume))
        for name in known:
            await self._engine.remove_volume(name)
        return [f"volume {name}" for name in known]

    async def _make(self, volume: Volume, *, owner: tuple[int, int]) -> None:
        await self._engine.ensure_volume(volume_name(self._installation, volume), self._labels(volume))
        container_id = await self._helper(volume)
        try:
            await self._engine.write_files(container_id, "/", io.BytesIO(_folder(_PLACE.strip("/"), owner)))
        finally:
            await self._engine.remove(container_id)

    async def _owner_of(self, volume: Volume) -> tuple[int, int]:
        """Return user and group of the volume's own folder."""
        start = b""
        async with contextlib.aclosing(self.read(volume)) as pieces:
            async for piece in pieces:
                start += piece
                if len(start) >= tarfile.BLOCKSIZE:
                    break
        if len(start) < tarfile.BLOCKSIZE:
            return 0, 0
        info = tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        return info.uid, info.gid

    async def _helper(self, volume: Volume) -> str:
        """Make a container that has the volume and is never started; return its id."""
        if await self._engine.image(HELPER_IMAGE) is None:
            await self._engine.import_image(HELPER_IMAGE, _folder("empty", (0, 0)))
        name = volume_name(self._installation, volume)
        config = {
            "Image": HELPER_IMAGE,
            "Cmd": ["none"],
            "Labels": {spec.INSTALLATION: self._installation, spec.STEP: "volume"},
            "HostConfig": {"NetworkMode": "none", "Mounts": [{"Type": "volume", "Source": name, "Target": _PLACE}]},
        }
        return await self._engine.create(f"{name}-{short_hash(new_id())}", config)

    def _labels(self, volume: Volume) -> dict[str, str]:
        return {spec.INSTALLATION: self._installation, VOLUME_APP_ID: volume.app_id, VOLUME: volume.name}


def _owner(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return user and group of an image's `User`; a name is taken for root, since only the image can resolve it."""
    user, _, group = str((config.get("config") or {}).get("User") or "").partition(":")
    uid = int(user) if user.isdigit() else 0
    return uid, int(group) if group.isdigit() else uid


def _folder(name: str, owner: tuple[int, int]) -> bytes:
    """Return a tar archive with one folder."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    info.uid, info.gid = owner
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(info)
    return out.getvalue()
