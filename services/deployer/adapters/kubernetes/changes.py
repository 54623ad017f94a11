"""The objects of all apps, followed by their metadata alone: whose were changed since the last question, out.

Kinds without secrets are watched in all namespaces. Secrets are listed in one app's namespace after the other, since a
right to watch those of all namespaces would be a right to read every password of the cluster.

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
from services.deployer.adapters.kubernetes.cluster import NAMESPACE, SECRET, Cluster, Kind, Object

log = structlog.get_logger(__name__)

_WATCH_S = 240
"""Then everything is listed anew."""
_AGAIN_S = 2.0
_ROUND_S = 3.0
"""A round through the namespaces takes at least so long."""
_PAUSE_S = 0.1
"""Between two namespaces: ten requests a second, however many apps there are."""

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
        self._namespaces: _Versions = {}
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, kinds: Sequence[Kind]) -> None:
        """Begin to watch these kinds in all namespaces, and Secrets in those of apps; once."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._keep(kind), name=f"changes-{kind.plural}") for kind in kinds]
            self._tasks.append(asyncio.create_task(self._keep_secrets(), name="changes-secrets"))

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
                if kind is NAMESPACE:
                    self._namespaces = known
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

    async def _keep_secrets(self) -> None:
        known: dict[str, _Versions] = {}
        while True:
            names = sorted(name for _, name in self._namespaces)
            known = {name: versions for name, versions in known.items() if name in names}
            for name in names:
                try:
                    listed = await self._cluster.list(SECRET, name, self._labels, metadata_only=True)
                except KnarrError as error:
                    log.warning("changes.not_followed", kind=SECRET.name, namespace=name, why=error.message)
                    continue
                fresh = dict(_entry(each) for each in listed.items)
                if name in known:
                    self._compare(known[name], fresh)
                known[name] = fresh
                await self._clock.sleep(_PAUSE_S)
            await self._clock.sleep(max(_ROUND_S - _PAUSE_S * len(names), _PAUSE_S))

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
