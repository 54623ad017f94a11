"""`HttpSourceArchive`: an archive goes to the source service in one streamed PUT."""

import gzip
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from seedwork.chassis.http import HttpClients
from seedwork.errors import InvalidInput, TooLarge, Unavailable
from services.webhook.adapters.source_http import HttpSourceArchive

URL = "http://127.0.0.1:8702"
ARCHIVE = gzip.compress(bytes(range(256)) * 10_000)
DIGEST = f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}"


class Source(httpx2.AsyncBaseTransport):
    """The other side: keeps what it is sent, answers what it is told."""

    def __init__(self) -> None:
        self.status = 201
        self.requests: list[httpx2.Request] = []
        self.body = b""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Read it whole."""
        self.requests.append(request)
        stream = request.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        self.body = b"".join([chunk async for chunk in stream])
        if self.status == 0:
            raise httpx2.ConnectError("connection refused")
        return httpx2.Response(self.status, json={"detail": "what the source service says"})


@pytest.fixture
async def source() -> AsyncIterator[tuple[Source, HttpSourceArchive]]:
    """Both sides."""
    there = Source()
    clients = HttpClients(service_token=SecretStr("between-services"), trusted=(URL,), transport=there)
    yield there, HttpSourceArchive(clients.client, URL)
    await clients.close()


async def test_the_archive_arrives_whole_under_its_digest(
    tmp_path: Path, source: tuple[Source, HttpSourceArchive]
) -> None:
    """With its length, as a service, in chunks from the disk."""
    there, archives = source
    (tmp_path / "archive").write_bytes(ARCHIVE)
    await archives.put(DIGEST, tmp_path / "archive")
    (request,) = there.requests
    assert (request.method, str(request.url)) == ("PUT", f"{URL}/sources/{DIGEST}")
    assert request.headers["Content-Type"] == "application/gzip"
    assert request.headers["Content-Length"] == str(len(ARCHIVE))
    assert "Transfer-Encoding" not in request.headers
    assert request.headers["Authorization"] == "Bearer between-services"
    assert there.body == ARCHIVE


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidInput), (413, TooLarge), (500, Unavailable), (503, Unavailable), (0, Unavailable)],
)
async def test_a_refusal_is_our_error_with_its_words(
    tmp_path: Path, source: tuple[Source, HttpSourceArchive], status: int, error: type[Exception]
) -> None:
    """Final or passing, as the other side says."""
    there, archives = source
    there.status = status
    (tmp_path / "archive").write_bytes(ARCHIVE)
    with pytest.raises(error, match="what the source service says" if status else "cannot be reached"):
        await archives.put(DIGEST, tmp_path / "archive")
