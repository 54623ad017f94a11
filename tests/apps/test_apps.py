"""Small apps of many frameworks: each is deployed from its folder as a user would do it, and asked for its page.

`catalog/NAME/` holds the app as a repository has it, and `expect.toml`: what must become of it.

    path      what is asked for (default "/")
    body      text that the answer must contain
    verdict   live (default), no web, refused or undone
    reason    text that the reason must contain
    framework what must be detected, as `knarr plan` names it
    prepare   commands that run in a copy of the folder first: lock files are made, not kept
    then      files that are written after that
    config    config vars that are set before the deployment
    only      the runtime on which it runs: process or docker (default: both)
    docker    a table of keys that are others when the app runs as a container

`make test-apps` runs them on the laptop, `make test-apps RUNTIME=docker` as containers.
"""

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uv

from tests.apps.trying import Source, cli, platform, try_source
from tests.e2e.harness import Laptop

CATALOG = Path(__file__).parent / "catalog"
RUNTIME = os.environ.get("KNARR_TEST_RUNTIME", "process")

pytestmark = pytest.mark.apps


@pytest.fixture(scope="module")
def knarr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """One platform for all apps of a worker; the window of `observe` is short, since it has tests of its own."""
    up = ["--runtime", RUNTIME] if RUNTIME != "process" else []
    with platform(tmp_path_factory.mktemp("apps"), up=up, KNARR_OBSERVE_S="0") as running:
        yield running


def _names() -> list[str]:
    return sorted(path.parent.name for path in CATALOG.glob("*/expect.toml"))


@pytest.mark.parametrize("name", _names())
def test_an_app_becomes_what_its_repository_says(name: str, knarr: Laptop, tmp_path: Path) -> None:
    """The app is live and answers with its own words, or it is refused for the reason that is true."""
    expected = tomllib.loads((CATALOG / name / "expect.toml").read_text())
    expected |= expected.pop("docker", {}) if RUNTIME == "docker" else {}
    if expected.get("only", RUNTIME) != RUNTIME:
        pytest.skip(f"it runs with the runtime {expected['only']}")
    folder = _prepared(name, expected, tmp_path)
    if framework := expected.get("framework"):
        planned = json.loads(cli(knarr, "plan", str(folder), "--json").stdout)
        assert planned["framework"] == framework
    if config := expected.get("config"):
        assert cli(knarr, "apps", "create", name).returncode == 0
        assert cli(knarr, "config", "set", name, *(f"{key}={value}" for key, value in config.items())).returncode == 0

    outcome = try_source(knarr, Source(name=name, place=str(folder)), path=expected.get("path", "/"), warm=False)

    assert outcome.verdict == expected.get("verdict", "live"), outcome.reason
    assert expected.get("reason", "") in outcome.reason
    assert expected.get("body", "") in outcome.body


def _prepared(name: str, expected: Mapping[str, Any], tmp_path: Path) -> Path:
    """Copy the app, and make its lock files with the tool that owns them."""
    folder = tmp_path / name
    shutil.copytree(CATALOG / name, folder, ignore=shutil.ignore_patterns("expect.toml"))
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    for command in expected.get("prepare", ()):
        argv = [uv.find_uv_bin(), *command[1:]] if command[0] == "uv" else command
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    for file, text in expected.get("then", {}).items():
        (folder / file).write_text(text)
    return folder
