"""The secrets of an installation: made once, each reader gets its own, nobody else can read them."""

import os
import stat
from pathlib import Path

import bcrypt
import pytest

from knarr import first_secrets
from seedwork.chassis.settings import SERVICE_PORTS
from services.deployer.settings import DeployerSettings
from services.webhook.settings import WebhookSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Where bundles are kept, and the homes."""
    folder, homes = tmp_path / "secrets", tmp_path / "homes"
    folder.mkdir()
    for name in ("mysql", "images", *SERVICE_PORTS):
        (homes / name).mkdir(parents=True)
    return folder, homes


def read(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_a_second_run_changes_nothing(places: tuple[Path, Path]) -> None:
    """It runs before every start of compose."""
    folder, homes = places
    assert first_secrets.to_files(folder, homes, "mysql:3306", {}) == [*first_secrets.BUNDLES, "images"]
    before = {service: (homes / service / ".env").read_text() for service in SERVICE_PORTS}
    assert first_secrets.to_files(folder, homes, "mysql:3306", {}) == []
    assert {service: (homes / service / ".env").read_text() for service in SERVICE_PORTS} == before


def test_a_bundle_that_was_deleted_is_made_anew(places: tuple[Path, Path]) -> None:
    """So a password is changed; the tokens and the key of what is encrypted stay."""
    folder, homes = places
    first_secrets.to_files(folder, homes, "mysql:3306", {})
    before = read(homes / "deployer" / ".env")
    (folder / "deployer.env").unlink()
    assert first_secrets.to_files(folder, homes, "mysql:3306", {}) == ["deployer"]
    after = read(homes / "deployer" / ".env")
    assert {name for name in after if after[name] != before[name]} == {"KNARR_DATABASE_URL"}


def test_services_share_tokens_and_no_database_password(places: tuple[Path, Path]) -> None:
    """Whoever breaks into one service cannot read another one's database."""
    folder, homes = places
    first_secrets.to_files(folder, homes, "db.example:3306", {})
    found = [read(homes / service / ".env") for service in SERVICE_PORTS]
    assert len({each["KNARR_SERVICE_TOKEN"] for each in found}) == 1
    urls = [each["KNARR_DATABASE_URL"] for each in found]
    assert len({url.split("@")[0].split(":")[-1] for url in urls}) == len(SERVICE_PORTS)
    for service, url in zip(SERVICE_PORTS, urls, strict=True):
        assert url.startswith(f"mysql+asyncmy://knarr_{service}:")
        assert url.endswith(f"@db.example:3306/knarr_{service}")
    assert not any("ADMIN" in name or "ROOT" in name for each in found for name in each)


def test_the_registry_has_a_password_that_only_its_users_know(places: tuple[Path, Path]) -> None:
    """Any Dockerfile could otherwise take the image of another app as its base."""
    folder, homes = places
    first_secrets.to_files(folder, homes, "mysql:3306", {})
    passwords = {service: read(homes / service / ".env").get("KNARR_REGISTRY_PASSWORD") for service in SERVICE_PORTS}
    assert {service for service, password in passwords.items() if password} == {"builder", "registry", "deployer"}
    user, _, hashed = (homes / "images" / "htpasswd").read_text().strip().partition(":")
    password = passwords["builder"]
    assert password is not None
    assert user == read(homes / "builder" / ".env")["KNARR_REGISTRY_USER"]
    assert bcrypt.checkpw(password.encode(), hashed.encode())


def test_each_file_is_its_readers_alone(places: tuple[Path, Path]) -> None:
    """Mode 0400, and the user who runs that service."""
    folder, homes = places
    first_secrets.to_files(folder, homes, "mysql:3306", {"builder": 0})
    for service in SERVICE_PORTS:
        owner = 0 if service == "builder" else first_secrets.USER_ID
        for path in (homes / service, homes / service / ".env"):
            assert path.stat().st_uid == owner
        assert stat.S_IMODE((homes / service / ".env").stat().st_mode) == 0o400
    for kept in folder.iterdir():
        assert stat.S_IMODE(kept.stat().st_mode) == 0o400


def test_the_services_take_their_keys_from_it(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stands in the home of the container, where settings are read."""
    folder, homes = places
    first_secrets.to_files(folder, homes, "mysql:3306", {})
    monkeypatch.setenv("KNARR_HOME", str(homes / "webhook"))
    webhook = WebhookSettings()
    monkeypatch.setenv("KNARR_HOME", str(homes / "deployer"))
    deployer = DeployerSettings()
    assert webhook.secret_key is not None
    assert deployer.config_key is not None
    assert webhook.token == deployer.token
    assert webhook.secret_key.get_secret_value() != deployer.config_key.get_secret_value()


def test_a_value_needs_no_quotes_anywhere() -> None:
    """The same text in a `.env` file, in a shell and in a URL."""
    for bundle in (*first_secrets.BUNDLES, first_secrets.REGISTRY_BUNDLE):
        for value in first_secrets.make(bundle, "mysql:3306").values():
            assert not set(value) & set(" '\"\\$`#\n")
