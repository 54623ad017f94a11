"""Kinds of objects in, what the cluster has of them at any moment out: listed once, then kept by watches.

That is a fraction of the requests, and of the TLS handshakes, of listing again after each change. What a watch says is
what a list would say (https://kubernetes.io/docs/reference/using-api/api-concepts/, "Efficient detection of changes");
all the same everything is listed anew when a watch has ended, for whichever reason, which is every few seconds.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from seedwork.errors import NotFound, Unavailable
from services.deployer.adapters.kubernetes.cluster import Cluster, Kind, Listed, Object

WATCH_S = 5
"""A change that a watch did not tell is seen after so long."""


class Followed:
    """What there is of some kinds in a namespace, with some labels, as long as the `async with` block runs.

    Entering raises Unavailable where the API does not answer.

    Args:
        cluster: Has them.
        namespace: Where.
        labels: They carry these.
        kinds: Which are followed.
    """

    def __init__(self, cluster: Cluster, namespace: str, labels: Mapping[str, str], *kinds: Kind) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._labels = labels
        self._kinds = kinds
        self._objects: dict[Kind, dict[str, Object]] = {}
        self._news = asyncio.Event()
        self._fault: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """List them, and begin to watch."""
        first = await asyncio.gather(*map(self._list, self._kinds))
        for kind, listed in zip(self._kinds, first, strict=True):
            task = asyncio.create_task(self._keep(kind, listed), name=f"follow-{kind.plural}-{self._namespace}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Watch no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def of(self, kind: Kind) -> Sequence[Object]:
        """Those that there are now."""
        return list(self._objects[kind].values())

    async def change(self) -> None:
        """Wait until there was a change since the last call, or everything was listed anew.

        Raises:
            Unavailable: The API does not answer any more.
        """
        await self._news.wait()
        self._news.clear()
        if self._fault is not None:
            raise self._fault

    async def _list(self, kind: Kind) -> Listed:
        listed = await self._cluster.list(kind, self._namespace, self._labels)
        self._objects[kind] = {each["metadata"]["name"]: each for each in listed.items}
        self._news.set()
        return listed

    async def _keep(self, kind: Kind, listed: Listed) -> None:
        objects = self._objects[kind]
        while True:
            watch = self._cluster.watch(kind, self._namespace, self._labels, listed.version, limit_s=WATCH_S)
            with contextlib.suppress(Unavailable, NotFound):  # the connection was lost, or the version is too old
                async with contextlib.aclosing(watch) as changes:
                    async for change, item in changes:
                        if change == "DELETED":
                            objects.pop(item["metadata"]["name"], None)
                        else:
                            objects[item["metadata"]["name"]] = item
                        self._news.set()
            listed = await self._list(kind)
            objects = self._objects[kind]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._fault = task.exception()
            self._news.set()
