"""Calls to an engine: what goes out, and which error an answer means."""

import io
import tarfile

import httpx2
import pytest

from dockerengine import Endpoint, EngineApi
from seedwork.errors import Conflict, KnarrError, Misconfigured, NotFound, StorageFull, Unavailable

HERE = Endpoint(url="unix:///var/run/docker.sock", source="a test")


class Canned(httpx2.AsyncBaseTransport):
    """Answers in turn, and keeps what was asked."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.asked.append(request)
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (404, "No such container: x", NotFound),
        (409, "in use", Conflict),
        (500, "write /var/lib: no space left on device", StorageFull),
        (500, "dial unix: broken", Unavailable),
    ],
)
async def test_a_refusal_has_the_engines_reason(status: int, text: str, kind: type[KnarrError]) -> None:
    """By its status, or what it says."""
    async with EngineApi(HERE, transport=Canned(httpx2.Response(status, json={"message": text}))) as engine:
        with pytest.raises(kind) as refused:
            await engine.call("GET", "containers/x/json")
    assert refused.value.why == text


async def test_an_engine_that_is_away_is_named() -> None:
    """With its address and what to look at."""
    gone = Endpoint(url="unix:///no/such.sock", source="a test")
    async with EngineApi(gone) as engine:
        with pytest.raises(Unavailable, match=r"unix:///no/such\.sock does not answer.*docker info"):
            await engine.call("GET", "version")


async def test_a_pull_that_failed_is_an_error() -> None:
    """Its answer is 200, and a line of it has the fault."""
    lines = b'{"status":"Pulling"}\n{"error":"manifest unknown"}\n'
    transport = Canned(httpx2.Response(200, content=lines))
    async with EngineApi(HERE, transport=transport) as engine:
        with pytest.raises(NotFound, match=r"cannot pull localhost:5000/shop:1.*manifest unknown"):
            await engine.pull("localhost:5000/shop:1")
    assert dict(transport.asked[0].url.params) == {"fromImage": "localhost:5000/shop", "tag": "1"}


async def test_a_file_is_put_as_a_tar_at_the_root() -> None:
    """So its folder is made with it."""
    transport = Canned(httpx2.Response(200))
    async with EngineApi(HERE, transport=transport) as engine:
        await engine.put_file("box", "/knarr/secret", b"text", mode=0o600)
    with tarfile.open(fileobj=io.BytesIO(transport.asked[0].content)) as tar:
        (entry,) = tar.getmembers()
        assert (entry.name, entry.mode) == ("knarr/secret", 0o600)
        file = tar.extractfile(entry)
        assert file is not None
        assert file.read() == b"text"


def test_an_address_that_is_not_supported_is_refused() -> None:
    """`ssh://` needs a program that forwards it."""
    with pytest.raises(Misconfigured, match=r"ssh.*unix:///path"):
        EngineApi(Endpoint(url="ssh://me@box", source="DOCKER_HOST"))
