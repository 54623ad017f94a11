"""What an app has in the cluster beside its releases: where the cluster is slow and refuses; else see tests/stack."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from seedwork.clock import SystemClock
from seedwork.errors import FinalError
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import Cluster, Kind, Listed, Object
from services.deployer.adapters.kubernetes.front import Front, Ways


class Refusing:
    """Has the app's namespace; takes no quota, and some time for everything else."""

    def __init__(self) -> None:
        self.applied: set[str] = set()

    async def list(self, _kind: Kind, _namespace: str | None, _labels: Mapping[str, str]) -> Listed:
        return Listed([{"metadata": {"name": "shop"}}], "1")

    async def apply(self, manifest: Mapping[str, Any]) -> Object:
        if manifest["kind"] == "ResourceQuota":
            raise FinalError("The API refuses the quota")
        for _ in range(5):
            await asyncio.sleep(0)
        self.applied.add(manifest["kind"])
        return {}


async def test_what_is_refused_is_told_when_nothing_of_it_is_under_way() -> None:
    """Else a Secret could come after the undo that looked for it."""
    cluster = Refusing()
    front = Front(cast("Cluster", cluster), SystemClock(), objects.Shape(installation="knarr"), Ways())
    secret: Object = {"kind": "Secret", "metadata": {"name": "config"}}
    with pytest.raises(FinalError, match="refuses the quota"):
        await front.surround("an-app", "shop", "default", also=lambda _: secret)
    assert {"Namespace", "Secret"} <= cluster.applied
