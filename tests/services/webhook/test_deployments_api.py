"""`POST /apps/{app}/deployments`: a commit, a ref's tip, or an uploaded archive."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest

from seedwork.errors import Unavailable
from tests.services.webhook.conftest import Knarr, running
from tests.services.webhook.github_payloads import COMMIT

URL = "https://github.com/acme/shop.git"
TIP = "1" * 40
TAGGED = "2" * 40
ARCHIVE = gzip.compress(b"a tar, for all that the intake knows")
DIGEST = f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}"
GZIP = {"Content-Type": "application/gzip"}


@pytest.fixture
async def shop(knarr: Knarr) -> Knarr:
    """An intake with one app, whose repository has a branch and a tag."""
    await knarr.make_app()
    knarr.refs.tips = {(URL, "refs/heads/main"): TIP, (URL, "refs/tags/v1"): TAGGED}
    return knarr


@pytest.mark.parametrize(
    ("wanted", "commit", "ref"),
    [
        ({"commit": COMMIT}, COMMIT, "refs/heads/main"),
        ({"commit": COMMIT.upper()}, COMMIT, "refs/heads/main"),
        ({"ref": "refs/tags/v1"}, TAGGED, "refs/tags/v1"),
        ({"ref": "refs/heads/main"}, TIP, "refs/heads/main"),
        ({"ref": "main"}, TIP, "refs/heads/main"),
        ({"ref": "v1"}, TAGGED, "refs/tags/v1"),
        ({}, TIP, "refs/heads/main"),
    ],
)
async def test_a_deployment_names_an_exact_commit(shop: Knarr, wanted: dict[str, Any], commit: str, ref: str) -> None:
    """A ref is resolved when it is asked for, so that a later push does not change what was meant."""
    response = await shop.client.post("/apps/shop/deployments", json=wanted)
    assert response.status_code == 202
    answer = response.json()
    assert answer["id"] == answer["saga_id"]
    assert response.headers["Location"].endswith(f"/sagas/{answer['id']}")
    (told,) = await shop.events("DeploymentRequested", 1)
    assert told.correlationid == answer["id"]
    expected = {"commit": commit, "ref": ref, "trigger": "api", "requested_by": "local", "force": False, "number": 1}
    assert expected.items() <= told.data.items()


async def test_an_empty_body_means_the_tip(shop: Knarr) -> None:
    """`curl -X POST` is enough; force is passed on."""
    assert (await shop.client.post("/apps/shop/deployments")).json()["commit"] == TIP
    await shop.client.post("/apps/shop/deployments", json={"commit": COMMIT, "force": True})
    assert [each.data["force"] for each in await shop.events("DeploymentRequested", 2)] == [False, True]


@pytest.mark.parametrize(
    ("wanted", "status", "says"),
    [
        ({"commit": "9c1d3a4"}, 400, "40 hex digits"),
        ({"commit": COMMIT, "ref": "refs/heads/main"}, 400, "both"),
        ({"ref": "nowhere"}, 404, "nowhere"),
        ({"ref": "a..b"}, 400, "'..'"),
        ({"ref": "--upload-pack=x"}, 400, "ref"),
        ({"ref": "refs/pull/1/head"}, 400, "refs/tags/"),
        ({"branch": "main"}, 400, "branch"),
        ([], 400, "body"),
        ({"ref": "refs/heads/nowhere"}, 404, "refs/heads/nowhere"),
    ],
    ids=str,
)
async def test_what_cannot_be_deployed_is_said(shop: Knarr, wanted: Any, status: int, says: str) -> None:
    """And nothing is started."""
    response = await shop.client.post("/apps/shop/deployments", json=wanted)
    assert (response.status_code, says in response.json()["detail"]) == (status, True), response.text
    assert [each for each in shop.told if each.type == "DeploymentRequested"] == []


async def test_a_repository_that_does_not_answer_is_a_passing_fault(shop: Knarr) -> None:
    """503, so that the caller tries again."""
    shop.refs.error = Unavailable("Asking did not work", why="the network is down")
    response = await shop.client.post("/apps/shop/deployments", json={})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


async def test_an_unknown_body_is_refused(shop: Knarr) -> None:
    """The text says what is taken."""
    response = await shop.client.post("/apps/shop/deployments", content=b"x", headers={"Content-Type": "text/plain"})
    assert (response.status_code, "application/gzip" in response.json()["detail"]) == (400, True)


async def test_an_app_without_a_repository_takes_uploads_only(knarr: Knarr) -> None:
    """409 with what to do."""
    await knarr.client.post("/apps", json={"name": "notes"})
    response = await knarr.client.post("/apps/notes/deployments", json={"commit": COMMIT})
    assert (response.status_code, "knarr deploy DIR" in response.json()["detail"]) == (409, True)
    assert (await knarr.client.post("/apps/notes/deployments", content=ARCHIVE, headers=GZIP)).status_code == 202


async def test_an_upload_is_stored_before_it_is_acknowledged(shop: Knarr, home: Path) -> None:
    """The archive lies in the source service under its digest; no draft stays here."""
    response = await shop.client.post("/apps/shop/deployments", content=ARCHIVE, headers=GZIP)
    assert response.status_code == 202
    assert shop.archives.kept == {DIGEST: ARCHIVE}
    (told,) = await shop.events("DeploymentRequested", 1)
    expected = {"commit": None, "source_digest": DIGEST, "trigger": "upload", "requested_by": "local"}
    assert expected.items() <= told.data.items()
    assert list((home / "webhook" / "uploads").iterdir()) == []


async def test_an_upload_that_cannot_be_stored_starts_nothing(shop: Knarr, home: Path) -> None:
    """503, no message, no draft."""
    shop.archives.error = Unavailable("The source service did not answer")
    response = await shop.client.post("/apps/shop/deployments", content=ARCHIVE, headers=GZIP)
    assert response.status_code == 503
    assert [each for each in shop.told if each.type == "DeploymentRequested"] == []
    assert list((home / "webhook" / "uploads").iterdir()) == []


async def test_what_is_no_gzip_file_is_refused(shop: Knarr) -> None:
    """By its first bytes; an empty body too."""
    for body in (b"PK\x03\x04 a zip", b""):
        response = await shop.client.post("/apps/shop/deployments", content=body, headers=GZIP)
        assert (response.status_code, "gzip" in response.json()["detail"]) == (400, True)
    assert shop.archives.kept == {}


async def test_an_upload_over_the_limit_is_refused(home: Path) -> None:
    """413, and no draft stays."""
    async with running(home, upload_max_bytes=20) as knarr:
        await knarr.make_app()
        response = await knarr.client.post("/apps/shop/deployments", content=ARCHIVE, headers=GZIP)
        assert response.status_code == 413
        assert knarr.archives.kept == {}
        assert list((home / "webhook" / "uploads").glob("*")) == []


async def test_drafts_of_a_killed_process_are_removed_at_the_start(home: Path) -> None:
    """They belong to nobody."""
    uploads = home / "webhook" / "uploads"
    uploads.mkdir()
    (uploads / "draft").write_bytes(b"half")
    async with running(home):
        assert list(uploads.iterdir()) == []


@pytest.mark.parametrize("upload", [False, True])
async def test_a_repeat_with_the_same_key_is_answered_with_the_first_deployment(shop: Knarr, upload: bool) -> None:
    """A client that did not hear the answer asks again; another key is another deployment."""
    first, second, third = [
        (
            await shop.client.post(
                "/apps/shop/deployments",
                headers={"Idempotency-Key": key, **(GZIP if upload else {})},
                content=ARCHIVE if upload else b"",
            )
        ).json()
        for key in ("one", "one", "two")
    ]
    assert first == second
    assert third["id"] != first["id"]
    await shop.events("DeploymentRequested", 2)
