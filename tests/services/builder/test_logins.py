"""Which logins the docker configuration of a build holds."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from services.builder.adapters.buildx.logins import docker_config

HUB = "https://index.docker.io/v1/"


def config(folder: Path, theirs: dict[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    (folder / "config.json").write_bytes(orjson.dumps(theirs))
    return docker_config(
        folder, registry="images.example:5000/apps", user="knarr", password=SecretStr("secret"), only=only
    )


def test_knarrs_own_builds_have_all_logins(tmp_path: Path) -> None:
    """Those of the platform's user, and ours in place of a helper for our registry."""
    found = config(
        tmp_path, {"auths": {HUB: {"auth": "aHVi"}}, "credHelpers": {"images.example:5000": "x", "ghcr.io": "y"}}, None
    )
    assert set(found["auths"]) == {HUB, "images.example:5000"}
    assert found["credHelpers"] == {"ghcr.io": "y"}


@pytest.mark.parametrize("theirs", [{}, {"credsStore": "desktop"}, {"auths": {HUB: {"auth": "aHVi"}, "ghcr.io": {}}}])
def test_a_dockerfile_has_no_login_by_default(tmp_path: Path, theirs: dict[str, Any]) -> None:
    """Neither a password in the file nor a program that knows one, and not the one of our registry."""
    found = config(tmp_path, theirs, ())
    assert found["auths"] == {}
    assert found["credHelpers"] == {}
    assert "credsStore" not in found


@pytest.mark.parametrize("named", ["docker.io", "https://index.docker.io/v1/", "Docker.IO"])
def test_a_dockerfile_has_the_logins_that_the_setting_names(tmp_path: Path, named: str) -> None:
    """The hub has several names; a store of all passwords is asked for that host only."""
    kept = config(tmp_path, {"auths": {HUB: {"auth": "aHVi"}, "ghcr.io": {"auth": "Z2g="}}}, [named])
    assert set(kept["auths"]) == {HUB}
    stored = config(tmp_path, {"credsStore": "desktop"}, [named])
    assert stored["credHelpers"] == {HUB: "desktop"}


def test_a_file_that_is_no_configuration_is_none(tmp_path: Path) -> None:
    """The build goes on without logins of the user."""
    (tmp_path / "config.json").write_text("[1]")
    found = docker_config(tmp_path, registry="images.example", user=None, password=None)
    assert found == {"cliPluginsExtraDirs": [str(tmp_path / "cli-plugins")]}
