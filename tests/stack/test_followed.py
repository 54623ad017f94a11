"""What is followed by watches is what the cluster has, whatever becomes of a watch."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from seedwork.errors import Unavailable
from seedwork.messages import new_id
from seedwork.testing.servers import Wire
from services.deployer.adapters.kubernetes import followed
from services.deployer.adapters.kubernetes.cluster import LIMITS, NAMESPACE, SECRET, Cluster, Kind, Listed, Object
from services.deployer.adapters.kubernetes.followed import Followed

pytestmark = pytest.mark.stack("KUBECONFIG")

PATIENCE_S = 60.0
LABELS = {"knarr-test": "followed"}


@pytest.fixture(autouse=True)
def long_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed anew because time is over."""
    monkeypatch.setattr(followed, "WATCH_S", 3600)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    yield cluster
    await cluster.close()


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    name = f"knarr-test-{new_id()[-12:]}"
    await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await cluster.delete(NAMESPACE, None, name)


@pytest.fixture
def kubeconfig() -> str:
    """Its text."""
    return Path(os.environ["KUBECONFIG"]).read_text()


def server_of(kubeconfig: str) -> tuple[str, int]:
    """Host and port of the API."""
    server = urlsplit(yaml.safe_load(kubeconfig)["clusters"][0]["cluster"]["server"])
    return server.hostname or "", server.port or 443


@contextlib.asynccontextmanager
async def over_a_wire(kubeconfig: str, folder: Path) -> AsyncIterator[tuple[Cluster, Wire]]:
    """The cluster, and what lies between it and us."""
    host, port = server_of(kubeconfig)
    wire = Wire(host, port)
    path = folder / "kubeconfig"
    path.write_text(kubeconfig.replace(f"{host}:{port}", f"127.0.0.1:{await wire.open()}"))
    far = Cluster(path)
    try:
        yield far, wire
    finally:
        await far.close()
        await wire.close()


def secret(namespace: str, name: str, word: str = "one", labels: dict[str, str] = LABELS) -> Object:
    """As the cluster takes it."""
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"word": word}}


async def until(seen: Followed, *wanted: tuple[str, str]) -> None:
    """These Secrets (name, `word` as the cluster has it) are seen, and no others."""
    async with asyncio.timeout(PATIENCE_S):
        while words(seen.of(SECRET)) != sorted(wanted):
            await seen.change()


def words(found: Iterable[Object]) -> list[tuple[str, str]]:
    """Name and word of each."""
    return sorted((each["metadata"]["name"], each["data"]["word"]) for each in found)


ONE, TWO = "b25l", "dHdv"


async def test_what_comes_changes_and_goes_is_seen(cluster: Cluster, namespace: str) -> None:
    """Of each kind that is followed, with the labels; nothing else."""
    await cluster.apply(secret(namespace, "a"))
    async with Followed(cluster, namespace, LABELS, SECRET, LIMITS) as seen:
        assert words(seen.of(SECRET)) == [("a", ONE)]
        await cluster.apply(secret(namespace, "other", labels={}))
        await cluster.apply(secret(namespace, "b"))
        await until(seen, ("a", ONE), ("b", ONE))
        await cluster.apply(secret(namespace, "a", "two"))
        await until(seen, ("a", TWO), ("b", ONE))
        await cluster.delete(SECRET, namespace, "b")
        await until(seen, ("a", TWO))
        assert seen.of(LIMITS) == []
        metadata = {"name": "l", "namespace": namespace, "labels": LABELS}
        await cluster.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": []}})
        async with asyncio.timeout(PATIENCE_S):
            while not seen.of(LIMITS):
                await seen.change()


async def test_a_watch_from_a_version_that_has_expired_is_begun_again(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a list of what there is now: what such a watch cannot tell any more is not missed."""
    list_now, lists = cluster.list, 0

    async def list_as_long_ago(kind: Kind, where: str | None, labels: Mapping[str, str]) -> Listed:
        nonlocal lists
        lists += 1
        return Listed([], "1") if lists == 1 else await list_now(kind, where, labels)

    await cluster.apply(secret(namespace, "a"))
    monkeypatch.setattr(cluster, "list", list_as_long_ago)
    async with Followed(cluster, namespace, LABELS, SECRET) as seen:
        await until(seen, ("a", ONE))


async def test_a_connection_that_breaks_is_made_again_and_an_api_that_is_away_is_said(
    cluster: Cluster, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    """What happened while nobody watched is seen; without an API nobody waits for ever."""
    async with over_a_wire(kubeconfig, tmp_path) as (far, wire), Followed(far, namespace, LABELS, SECRET) as seen:
        await cluster.apply(secret(namespace, "a"))
        await until(seen, ("a", ONE))
        wire.cut()
        await cluster.apply(secret(namespace, "a", "two"))
        await until(seen, ("a", TWO))
        await wire.close()
        with pytest.raises(Unavailable, match="does not answer"):
            await until(seen, ("never", ONE))


async def test_a_connection_is_kept_between_the_requests_of_deployments(kubeconfig: str, tmp_path: Path) -> None:
    """For longer than aiohttp's fifteen seconds: a TLS handshake is dear for the one and the other."""
    async with over_a_wire(kubeconfig, tmp_path) as (far, wire):
        await far.version()
        await asyncio.sleep(17)
        await far.version()
        assert wire.connections == 1
