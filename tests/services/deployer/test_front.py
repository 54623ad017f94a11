"""What an app has in the cluster beside its releases: where the cluster is slow and refuses; else see tests/stack."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, cast

import pytest

from seedwork.clock import SystemClock
from seedwork.errors import FinalError
from services.deployer.adapters.kubernetes import objects
from services.deployer.adapters.kubernetes.cluster import Cluster, Kind, Listed, Object
from services.deployer.adapters.kubernetes.ending import Ending
from services.deployer.adapters.kubernetes.front import Front, Ways
from services.deployer.adapters.kubernetes.reaching import leads_to_a_pod


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


async def test_a_port_that_is_only_reserved_leads_to_no_pod() -> None:
    """kube-proxy listens on a node port before its rules are there, and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
        assert not await leads_to_a_pod("127.0.0.1", port, within_s=0.02)
    assert not await leads_to_a_pod("127.0.0.1", port)


@pytest.mark.parametrize("answer", [b"", b"220 ready"], ids=["closes", "speaks first"])
async def test_a_program_that_reads_takes_the_traffic(answer: bytes) -> None:
    """It closes a connection on which nothing comes, or speaks first."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        assert await leads_to_a_pod("127.0.0.1", server.sockets[0].getsockname()[1])


class Watch:
    """A clock that counts how long was slept."""

    def __init__(self) -> None:
        self.s = 1000.0

    def now_ms(self) -> int:
        return int(self.s * 1000)

    async def sleep(self, seconds: float) -> None:
        self.s += seconds


async def test_pods_go_on_serving_while_a_node_may_still_send_them_requests() -> None:
    """So long after the move, however much of it has passed; pods that had no traffic end at once."""
    clock = Watch()
    ending = Ending(cast("Cluster", None), clock, grace_s=10, late_s=6)
    ending.moved_away("the one before")
    clock.s += 2
    await ending.until_unused("another")
    assert clock.s == 1002
    await ending.until_unused("the one before")
    assert clock.s == 1006
    await ending.until_unused("the one before")
    assert clock.s == 1006

    ending.moved_away("observed for long")
    clock.s += 3600
    await ending.until_unused("observed for long")
    assert clock.s == 4606
