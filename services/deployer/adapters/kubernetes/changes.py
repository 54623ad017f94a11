"""The objects of all apps, watched by their metadata alone: whose were changed since the last question, out.

A change is of its spec where the API counts those (`generation`), else of anything: what only a controller writes, such
as a Deployment's status, is none. Nothing of an object but its name, its labels and its version is kept.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError, NotFound, Unavailable
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import Cluster, Kind, Object

log = structlog.get_logger(__name__)

_WATCH_S = 240
"""Then everything is listed anew."""
_AGAIN_S = 2.0

Whose = tuple[str, str]
"""An app's id and the saga of a release; empty: it belongs to the app itself."""
_Versions = dict[tuple[str, str], tuple[Whose, str]]
"""By namespace and name: whose it is, and its version."""


class Changes:
    """Follows these kinds in all namespaces.

    Args:
        cluster: Has them.
        clock: For waiting.
        labels: Of every object that is followed.
    """

    def __init__(self, cluster: Cluster, clock: Clock, labels: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._labels = labels
        self._changed: set[Whose] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, kinds: Sequence[Kind]) -> None:
        """Begin to watch, once."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._keep(kind), name=f"changes-{kind.plural}") for kind in kinds]

    def take(self) -> set[Whose]:
        """The apps and releases with a change since the last call."""
        taken, self._changed = self._changed, set()
        return taken

    def add(self, app_id: str) -> None:
        """Count an app as changed: it is to be looked at again."""
        self._changed.add((app_id, ""))

    async def close(self) -> None:
        """Watch no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, kind: Kind) -> None:
        known: _Versions | None = None
        while True:
            try:
                listed = await self._cluster.list(kind, None, self._labels, metadata_only=True)
                fresh = dict(_entry(each) for each in listed.items)
                if known is not None:
                    self._compare(known, fresh)
                known = fresh
                await self._watch(kind, known, listed.version)
            except KnarrError as error:
                log.warning("changes.not_followed", kind=kind.name, why=error.message)
                await self._clock.sleep(_AGAIN_S)

    async def _watch(self, kind: Kind, known: _Versions, version: str) -> None:
        watch = self._cluster.watch(kind, None, self._labels, version, limit_s=_WATCH_S, metadata_only=True)
        with contextlib.suppress(Unavailable, NotFound):  # the connection was lost, or the version is too old
            async with contextlib.aclosing(watch) as changes:
                async for change, item in changes:
                    key, entry = _entry(item)
                    if change == "DELETED":
                        known.pop(key, None)
                        self._changed.add(entry[0])
                    elif known.get(key) != entry:
                        known[key] = entry
                        self._changed.add(entry[0])

    def _compare(self, known: _Versions, fresh: _Versions) -> None:
        for key in known.keys() | fresh.keys():
            if known.get(key) != fresh.get(key):
                self._changed.update(entry[0] for entry in (known.get(key), fresh.get(key)) if entry)


def _entry(item: Object) -> tuple[tuple[str, str], tuple[Whose, str]]:
    metadata = item["metadata"]
    version = str(metadata.get("generation") or metadata["resourceVersion"])
    going = "-" if "deletionTimestamp" in metadata else ""
    labels = metadata.get("labels") or {}
    whose = labels.get(objects.APP_ID, ""), labels.get(objects.SAGA, "")
    return (metadata.get("namespace", ""), metadata["name"]), (whose, f"{going}{version}")
