"""Git LFS content: over HTTPS as the specification says, and from a store on this machine."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import SecretStr

from seedwork.errors import InvalidInput, NotAllowed, NotFound, Unavailable
from seedwork.git import GitUrlPolicy
from seedwork.git_credentials import GitCredentials
from services.source.adapters.lfs import LfsStore
from services.source.lfs import Pointer, read_pointer

URL = "https://git.example/acme/shop.git"
DATA = b"wheel" * 100


def pointer(data: bytes = DATA, name: str = "vendor/x.whl") -> Pointer:
    return Pointer(name, hashlib.sha256(data).hexdigest(), len(data))


def files_in(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


class Host:
    """An LFS store: what it has, what it was asked, and what it answers instead."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(each).hexdigest(): each for each in contents}
        self.served = dict(self.contents)
        self.asked: list[httpx2.Request] = []
        self.status = 200
        self.href = "https://store.example/objects/"
        self.header: dict[str, str] = {"X-Signed": "1"}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        if request.method == "GET":
            return httpx2.Response(200, content=self.served[request.url.path.rpartition("/")[2]])
        if self.status != 200:
            return httpx2.Response(self.status, headers={"Location": "https://elsewhere.example/"})
        objects = []
        for each in orjson.loads(request.content)["objects"]:
            if each["oid"] in self.contents:
                each["actions"] = {"download": {"href": self.href + each["oid"], "header": self.header}}
            else:
                each["error"] = {"code": 404, "message": "gone"}
            objects.append(each)
        return httpx2.Response(200, json={"transfer": "basic", "objects": objects})


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Host], LfsStore]:
    def made(host: Host) -> LfsStore:
        return LfsStore(
            tmp_path / "lfs",
            policy=GitUrlPolicy(["https://git.example/", "ssh://git@git.example/", f"file://{tmp_path}/"]),
            credentials=GitCredentials({"https://git.example/acme/": SecretStr("the-token")}),
            timeout_s=30,
            client=lambda: httpx2.AsyncClient(transport=httpx2.MockTransport(host)),
        )

    return made


async def test_content_comes_over_the_batch_api_with_the_same_credentials(store: Any) -> None:
    """The token goes to the repository's host only; the store's own headers go to the store. It is kept."""
    host = Host(DATA)
    found = await store(host).bring(URL, [pointer(), pointer(name="copy")])
    assert found[pointer().oid].read_bytes() == DATA
    batch, download = host.asked
    assert (batch.method, str(batch.url)) == ("POST", f"{URL}/info/lfs/objects/batch")
    assert batch.headers["Authorization"].startswith("Basic ")
    assert batch.headers["Accept"] == "application/vnd.git-lfs+json"
    assert orjson.loads(batch.content)["objects"] == [{"oid": pointer().oid, "size": len(DATA)}]
    assert ("Authorization" in download.headers, download.headers["X-Signed"]) == (False, "1")
    assert (await store(host).bring(URL, [pointer()])).keys() == found.keys()
    assert len(host.asked) == 2


async def test_a_store_on_the_repository_s_host_gets_the_token_where_it_names_no_headers(store: Any) -> None:
    """As git-lfs does; an ssh repository is asked by https."""
    host = Host(DATA)
    host.href, host.header = "https://git.example/objects/", {}
    await store(host).bring("ssh://git@git.example/acme/shop.git", [pointer()])
    assert [each.headers.get("Authorization", "")[:6] for each in host.asked] == ["Basic ", "Basic "]
    assert str(host.asked[0].url) == f"{URL}/info/lfs/objects/batch"


async def test_what_the_store_does_not_have_is_left_out(store: Any) -> None:
    """The others come."""
    assert (await store(Host(DATA)).bring(URL, [pointer(), pointer(b"gone")])).keys() == {pointer().oid}


@pytest.mark.parametrize("served", [b"evil" * 125, b"short", DATA + b"longer"], ids=["other", "short", "long"])
async def test_content_that_is_not_what_the_pointer_says_is_refused(store: Any, tmp_path: Path, served: bytes) -> None:
    """By its hash and by its size; nothing of it is kept."""
    host = Host(DATA)
    host.served[pointer().oid] = served
    with pytest.raises(InvalidInput, match="not what its pointer says"):
        await store(host).bring(URL, [pointer()])
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAllowed), (403, NotAllowed), (404, NotFound), (302, NotFound), (503, Unavailable)]
)
async def test_the_answer_of_a_store_that_gives_nothing_says_who_has_to_act(store: Any, status: int, kind: Any) -> None:
    """A redirect is not followed."""
    host = Host(DATA)
    host.status = status
    with pytest.raises(kind):
        await store(host).bring(URL, [pointer()])
    assert len(host.asked) == 1


async def test_an_address_that_is_no_https_one_is_not_asked(store: Any) -> None:
    """A store's answer is foreign text."""
    host = Host(DATA)
    host.href = "http://169.254.169.254/"
    assert await store(host).bring(URL, [pointer()]) == {}
    assert len(host.asked) == 1


@pytest.mark.parametrize("inside", ["", ".git/"], ids=["bare", "work tree"])
async def test_a_repository_on_this_machine_has_its_store_beside_it(store: Any, tmp_path: Path, inside: str) -> None:
    """No network; a link is no content."""
    oid = pointer().oid
    folder = tmp_path / "shop" / f"{inside}lfs/objects/{oid[:2]}/{oid[2:4]}"
    folder.mkdir(parents=True)
    (folder / oid).write_bytes(DATA)
    other = pointer(b"x")
    found = await store(Host()).bring(f"file://{tmp_path}/shop", [pointer(), other])
    assert {each: path.read_bytes() for each, path in found.items()} == {oid: DATA}


async def test_content_of_one_repository_is_not_given_to_another(store: Any) -> None:
    """To know a hash is not to have its content."""
    await store(Host(DATA)).bring(URL, [pointer()])
    assert await store(Host()).bring("https://git.example/eve/shop.git", [pointer()]) == {}


async def test_unused_content_goes_after_its_time(store: Any) -> None:
    """Swept like mirrors."""
    kept = store(Host(DATA))
    await kept.bring(URL, [pointer()])
    assert (await kept.sweep(3600), await kept.sweep(0)) == (0, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize -1\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1\n" + b"x" * 1000,
    ],
)
def test_what_only_looks_like_a_pointer_is_a_file(data: bytes) -> None:
    """Content counts, and its size."""
    assert read_pointer("f", data) is None
