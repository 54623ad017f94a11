"""Whose objects in a cluster were changed, by what its watches say; without a cluster."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from seedwork.clock import SystemClock
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.changes import Changes, Whose
from services.deployer.adapters.kubernetes.cluster import DEPLOYMENT, NAMESPACE, Cluster, Kind, Listed, Object
from tests.services.deployer.conftest import eventually


def item(name: str, *, app_id: str = "a", saga_id: str = "s", **metadata: Any) -> Object:
    labels = {objects.APP_ID: app_id, objects.SAGA: saga_id}
    return {"metadata": {"namespace": "ns", "name": name, "labels": labels, "resourceVersion": "1", **metadata}}


class Watched:
    """A cluster whose lists and watches a test writes."""

    def __init__(self, *lists: list[Object]) -> None:
        self._lists = list(lists)
        self.said: asyncio.Queue[tuple[str, Object] | None] = asyncio.Queue()

    async def list(self, _kind: Kind, namespace: str | None, _labels: object, *, metadata_only: bool) -> Listed:
        assert (namespace, metadata_only) == (None, True)
        return Listed(self._lists.pop(0) if len(self._lists) > 1 else self._lists[0], "1")

    async def watch(self, *_: object, **__: object) -> AsyncGenerator[tuple[str, Object], None]:
        while (said := await self.said.get()) is not None:
            yield said


async def told(changes: Changes) -> set[Whose]:
    async def take() -> set[Whose]:
        return changes.take()

    return await eventually(take)


async def test_a_change_of_the_spec_counts_and_one_of_the_status_does_not() -> None:
    """A Deployment's status changes with each of its pods."""
    cluster = Watched([item("web", generation=1)])
    changes = Changes(cast("Cluster", cluster), SystemClock(), {})
    changes.follow([DEPLOYMENT])
    cluster.said.put_nowait(("MODIFIED", item("web", generation=1, resourceVersion="2")))
    cluster.said.put_nowait(("MODIFIED", item("other", app_id="b", saga_id="t", generation=2)))
    assert await told(changes) == {("b", "t")}
    cluster.said.put_nowait(("DELETED", item("web", generation=1)))
    assert await told(changes) == {("a", "s")}
    await changes.close()


async def test_what_changed_while_nothing_was_watched_is_found_by_the_next_list() -> None:
    """Gone, changed or new: each has its app. The first list says nothing: everything is looked at then anyway."""
    before = [item("gone"), item("kept", app_id="k"), item("changed", app_id="c")]
    after = [item("kept", app_id="k"), item("changed", app_id="c", resourceVersion="2"), item("new", app_id="n")]
    cluster = Watched(before, after)
    changes = Changes(cast("Cluster", cluster), SystemClock(), {})
    changes.follow([DEPLOYMENT])
    cluster.said.put_nowait(None)

    found: set[Whose] = set()

    async def take() -> set[Whose]:
        found.update(changes.take())
        return found

    await eventually(take, until=lambda said: len(said) == 3)
    assert found == {("a", "s"), ("c", "s"), ("n", "s")}
    await changes.close()


async def test_secrets_are_listed_in_the_namespaces_of_apps_alone() -> None:
    """A right to list those of all namespaces is a right to read every password of the cluster."""

    class Quick(SystemClock):
        async def sleep(self, _seconds: float) -> None:
            await asyncio.sleep(0)

    class Versioned(Watched):
        def __init__(self) -> None:
            super().__init__([])
            self.asked: list[str | None] = []

        async def list(self, kind: Kind, namespace: str | None, _labels: object, *, metadata_only: bool) -> Listed:
            assert metadata_only
            if kind is NAMESPACE:
                return Listed([item("shop", namespace=""), item("till", namespace="")], "1")
            self.asked.append(namespace)
            version = str(self.asked.count("till") > 3)
            return Listed([item("config", saga_id=f"of {namespace}", resourceVersion=version)], "1")

    cluster = Versioned()
    changes = Changes(cast("Cluster", cluster), Quick(), {})
    changes.follow([NAMESPACE])
    found: set[Whose] = set()

    async def take() -> set[Whose]:
        found.update(changes.take())
        return found

    await eventually(take, until=lambda said: len(said) == 2)
    assert found == {("a", "of shop"), ("a", "of till")}
    assert set(cluster.asked) == {"shop", "till"}
    await changes.close()
