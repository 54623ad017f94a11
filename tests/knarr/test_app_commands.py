"""`knarr apps …` and `knarr deploy --ref`: what is asked of the platform, and what is read of its answers."""

from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from typer.testing import CliRunner

from knarr.cli import app
from knarr.client import Platform

HELD = {"on": False, "since": "2026-12-01T04:00:00.000Z", "by": "ada", "why": "rollback to release 3"}
SHOP: dict[str, Any] = {
    "id": "0192f0c1-2345-7abc-8def-0123456789ab",
    "name": "shop",
    "repository": "acme/shop",
    "clone_url": "https://github.com/acme/shop.git",
    "ref": "refs/heads/master",
    "root": ".",
    "auto_deploy": {"on": True, "waiting_commit": None},
}


def _body(request: httpx2.Request) -> Any:
    content = request.read()
    return orjson.loads(content) if content.startswith(b"{") else content or None


class Fake:
    """A platform whose answers are written down by method and path; it keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = _body(request)
        self.asked.append((request.method, request.url.path, body))
        if (request.method, request.url.path) not in self.answers:
            return httpx2.Response(404, json={"detail": "not here"})
        return httpx2.Response(200, json=self.answers[request.method, request.url.path])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    made = Platform.__init__

    def init(self: Platform, address: Any, token: Any, **_: Any) -> None:
        made(self, address, token, transport=httpx2.MockTransport(found))

    monkeypatch.setattr(Platform, "__init__", init)
    monkeypatch.setenv("KNARR_TOKEN", "a-token")
    return found


def said(*words: str) -> str:
    answer = CliRunner().invoke(app, list(words))
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_a_new_app_leaves_its_branch_to_the_platform(fake: Fake) -> None:
    """No ref is sent; the one that counts is shown, and why, where it could not be asked for."""
    fake.answers["POST", "/apps"] = {**SHOP, "webhook_secret": "s", "note": "The host is away"}
    shown = said("apps", "create", "shop", "--repository", "acme/shop")
    assert "ref" not in fake.asked[0][2]
    assert "refs/heads/master" in shown
    assert "The host is away" in shown
    assert "knarr apps update shop --ref BRANCH" in shown


def test_settings_are_sent_and_an_empty_one_is_cleared(fake: Fake) -> None:
    """What is not named stays as it is."""
    fake.answers["PATCH", "/apps/shop"] = {**SHOP, "builder": "buildx", "watch": ["libs/**", "go.mod"]}
    options = ["--builder", "buildx", "--dockerfile", "", "--watch", "libs/**", "--watch", "go.mod", "--docker-arg", ""]
    shown = said("apps", "update", "shop", *options, "--observe-s", "0")
    assert fake.asked[0][2] == {
        "builder": "buildx",
        "dockerfile": None,
        "watch": ["libs/**", "go.mod"],
        "docker_args": None,
        "observe_s": 0.0,
    }
    assert "libs/** go.mod" in shown


def test_a_held_app_says_so_wherever_it_is_shown(fake: Fake) -> None:
    """With the reason, the commit that waits, and the command."""
    held = {**SHOP, "auto_deploy": {**HELD, "waiting_commit": "9c1d3a4b" * 5}}
    fake.answers["GET", "/apps/shop"] = held
    fake.answers["GET", "/apps"] = {"items": [held], "next_cursor": None}
    shown = said("apps", "show", "shop")
    assert "held since 2026-12-01T04:00:00.000Z by ada (rollback to release 3); 9c1d3a4" in shown
    assert "knarr apps release shop" in shown
    assert "pushes are held" in said("apps", "list")


def test_a_release_names_what_waits_and_the_command(fake: Fake) -> None:
    """A poll deploys it; nobody has to wait for that."""
    fake.answers["POST", "/apps/shop/release"] = {**SHOP, "waiting_commit": "9c1d3a4b" * 5}
    shown = said("apps", "release", "shop")
    assert "knarr deploy --app shop --ref master" in shown
    fake.answers["POST", "/apps/shop/hold"] = SHOP
    assert "knarr apps release shop" in said("apps", "hold", "shop", "--why", "freeze")
    assert fake.asked[-1] == ("POST", "/apps/shop/hold", {"why": "freeze"})


def test_a_tag_is_deployed_by_its_name(fake: Fake) -> None:
    """The platform knows whether it is a branch or a tag."""
    fake.answers["POST", "/apps/shop/deployments"] = {"id": "1", "saga_id": None}
    said("deploy", "--app", "shop", "--ref", "v1.2")
    assert fake.asked[0][2] == {"ref": "v1.2", "force": False}


@pytest.mark.parametrize(("what", "code"), [("missing", 3), ("empty", 1), ("large", 1)])
def test_a_folder_that_cannot_be_deployed_makes_no_app(fake: Fake, tmp_path: Path, what: str, code: int) -> None:
    """Nothing is sent before it is packed."""
    folder = tmp_path / what
    fake.answers["GET", "/limits"] = {"upload_max_bytes": 10, "source_max_bytes": 10, "source_max_entries": 10}
    if what != "missing":
        folder.mkdir()
    if what == "large":
        (folder / "app.py").write_bytes(b"x" * 20)
    answer = CliRunner().invoke(app, ["deploy", str(folder)])
    assert answer.exit_code == code, answer.output
    assert [asked for asked in fake.asked if asked[0] != "GET"] == []
    assert ("KNARR_SOURCE_MAX_BYTES" in answer.output) is (what == "large")


def test_what_a_folder_leaves_out_is_shown(fake: Fake, tmp_path: Path) -> None:
    """One line each."""
    (tmp_path / "app.py").write_text("")
    (tmp_path / ".env").write_text("")
    fake.answers["POST", "/apps"] = SHOP
    fake.answers["POST", "/apps/shop/deployments"] = {"id": "1", "saga_id": None}
    assert "left out: never deployed: .env" in said("deploy", str(tmp_path), "--app", "shop")


# ── rebases and bills of materials ───────────────────────────────────────────────────────────────────────────────────


def test_a_rebase_is_refused_in_the_words_of_the_platform(played_refusal: Fake) -> None:
    """And nothing is watched."""
    answer = CliRunner().invoke(app, ["apps", "rebase", "shop"])
    assert answer.exit_code == 1
    assert "was not built by buildpacks" in answer.stderr
    assert [path for _, path, _ in played_refusal.asked] == ["/apps/shop/rebase"]


def test_all_apps_are_rebased_but_those_that_buildpacks_did_not_build(played_refusal: Fake) -> None:
    """One line an app; an app without a deployment is passed over as well."""
    played_refusal.answers["GET", "/apps"] = {
        "items": [{"name": "shop"}, {"name": "new"}, {"name": "packed"}],
        "next": None,
    }
    played_refusal.answers["POST", "/apps/packed/rebase"] = {"id": "s1", "saga_id": "s1", "config_version": 1}
    answer = CliRunner().invoke(app, ["apps", "rebase", "--all", "--no-wait", "--json"])
    assert answer.exit_code == 0, answer.output
    assert orjson.loads(answer.stdout) == [{"app": "packed", "result": "started", "saga_id": "s1"}]


@pytest.mark.parametrize("words", [["apps", "rebase"], ["apps", "rebase", "shop", "--all"]])
def test_a_rebase_needs_an_app_or_all_of_them(fake: Fake, words: list[str]) -> None:
    """Not both, and not by default."""
    assert CliRunner().invoke(app, words).exit_code == 2
    assert fake.asked == []


@pytest.fixture
def played_refusal(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The app `shop` was not built by buildpacks."""
    refusal = {
        "what": "Release 1 of shop cannot be rebased",
        "why": "its image was not built by buildpacks",
        "todo": "Deploy it again",
        "code": "not_buildpacks",
    }
    answer = Fake.__call__

    def refused(self: Fake, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/apps/shop/rebase":
            self.asked.append(("POST", request.url.path, None))
            return httpx2.Response(409, json=refusal)
        return answer(self, request)

    monkeypatch.setattr(Fake, "__call__", refused)
    return fake


def test_releases_are_listed_with_and_without_the_word(fake: Fake) -> None:
    """`knarr releases shop` is what people know."""
    release = {"number": 2, "kind": "rebase", "state": "live", "digest": "sha256:" + "ab" * 32}
    fake.answers["GET", "/apps/shop/releases"] = {"items": [release], "next": None}
    assert said("releases", "shop", "--json") == said("releases", "list", "shop", "--json")
    assert "rebase" in said("releases", "--limit", "3", "shop")


def test_a_bill_of_materials_is_listed_or_written_as_it_is(fake: Fake) -> None:
    """Of the current release, or of one by its number."""
    fake.answers["GET", "/apps/shop"] = {"release": 7}
    document = {"name": "heroku_python", "format": "cyclonedx", "size_bytes": 12}
    fake.answers["GET", "/apps/shop/releases/7/sbom"] = {"items": [document], "next": None}
    fake.answers["GET", "/apps/shop/releases/3/sbom/cyclonedx"] = {"bomFormat": "CycloneDX"}
    assert "heroku_python" in said("releases", "sbom", "shop")
    assert orjson.loads(said("releases", "sbom", "shop", "3", "--format", "cyclonedx")) == {"bomFormat": "CycloneDX"}
    assert CliRunner().invoke(app, ["releases", "sbom", "shop", "--format", "pdf"]).exit_code == 2
