"""Dependency layers by what went into them: made once, used by every later build with the same key.

    <folder>/<key>.tar     the layer
    <folder>/<key>.json    its digest and size, written after it: without this there is no such entry

Entries appear whole or not at all, also under `kill -9`. A full cache gives up its least recently used entries, never
one that was used within the last hour: a build may be copying it.
"""

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import orjson

from seedwork.archives import NORMAL_MTIME, disk_errors, pack_tar
from seedwork.threads import in_thread
from services.builder.adapters.layers.image import ReadyLayer, layer_file
from services.builder.locks import Locks

FORMAT = 2
"""Of the layers' content: raise it when a layer with the same inputs would get other files."""
_MINIMUM_AGE_S = 3600.0


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of a layer that is made from these inputs (JSON values)."""
    text = orjson.dumps({"format": FORMAT, **inputs}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


class LayerCache:
    """The layers of one builder.

    Args:
        folder: Its own.
        max_bytes: Kept; crossed only by what was used within the last hour.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._locks = Locks()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.new"):
            left.unlink(missing_ok=True)

    def alone(self, key: str) -> AbstractAsyncContextManager[None]:
        """One at a time per key: the second build with the same lock file waits, then finds the layer."""
        return self._locks.of(key)

    async def get(self, key: str) -> ReadyLayer | None:
        """The layer, if it is there; it counts as used."""
        return await asyncio.to_thread(self._get, key)

    async def put(
        self, key: str, tree: Path, *, prefix: str, created_by: str, facts: Mapping[str, Any] | None = None
    ) -> ReadyLayer:
        """Pack a folder as the layer of that key; its content stands at `prefix` in the image.

        `facts` are kept beside the layer, and returned with it.
        """
        about = {"created_by": created_by, "facts": dict(facts or {})}
        return await in_thread(lambda stop: self._put(key, tree, prefix, about, stop))

    async def forget(self, path: Path) -> None:
        """Remove the entry whose file this is: it turned out to be damaged."""
        await asyncio.to_thread(self._remove, path)

    def _get(self, key: str) -> ReadyLayer | None:
        tar, about = self._paths(key)
        try:
            record = orjson.loads(about.read_bytes())
            size_bytes = tar.stat().st_size
            os.utime(about)
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        if size_bytes != record["size_bytes"]:
            return None
        return ReadyLayer(
            file=layer_file(tar, record["digest"], size_bytes),
            created_by=record["created_by"],
            cached=True,
            facts=record.get("facts", {}),
        )

    def _put(
        self, key: str, tree: Path, prefix: str, described: Mapping[str, Any], stop: threading.Event
    ) -> ReadyLayer:
        tar, about = self._paths(key)
        new_tar, new_about = tar.with_suffix(".tar.new"), about.with_suffix(".json.new")
        try:
            new_tar.unlink(missing_ok=True)
            digest, size_bytes = pack_tar(
                tree, new_tar, prefix=prefix, mtime=NORMAL_MTIME, skip_escaping_links=True, stop=stop
            )
            record = {"digest": digest, "size_bytes": size_bytes, **described}
            with disk_errors():
                new_about.write_bytes(orjson.dumps(record))
            new_tar.chmod(0o444)  # "it will not change": the image store links it and does not copy
            new_tar.replace(tar)
            new_about.replace(about)
        finally:
            new_tar.unlink(missing_ok=True)
            new_about.unlink(missing_ok=True)
        self._shrink()
        return ReadyLayer(file=layer_file(tar, digest, size_bytes), cached=False, **described)

    def _shrink(self) -> None:
        """Oldest use first, until the rest fits."""
        used = sorted((about.stat().st_mtime, about) for about in self._folder.glob("*.json"))
        sizes = {about: _size(about.with_suffix(".tar")) for _, about in used}
        total = sum(sizes.values())
        for used_at, about in used:
            if total <= self._max_bytes or time.time() - used_at < _MINIMUM_AGE_S:
                return
            self._remove(about.with_suffix(".tar"))
            total -= sizes[about]

    def _remove(self, tar: Path) -> None:
        if tar.parent == self._folder:
            tar.with_suffix(".json").unlink(missing_ok=True)
            tar.unlink(missing_ok=True)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self._folder / f"{key}.tar", self._folder / f"{key}.json"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # a killed process removed half of the entry
