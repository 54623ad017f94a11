"""`knarr up` and `knarr db upgrade` on a used home that lost something: one error with every file, nothing anew."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from knarr.cli import app
from knarr.complete import refuse_incomplete
from knarr.databases import upgrade_all
from knarr.home import Home
from knarr.up import settings_class
from seedwork import used
from seedwork.chassis.settings import SERVICE_PORTS, ServiceSettings
from seedwork.errors import Misconfigured


def settings_of(home: Home) -> Mapping[str, ServiceSettings]:
    return {name: settings_class(name)(home=home.path) for name in SERVICE_PORTS}


@pytest.fixture
async def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """With every database and key, as after a first start; without records."""
    monkeypatch.chdir(tmp_path)
    found = Home(tmp_path / "home")
    await upgrade_all(found, SERVICE_PORTS)
    (found.path / "deployer" / "config.key").write_text("k")
    (found.path / "webhook" / "secret.key").write_text("k")
    return found


def database(home: Home, name: str) -> Path:
    return home.path / name / f"{name}.db"


def mark_all(home: Home) -> None:
    for name in SERVICE_PORTS:
        used.mark(home.path, name, database=database(home, name))


async def test_every_lost_file_is_named_at_once(home: Home) -> None:
    """The reader restores all of them in one go."""
    mark_all(home)
    refuse_incomplete(home, settings_of(home))
    database(home, "deployer").write_bytes(b"")
    database(home, "saga_coordinator").unlink()
    (home.path / "webhook" / "secret.key").unlink()
    with pytest.raises(Misconfigured, match="Restore them from the backup") as refused:
        refuse_incomplete(home, settings_of(home))
    for part in ("deployer.db is empty", "saga_coordinator.db is missing", "secret.key is missing"):
        assert part in refused.value.message


async def test_a_home_without_records_is_used_once_an_app_left_something(home: Home) -> None:
    """Before that an interrupted first start may lack a database, and goes on."""
    database(home, "builder").unlink()
    refuse_incomplete(home, settings_of(home))
    (home.path / "deployer" / "releases" / "r1").mkdir(parents=True)
    with pytest.raises(Misconfigured, match=r"builder\.db is missing"):
        refuse_incomplete(home, settings_of(home))


async def test_upgrading_makes_no_database_in_the_place_of_a_lost_one(home: Home) -> None:
    """An empty one would pass for the old one at the next start."""
    mark_all(home)
    database(home, "deployer").unlink()
    with pytest.raises(Misconfigured, match=r"deployer\.db is missing"):
        await upgrade_all(home, ["deployer"])
    assert not database(home, "deployer").exists()


def test_up_refuses_with_a_sentence_and_no_traceback(home: Home, ports: int) -> None:
    """The file, the reason and the backup."""
    mark_all(home)
    database(home, "deployer").write_bytes(b"")
    words = ["up", "--home", str(home.path), "--port-base", str(ports), "--runtime", "process"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 1
    assert "deployer.db is empty" in answer.stderr
    assert "docs/operate.md" in answer.stderr
    assert "Traceback" not in answer.output
    assert database(home, "deployer").read_bytes() == b""
