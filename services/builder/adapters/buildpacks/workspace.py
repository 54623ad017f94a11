"""The app's files and variables as tars for the containers of a build, owned by the user of the builder image."""

import asyncio
import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from seedwork.archives import disk_errors
from services.builder.adapters.buildpacks.phases import PLATFORM

_PIECE_BYTES = 256 * 1024


def write_workspace(archive: Path, to: Path, uid: int, gid: int) -> None:
    """Write the source archive again, owned by the user of buildpacks.

    Args:
        archive: The source as a tar in the normal form.
        to: A new file.
        uid: Of the builder image's user.
        gid: Of its group.
    """
    with tarfile.open(archive) as source, tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as target:
        target.addfile(_folder(".", uid, gid))
        for entry in source:
            entry.uid, entry.gid, entry.uname, entry.gname = uid, gid, "", ""
            target.addfile(entry, source.extractfile(entry) if entry.isfile() else None)


async def read_in_pieces(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
    finally:
        await asyncio.to_thread(file.close)


def one_folder(uid: int, gid: int, path: str = ".") -> bytes:
    """Return a tar with one folder that belongs to that user; by default it is the one in which it is unpacked."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(_folder(path.lstrip("/"), uid, gid))
    return packed.getvalue()


def platform_files(variables: Mapping[str, str], uid: int, gid: int) -> bytes:
    """Return the platform folder as a tar for `/`: a file for each variable, which only that user reads."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in (PLATFORM, f"{PLATFORM}/env"):
            tar.addfile(_folder(folder.lstrip("/"), uid, gid))
        for name, value in sorted(variables.items()):
            data = value.encode()
            entry = tarfile.TarInfo(f"{PLATFORM.lstrip('/')}/env/{name}")
            entry.size, entry.mode, entry.uid, entry.gid = len(data), 0o400, uid, gid
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def kept_secret(path: Path) -> str:
    """Return the secret of that file, which is made where it is missing; only its owner reads it."""
    with disk_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with path.open("x") as file:
                path.chmod(0o600)
                file.write(secrets.token_hex(32))
        except FileExistsError:
            pass
        return path.read_text()


def only_file(packed: bytes) -> str:
    """Return the text of the first file in a tar.

    Raises:
        TarError: There is none.
    """
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        file = next((each for each in tar if each.isfile()), None)
        opened = tar.extractfile(file) if file else None
        if opened is None:
            raise tarfile.TarError("no file")
        return opened.read().decode()


def _folder(name: str, uid: int, gid: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, uid, gid
    return entry
