"""A registry that answers 500 and 429, loses connections and cuts blobs: nothing half-there, and a clear word."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx2
import pytest

from ocistore import open_store
from ocistore.distribution import DistributionStore
from ocistore.manifest import digest_of
from ocistore.registry import Patience, Registry
from ocistore.store import Descriptor, Image, LayerFile
from ocistore.testing import image_config, put_image
from seedwork.chassis.http import FAILURES_TO_OPEN, HttpClients
from seedwork.errors import FinalError, InvalidInput, NotFound, Unavailable
from seedwork.messages import new_id
from tests.stack.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.stack.registries import OwnRegistry, own_registry

pytestmark = pytest.mark.stack("DOCKER_HOST")

QUICK = Patience(attempts=4, timeout_s=30.0, wait_initial_s=0.01, wait_max_s=0.05, answer_s=20.0)
PATIENT = Patience(attempts=200, timeout_s=60.0, wait_initial_s=0.05, wait_max_s=0.2)
CHUNK = 256 * 1024


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRegistry]:
    with own_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def registry(running: OwnRegistry) -> OwnRegistry:
    running.wipe()
    return running


@pytest.fixture
async def proxy(registry: OwnRegistry) -> AsyncIterator[FaultyProxy]:
    async with faulty_proxy(registry.host) as proxy:
        yield proxy


class Shop:
    """Makes stores, and closes what they use."""

    def __init__(self) -> None:
        self._clients: list[HttpClients] = []

    def store(self, url: str, *, patience: Patience = QUICK, chunk_bytes: int = CHUNK) -> DistributionStore:
        """With a client as services have it."""
        self._clients.append(HttpClients(service_token=None, trusted=()))
        registry = Registry(url, client=self._clients[-1].client(), patience=patience)
        return DistributionStore(registry, chunk_bytes=chunk_bytes)

    async def close(self) -> None:
        """All connections."""
        for clients in self._clients:
            await clients.close()


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    shop = Shop()
    yield shop
    await shop.close()


@pytest.fixture
def store(shop: Shop, proxy: FaultyProxy) -> DistributionStore:
    """Through the proxy."""
    return shop.store(proxy.url)


@pytest.fixture
def straight(shop: Shop, registry: OwnRegistry) -> DistributionStore:
    """Past the proxy."""
    return shop.store(registry.url)


def big_layer(folder: Path, size_bytes: int = 5 * CHUNK + 77) -> LayerFile:
    """A layer of several pieces; what is in it matters to nobody."""
    content = os.urandom(size_bytes)
    path = folder / "big.tar"
    path.write_bytes(content)
    digest = digest_of(content)
    media_type = "application/vnd.oci.image.layer.v1.tar"
    return LayerFile(
        descriptor=Descriptor(media_type=media_type, digest=digest, size_bytes=size_bytes), diff_id=digest, path=path
    )


async def content_of(store: DistributionStore, image: Image) -> bytes:
    return b"".join([piece async for piece in store.read_blob(image.repository, image.layers[0].digest)])


Act = Callable[[DistributionStore, Path, Image], Awaitable[object]]
ACTS: dict[str, Act] = {
    "put": lambda store, folder, image: put_image(store, f"{image.repository}/put", folder, {"new": "x"}, tags=["v1"]),
    "copy": lambda store, _, image: store.copy(image.repository, image.digest, to=f"{image.repository}/copy"),
    "get": lambda store, _, image: store.get(image.repository, image.digest, verify=True),
    "tag": lambda store, _, image: store.tag(image.repository, image.digest, tags=["new"]),
    "remove": lambda store, _, image: store.remove(image.repository, image.digest),
    "images": lambda store, _, image: store.images(image.repository),
    "read": lambda store, _, image: content_of(store, image),
}


@pytest.mark.parametrize(
    ("act", "fault"),
    [*((act, "500") for act in ACTS), ("put", "refuse"), ("put", "cut-answer"), ("get", "cut-answer"), ("tag", "429")],
)
async def test_one_fault_at_any_request_is_survived(
    shop: Shop, proxy: FaultyProxy, tmp_path: Path, act: str, fault: str
) -> None:
    """Whichever request it hits, the work is done in the end, and what is listed is complete."""
    store, straight = shop.store(proxy.url), shop.store(f"http://{proxy.upstream}")
    for turn in count():
        image = await put_image(straight, f"shop{turn}", tmp_path, {"app.py": f"{turn}"}, tags=["old"])
        proxy.faults = [_fault(fault, skip=turn)]

        await ACTS[act](store, tmp_path, image)

        if proxy.faults[0].times:  # no request was left to fail
            break
    assert turn > 0
    for repository, digest in await straight.images():
        await straight.get(repository, digest, verify=True)


def _fault(name: str, *, skip: int) -> Fault:
    match name:
        case "refuse":
            return Fault(how="refuse", skip=skip)
        case "cut-answer":
            return Fault(how="cut-answer", skip=skip)
        case _:
            return Fault(how="answer", status=int(name), skip=skip, headers=("Retry-After: 0",))


@pytest.mark.parametrize("act", ["put", "copy"])
async def test_a_registry_that_stays_broken_from_any_request_on_has_the_image_or_not(
    shop: Shop, proxy: FaultyProxy, straight: DistributionStore, tmp_path: Path, act: str
) -> None:
    """As if we were killed there: what is listed is complete. The error says which registry, which repository, why."""
    store = shop.store(proxy.url, patience=Patience(attempts=1))
    for turn in count():
        image = await put_image(straight, f"shop{turn}", tmp_path, {"app.py": "x"})
        proxy.faults = [Fault(how="answer", status=503, skip=turn, times=10_000)]

        error = await _failure(ACTS[act](store, tmp_path, image))

        if error is None:
            break
        assert proxy.host in error.message
        assert image.repository in error.message
        assert "503" in error.message
    assert turn > 5
    for repository, digest in await straight.images():
        await straight.get(repository, digest, verify=True)


async def _failure(work: Awaitable[object]) -> Unavailable | None:
    try:
        await work
    except Unavailable as error:
        return error
    return None


async def test_retry_after_is_heeded_within_bounds(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path
) -> None:
    """A registry that asks for an hour gets what our patience allows."""
    image = await put_image(straight, "shop", tmp_path, {"app.py": "x"})
    proxy.faults = [Fault(how="answer", status=429, headers=("Retry-After: 3600",), times=2)]

    assert await store.get("shop", image.digest) == image


@pytest.mark.parametrize("pieces", ["one", "several"])
@pytest.mark.parametrize("nth", [0, 1, 2])
async def test_an_upload_that_is_cut_is_completed(
    shop: Shop, proxy: FaultyProxy, tmp_path: Path, pieces: str, nth: int
) -> None:
    """The layer arrives whole, as it is."""
    straight = shop.store(f"http://{proxy.upstream}")
    store = shop.store(proxy.url, chunk_bytes=CHUNK if pieces == "several" else 1 << 30)
    layer = big_layer(tmp_path)
    method = "PATCH" if pieces == "several" else "PUT"
    skip = nth if pieces == "several" else 0
    times = 1 if pieces == "several" else nth + 1
    proxy.faults = [
        Fault(how="cut-request", method=method, path="/blobs/uploads/", after_bytes=100_000, skip=skip, times=times)
    ]

    image = await store.put("shop", config=image_config([layer]), layers=[layer])

    assert not proxy.faults[0].times
    assert await straight.get("shop", image.digest, verify=True) == image
    assert layer.path is not None
    assert await content_of(straight, image) == layer.path.read_bytes()


async def test_a_large_layer_is_sent_in_pieces(proxy: FaultyProxy, store: DistributionStore, tmp_path: Path) -> None:
    """So that a cut costs one piece."""
    layer = big_layer(tmp_path)

    await store.put("shop", config=image_config([layer]), layers=[layer])

    assert proxy.asked("PATCH") == 5
    assert layer.descriptor.size_bytes < proxy.bytes_up < layer.descriptor.size_bytes + 10_000


@pytest.mark.parametrize("after_bytes", [0, 1, 300_000])
async def test_a_blob_that_is_cut_is_taken_up_where_it_broke(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path, after_bytes: int
) -> None:
    """The reader notices nothing; what was read is not asked for again."""
    layer = big_layer(tmp_path)
    image = await straight.put("shop", config=image_config([layer]), layers=[layer])
    proxy.faults = [Fault(how="cut-answer", path="/blobs/", after_bytes=after_bytes, times=2)]

    content = await content_of(store, image)

    assert layer.path is not None
    assert content == layer.path.read_bytes()
    assert proxy.asked("GET", "/blobs/") == 3


async def test_a_blob_that_always_breaks_is_never_taken_for_whole(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path
) -> None:
    """After our patience: an error, and not a short layer."""
    layer = big_layer(tmp_path)
    image = await straight.put("shop", config=image_config([layer]), layers=[layer])
    proxy.faults = [Fault(how="cut-answer", path="/blobs/", times=1000)]

    with pytest.raises(Unavailable, match="shop"):
        await content_of(store, image)


async def test_a_copy_mounts_and_sends_nothing(proxy: FaultyProxy, store: DistributionStore, tmp_path: Path) -> None:
    """From staging to its permanent place no byte of a layer moves."""
    layer = big_layer(tmp_path)
    image = await store.put("staging/1", config=image_config([layer]), layers=[layer])
    before = proxy.bytes_up

    await store.copy("staging/1", image.digest, to="shop")

    assert proxy.asked("POST", "mount=") == 2
    assert proxy.bytes_up - before < 2_000
    assert not [path for method, path in proxy.requests if method == "GET" and layer.descriptor.digest in path]


async def test_a_copy_looks_at_each_blob_in_its_new_place_before_it_names_the_image(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """Once, if it was there, else before and after it was mounted; a manifest comes last, and is read back."""
    await put_image(store, "staging/1", tmp_path, {"lib.py": "x"}, {"app.py": "1"})
    second = await put_image(store, "staging/1", tmp_path, {"lib.py": "x"}, {"app.py": "2"})
    first = next(each for _, each in await store.images("staging/1") if each != second.digest)
    await store.copy("staging/1", first, to="shop")
    proxy.requests.clear()

    await store.copy("staging/1", second.digest, to="shop", tags=["v2"])

    shared, new = (each.digest for each in second.layers)
    asked = [path for method, path in proxy.requests if method == "HEAD"]
    assert [sum(digest in path for path in asked) for digest in (shared, new)] == [1, 2]
    assert not [path for path in asked if "staging" in path]
    named = [path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT"]
    assert named == [f"knarr-{second.digest.removeprefix('sha256:')}", "v2"]
    after = proxy.requests[next(i for i, (method, _) in enumerate(proxy.requests) if method == "PUT") :]
    assert ("GET", f"/v2/shop/manifests/{second.digest}") in after


async def test_a_copy_asks_for_nothing_while_it_names_the_image(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """Distribution's file system driver empties a file before it writes it: who reads then is answered 500."""
    image = await put_image(store, "staging/1", tmp_path, {"app.py": "1"})
    proxy.requests.clear()
    proxy.overlapping.clear()

    await store.copy("staging/1", image.digest, to="shop", tags=["v1", "v2"])

    assert proxy.asked("PUT", "/manifests/") == 3
    assert not [pair for pair in proxy.overlapping if any(_names_an_image(*each) for each in pair)]


def _names_an_image(method: str, path: str) -> bool:
    return method == "PUT" and "/manifests/" in path


async def test_a_copy_into_a_new_repository_mounts_each_blob_and_then_looks_at_it(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """Nothing can be there already. A copy onto itself, of what somebody pushed, sends nothing."""
    image = await put_image(store, "staging/1", tmp_path, {"app.py": "1"})
    blobs = [image.manifest["config"]["digest"], *(each.digest for each in image.layers)]
    proxy.requests.clear()

    await store.copy("staging/1", image.digest, to="shop")

    about = [[method for method, path in proxy.requests if digest in path] for digest in blobs]
    assert about == [["POST", "HEAD", "GET"], *(["POST", "HEAD"] for _ in image.layers)]

    await store.untag("shop", f"knarr-{image.digest.removeprefix('sha256:')}")
    proxy.requests.clear()
    await store.copy("shop", image.digest, to="shop", tags=["v1"])
    assert not proxy.asked("POST", "/v2/shop/blobs/uploads/")


async def test_an_image_that_is_known_takes_one_request(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """Its manifest is read and hashed each time, as it may have gone; its config, which cannot change, once."""
    image = await put_image(store, "shop", tmp_path, {"app.py": "1"}, tags=["v1", "v2"])
    await store.get("shop", image.digest, tagged=False)
    proxy.requests.clear()

    await store.get("shop", image.digest, tagged=False)

    assert proxy.requests == [("GET", f"/v2/shop/manifests/{image.digest}")]


async def test_where_the_registry_does_not_mount_a_copy_sends(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path
) -> None:
    """The specification lets a registry answer 202 to a mount: here is where to send it."""
    layer = big_layer(tmp_path)
    image = await store.put("staging/1", config=image_config([layer]), layers=[layer])
    proxy.rewrite = lambda path: path.partition("?mount=")[0]

    await store.copy("staging/1", image.digest, to="shop")

    assert (await straight.get("shop", image.digest, verify=True)).digest == image.digest
    assert proxy.asked("PUT", f"digest={layer.descriptor.digest}") == 2


def of_a_neighbour(layer: LayerFile) -> LayerFile:
    """The same without its file."""
    return replace(layer, path=None, from_repository="staging/incoming")


async def test_a_layer_of_a_neighbour_takes_one_request_whether_it_is_there_or_not(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """It is mounted without a look; the registry says the same where it has it already."""
    layer = big_layer(tmp_path)
    await store.put("staging/incoming", config=image_config([layer]), layers=[layer])
    theirs = of_a_neighbour(layer)
    proxy.requests.clear()

    for label in "ab":
        await store.put("staging/1", config=image_config([theirs], labels={"a": label}), layers=[theirs])

    about_it = [method for method, path in proxy.requests if layer.descriptor.digest in path]
    assert about_it == ["POST", "POST"]


async def test_where_the_registry_does_not_mount_a_layer_that_is_there_is_left_and_no_upload_stays(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """What was begun for it is taken away again; one that is nowhere is refused in the same way."""
    layer = big_layer(tmp_path)
    await store.put("shop", config=image_config([layer]), layers=[layer])
    theirs = of_a_neighbour(layer)
    proxy.rewrite = lambda path: path.partition("?mount=")[0]

    await store.put("shop", config=image_config([theirs]), layers=[theirs])
    assert proxy.asked("DELETE", "/v2/shop/blobs/uploads/") == 1
    with pytest.raises(NotFound, match=layer.descriptor.digest):
        await store.put("other", config=image_config([theirs]), layers=[theirs])
    assert proxy.asked("DELETE", "/v2/other/blobs/uploads/") == 1


async def test_a_layer_that_is_there_is_not_sent_again(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """One request asks for it; its file is not even read."""
    layer = big_layer(tmp_path)
    await store.put("shop", config=image_config([layer]), layers=[layer])
    assert layer.path is not None
    layer.path.unlink()
    before = proxy.bytes_up

    await store.put("shop", config=image_config([layer], labels={"a": "b"}), layers=[layer])

    assert proxy.bytes_up - before < 2_000


async def test_a_layer_that_arrives_damaged_is_sent_again(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path
) -> None:
    """The registry refuses it; the file is not at fault, so that is worth another attempt."""
    layer = big_layer(tmp_path, CHUNK // 2)
    wrong = iter(["0" * 64])
    right = layer.descriptor.digest.removeprefix("sha256:")
    proxy.rewrite = lambda path: (
        path.replace(right, next(wrong, right)) if f"={layer.descriptor.digest}" in path else path
    )

    image = await store.put("shop", config=image_config([layer]), layers=[layer])

    assert proxy.asked("PUT", f"digest={layer.descriptor.digest}") == 2
    await straight.get("shop", image.digest, verify=True)


async def test_a_file_that_shrinks_while_it_is_sent_is_named(
    proxy: FaultyProxy, store: DistributionStore, tmp_path: Path
) -> None:
    """The registry gets too little; the error says which file, and nothing is listed."""
    layer = big_layer(tmp_path)
    assert layer.path is not None
    path = layer.path

    def shrink(asked: str) -> str:
        if "_state" in asked and path.stat().st_size > CHUNK:
            os.truncate(path, CHUNK)
        return asked

    proxy.rewrite = shrink

    with pytest.raises(InvalidInput, match=r"big\.tar"):
        await store.put("shop", config=image_config([layer]), layers=[layer])

    assert await store.images() == []


async def test_a_removed_image_answers_404(registry: OwnRegistry, straight: DistributionStore, tmp_path: Path) -> None:
    """For every client, under its digest and all its names; what has the same layers stays."""
    image = await put_image(straight, "shop", tmp_path, {"app.py": "x"}, tags=["v1"])
    other = await put_image(straight, "shop", tmp_path, {"app.py": "x"}, {"more": "y"})

    assert await straight.remove("shop", image.digest) is True

    async with httpx2.AsyncClient(base_url=registry.url) as client:
        for name in (image.digest, "v1", f"knarr-{image.digest.removeprefix('sha256:')}"):
            assert (await client.get(f"/v2/shop/manifests/{name}")).status_code == 404
    registry.collect_garbage()
    await straight.get("shop", other.digest, verify=True)


async def test_an_untagged_manifest_of_somebody_else_is_no_image_of_the_store_until_it_is_taken_in(
    straight: DistributionStore, tmp_path: Path
) -> None:
    """What an engine pushes is readable, and listed once `tag` was called; taking a tag away takes nothing else."""
    image = await put_image(straight, "shop", tmp_path, {"app.py": "x"}, tags=["build-1", "v1"])
    await straight.untag("shop", f"knarr-{image.digest.removeprefix('sha256:')}")

    assert await straight.images() == []
    assert await straight.resolve("shop", "build-1") == image.digest

    await straight.untag("shop", "build-1")

    assert await straight.resolve("shop", "build-1") is None
    assert (await straight.get("shop", image.digest, verify=True)).tags == ("v1",)
    await straight.tag("shop", image.digest, tags=["v1"])
    assert await straight.images() == [("shop", image.digest)]


async def test_many_repositories_are_listed_page_by_page(
    proxy: FaultyProxy, store: DistributionStore, straight: DistributionStore, tmp_path: Path
) -> None:
    """Pages are followed, and a prefix reads no more of the catalog than it needs."""
    names = [f"{team}/app{number}" for team in ("a", "b", "c", "staging") for number in range(3)]
    for name in names:
        await put_image(straight, name, tmp_path, {"a": "1"})
    proxy.rewrite = lambda path: path.replace("n=500", "n=2")

    assert {name for name, _ in await store.images()} == set(names)
    proxy.requests.clear()
    assert [name for name, _ in await store.images("b/")] == ["b/app0", "b/app1", "b/app2"]

    assert proxy.asked("GET", "_catalog") == 2


async def test_a_registry_that_is_killed_and_comes_back_is_waited_for(
    shop: Shop, registry: OwnRegistry, tmp_path: Path
) -> None:
    """A deployment goes on when it is there again."""
    store = shop.store(registry.url, patience=PATIENT)
    first = await put_image(store, "shop", tmp_path, {"a": "1"})

    restarting = asyncio.create_task(asyncio.to_thread(registry.restart))
    copies = 0
    while not restarting.done() or copies < 3:
        image = await put_image(store, f"app{copies}", tmp_path, {"a": f"{copies}"})
        await store.copy(image.repository, image.digest, to=f"copy/{copies}")
        assert await store.remove(image.repository, image.digest) is True
        copies += 1
    await restarting

    assert (await store.get("shop", first.digest, verify=True)) == first
    assert len(await store.images("copy/")) == copies


async def test_a_registry_that_is_away_is_not_asked_for_a_while(shop: Shop) -> None:
    """The chassis's circuit breaker: callers learn at once that it is away."""
    store = shop.store("http://127.0.0.1:1", patience=Patience(attempts=1))

    said = []
    for _ in range(FAILURES_TO_OPEN + 1):
        with pytest.raises(Unavailable, match="shop") as raised:
            await store.get("shop", "sha256:" + "0" * 64)
        said.append(raised.value.message)

    assert "cannot be reached" in said[0]
    assert "not asked at the moment" in said[-1]


async def test_a_registry_that_forbids_deletion_says_what_to_change(
    shop: Shop, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An undo that cannot be done names the setting."""
    with own_registry(
        tmp_path_factory.mktemp("registry"), env={"REGISTRY_STORAGE_DELETE_ENABLED": "false"}
    ) as registry:
        store = shop.store(registry.url)
        image = await put_image(store, "shop", tmp_path, {"a": "1"})

        with pytest.raises(FinalError, match="REGISTRY_STORAGE_DELETE_ENABLED"):
            await store.remove("shop", image.digest)


@pytest.mark.stack("REGISTRY")
async def test_the_registry_of_the_environment_does_it_too(tmp_path: Path) -> None:
    """The one that other tests and people use: a whole life of an image."""
    store = open_store(f"http://{os.environ['REGISTRY']}/knarr-test/{new_id()}", patience=QUICK)
    layer = big_layer(tmp_path)
    image = await store.put("staging/1", config=image_config([layer]), layers=[layer], tags=["v1"])
    copied = await store.copy("staging/1", image.digest, to="shop", tags=["v1"])
    assert await store.get("shop", copied.digest, verify=True) == copied
    assert await store.remove("staging/1", image.digest) is True
    assert await store.images() == [("shop", image.digest)]
    assert await store.remove("shop", image.digest) is True
    with pytest.raises(NotFound):
        await store.get("shop", image.digest)
    await store.close()
