"""The project's layer from the one before: changed files are copied, and the build backend does not run again.

Only where the result is what the backend would make (see `services.builder.install.plain_project`): same files, same
pyproject.toml, and the content of copied files is all that changed. Everything else is built anew.

    <app's caches>/projects/<name>    JSON: the layer's key, digests of the source that it was built from, its copies;
                                      <name> is an HMAC of what must be the same
"""

import asyncio
import base64
import csv
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from seedwork.archives import disk_errors
from services.builder.adapters.layers.image import ReadyLayer
from services.builder.adapters.layers.workshop import Workshop
from services.builder.install.plain_project import changed_copies, copied_files, is_plain

NOT_COPIED = (".git", ".venv", "node_modules", "__pycache__")
"""Names that are no part of the source from which tools build."""
_NEVER = ("pyproject.toml",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A layer that holds the project except for some files."""

    layer: ReadyLayer
    changed: Mapping[str, str]
    """Paths in the source by path below `site-packages`."""


class ProjectReuse:
    """Finds and remembers layers of one app's project.

    Args:
        shop: The build, before its source was changed.
        inputs: What else decides what a backend makes: interpreter, tools, variables.
    """

    def __init__(self, shop: Workshop, inputs: Mapping[str, Any]) -> None:
        self._shop = shop
        self._inputs = inputs
        self._source: Mapping[str, str] = {}
        self._file: Path | None = None

    async def find(self) -> Base | None:
        """Return what can be used; None: the project is built. Call it before `remember`."""
        found = await asyncio.to_thread(self._find)
        if found is None:
            return None
        key, changed = found
        layer = await self._shop.layers.get(key)
        return Base(layer=layer, changed=changed) if layer is not None else None

    async def remember(self, key: str, folder: Path) -> None:
        """Keep for the next build what a backend made, if it is of use then.

        Args:
            key: Of the layer.
            folder: Its content.
        """
        await asyncio.to_thread(self._remember, key, folder)

    async def apply(self, base: Base, folder: Path) -> None:
        """Bring an unpacked layer to the source's state."""
        await asyncio.to_thread(_apply, self._shop.app, folder, base.changed)

    def _find(self) -> tuple[str, Mapping[str, str]] | None:
        if not is_plain(self._shop.read):
            return None
        self._source, outline = _read_source(self._shop.app)
        try:
            text = orjson.dumps([self._inputs, outline, self._source["pyproject.toml"]], option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError:  # a file name that is not UTF-8
            return None
        self._file = self._shop.app_cache.kept("projects", text.decode())
        try:
            known = orjson.loads(self._file.read_bytes())
            changed = changed_copies(known["source"], self._source, known["copies"], never=_NEVER)
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return None
        return None if changed is None else (str(known["layer"]), changed)

    def _remember(self, key: str, folder: Path) -> None:
        if self._file is None:
            return
        record = _record(folder)
        if record is None or any(not row[1].startswith("sha256=") for row in _rows(record) if row[1]):
            return
        site = record.parent.parent
        paths = [row[0] for row in _rows(record) if not row[0].startswith(("../", f"{record.parent.name}/"))]
        installed = {path: _digest(site / path) for path in paths if (site / path).is_file()}
        known = {"layer": key, "source": self._source, "copies": copied_files(installed, self._source)}
        new = self._file.with_name(f".new-{secrets.token_hex(8)}")
        with disk_errors():
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self._file.parent.iterdir():  # one project, one state
                old.unlink(missing_ok=True)
            new.write_bytes(orjson.dumps(known))
            new.replace(self._file)


def _apply(app: Path, folder: Path, changed: Mapping[str, str]) -> None:
    record = _record(folder)
    assert record is not None  # noqa: S101 - it was there when the layer was remembered
    site = record.parent.parent
    for copy, path in changed.items():
        mode = (site / copy).stat().st_mode
        (site / copy).unlink()
        shutil.copyfile(app / path, site / copy)
        (site / copy).chmod(mode)
    rows = [_row_of(row, site) if row[0] in changed else row for row in _rows(record)]
    with record.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _row_of(row: list[str], site: Path) -> list[str]:
    """A line of RECORD for the file's content now (Python packaging, "Recording installed projects")."""
    if not row[1]:
        return row
    content = (site / row[0]).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return [row[0], f"sha256={digest}", str(len(content)) if row[2] else ""]


def _record(folder: Path) -> Path | None:
    """The list of the only distribution in a project's environment."""
    found = list(folder.glob("lib/*/site-packages/*.dist-info/RECORD"))
    return found[0] if len(found) == 1 else None


def _rows(record: Path) -> list[list[str]]:
    with record.open(newline="", encoding="utf-8") as file:
        return [[*row, "", ""][:3] for row in csv.reader(file) if row]


def _read_source(app: Path) -> tuple[dict[str, str], list[tuple[str, bool]]]:
    """Digests by path, and the paths with whether each is executable."""
    digests: dict[str, str] = {}
    outline: list[tuple[str, bool]] = []
    for here, folders, names in os.walk(app):
        folders[:] = sorted(name for name in folders if name not in NOT_COPIED)
        links = [name for name in folders if Path(here, name).is_symlink()]
        for name in (*links, *(each for each in names if each not in NOT_COPIED)):
            path = Path(here, name)
            shown = str(path.relative_to(app))
            digests[shown] = f"link:{path.readlink()}" if path.is_symlink() else _digest(path)
            outline.append((shown, not path.is_symlink() and os.access(path, os.X_OK)))
    return digests, sorted(outline)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
