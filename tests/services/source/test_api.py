"""`/sources/{digest}` as other services see it, through the whole app."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from seedwork.testing.http import running
from services.source.app import create_app
from services.source.settings import SourceSettings
from tests.services.source.conftest import drafts

TOKEN = "what-services-share"


def upload_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def app_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceSettings:
    monkeypatch.chdir(tmp_path)
    return SourceSettings(
        home=tmp_path,
        service_token=SecretStr(TOKEN),
        token=SecretStr("the-operator-s"),
        upload_max_bytes=100_000,
        source_allow=(f"file://{tmp_path}/",),
        stop_grace_s=5,
    )


@pytest.fixture
def app(app_settings: SourceSettings) -> FastAPI:
    return create_app(app_settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(app, token=TOKEN) as client:
        yield client


async def test_an_upload_is_stored_and_given_back(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    """With the 201 it is on disk; the same bytes again are no change."""
    data = upload_of(Procfile=b"web: run")
    digest = digest_of(data)
    for _ in range(2):
        answer = await client.put(f"/sources/{digest}", content=data)
        assert (answer.status_code, answer.json()) == (201, {"digest": digest, "size_bytes": len(data)})
        assert (tmp_path / "source/uploads/sha256" / digest.removeprefix("sha256:")).read_bytes() == data
    answer = await client.get(f"/sources/{digest}")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["content-length"] == str(len(data))
    assert drafts(tmp_path / "source") == []


async def test_an_upload_with_another_digest_is_refused(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    """Nothing of it stays."""
    answer = await client.put(f"/sources/sha256:{'a' * 64}", content=b"something else")
    assert answer.status_code == 400
    assert "Send it again" in answer.json()["detail"]
    assert drafts(tmp_path / "source") == []
    assert (await client.get(f"/sources/sha256:{'a' * 64}")).status_code == 404


async def test_an_upload_over_the_limit_is_not_read_to_its_end(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    """Announced or not."""
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 50_000
            yield b"x" * 50_000

    answer = await client.put(f"/sources/sha256:{'a' * 64}", content=b"x" * 100_001)
    assert answer.status_code == 413
    answer = await client.put(f"/sources/sha256:{'a' * 64}", content=endless())
    assert answer.status_code == 413
    assert given < 1_000_000
    assert drafts(tmp_path / "source") == []


@pytest.mark.parametrize("digest", ["sha256:abc", "nothing", f"sha256:{'A' * 64}", "..%2F..%2Fsource.db"])
async def test_a_path_that_is_no_digest_is_refused(client: httpx2.AsyncClient, digest: str) -> None:
    """A 400 says what a digest looks like; a slash makes it another path, which is not there."""
    for answer in (await client.get(f"/sources/{digest}"), await client.put(f"/sources/{digest}", content=b"x")):
        assert answer.status_code in {400, 404}
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 401), ("the-operator-s", 200)])
async def test_sources_are_for_services_only(app: FastAPI, token: str, status: int) -> None:
    """The operator may do what services may; without a token a stranger does not learn whether a digest is there."""
    data = upload_of(f=b"x")
    async with running(app, token=TOKEN) as client:
        await client.put(f"/sources/{digest_of(data)}", content=data)
        client.headers["Authorization"] = f"Bearer {token}"
        assert (await client.get(f"/sources/{digest_of(data)}")).status_code == status
        assert (await client.put(f"/sources/{digest_of(data)}", content=data)).status_code in {status, 201}
