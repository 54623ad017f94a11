"""What an image says of itself, and how config vars are kept."""

import stat
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr

from ocistore.store import LABEL_FORMATION, LABEL_HEALTH_PATH, LABEL_PROCESSES, Image
from seedwork.errors import Misconfigured
from services.deployer.adapters.process.folders import placed
from services.deployer.errors import CannotRun
from services.deployer.image import facts_of, manifest_hash
from services.deployer.vault import Vault

WEB = {LABEL_PROCESSES: '{"web": ["python", "app.py"]}'}


def image(labels: Mapping[str, str]) -> Image:
    return Image(
        repository="shop",
        digest="sha256:" + "ab" * 32,
        manifest={},
        config={"config": {"Labels": dict(labels)}},
        layers=(),
        tags=(),
        size_bytes=1,
    )


def test_without_a_formation_one_web_runs_and_nothing_else() -> None:
    """The release command is no process."""
    processes = {"web": ["a"], "worker": ["b"], "release": ["c"]}
    facts = facts_of(image({LABEL_PROCESSES: orjson.dumps(processes).decode()}))
    assert facts.formation == {"web": 1, "worker": 0}
    assert set(facts.processes) == {"web", "worker"}


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({}, LABEL_PROCESSES),
        ({LABEL_PROCESSES: '{"web": []}'}, LABEL_PROCESSES),
        ({LABEL_PROCESSES: "web: python"}, LABEL_PROCESSES),
        ({**WEB, LABEL_FORMATION: '{"web": "many"}'}, LABEL_FORMATION),
        ({**WEB, LABEL_HEALTH_PATH: "/x HTTP/1.1\r\nHost: evil"}, "health path"),
    ],
)
def test_labels_that_make_no_sense_are_named(labels: Mapping[str, str], named: str) -> None:
    """Anybody may have put the image into the store."""
    with pytest.raises(CannotRun, match=named):
        facts_of(image(labels))


def test_the_manifest_hash_does_not_depend_on_the_order_of_things() -> None:
    """Canonical JSON of what runs."""

    def hashed(formation: Mapping[str, int]) -> str:
        return manifest_hash(digest="sha256:x", config_version=1, formation=formation, processes={"web": ("a",)})

    assert hashed({"web": 1, "worker": 2}) == hashed({"worker": 2, "web": 1})
    assert hashed({"web": 1}) != hashed({"web": 2})


def test_paths_of_the_image_become_paths_of_this_machine() -> None:
    """Each part of a value that begins with /app or /layers, and nothing that only looks like it."""
    root = Path("/home/x/releases/1")
    assert placed("/layers/python/bin:/usr/bin:/app", root) == f"{root}/layers/python/bin:/usr/bin:{root}/app"
    assert placed("/application:http://x/app", root) == "/application:http://x/app"


def test_the_config_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    """A second start reads what the first one sealed; another key does not, and the error says which key."""
    file = tmp_path / "config.key"
    sealed = Vault.open(None, file).seal({"PASSWORD": "hunter2"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Vault.open(None, file).unseal(sealed) == {"PASSWORD": "hunter2"}
    other = Vault.open(SecretStr("y" * 43 + "="), file)
    with pytest.raises(Misconfigured, match="KNARR_CONFIG_KEY"):
        other.unseal(sealed)
    with pytest.raises(Misconfigured, match="holds no key"):
        Vault.open(SecretStr("short"), file)
