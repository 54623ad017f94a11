"""A used home that lost a database or a key is refused by the file's name, and nothing is made in its place."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from seedwork.errors import Misconfigured
from seedwork.secret_box import SecretBox
from seedwork.used import fault_of, lost, mark, record_of, refuse_lost


class Box(SecretBox):
    """Says nothing of its own."""

    setting = "KEY"
    unreadable = lost = exchanged = "-"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    with sqlite3.connect(tmp_path / "shop" / "shop.db") as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript("CREATE TABLE t (x); INSERT INTO t SELECT zeroblob(9000);")
    db.close()
    (tmp_path / "shop" / "config.key").write_bytes(b"k")
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "is missing"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_bytes(b"x" * 5000), "is not a SQLite database"),
        (lambda file: file.write_bytes(file.read_bytes()[:5000]), "is cut off: it has 5000 of"),
        (lambda file: file.write_bytes(file.read_bytes()[:50]), "is not a SQLite database"),
    ],
)
def test_a_lost_database_is_named_with_what_is_wrong(home: Path, damage: Callable[[Path], object], fault: str) -> None:
    """Only once the service was started: before, an empty home is a new one."""
    file = home / "shop" / "shop.db"
    damage(file)
    refuse_lost(home, "shop", database=file)
    mark(home, "shop", database=file)
    with pytest.raises(Misconfigured, match=f"shop.db {fault}.*docs/operate.md") as refused:
        refuse_lost(home, "shop", database=file)
    assert refused.value.reason_code == "home_incomplete"


def test_a_whole_database_is_taken_also_one_that_is_behind_its_log(home: Path) -> None:
    """A kill during a checkpoint leaves a first page that is ahead of the file."""
    file = home / "shop" / "shop.db"
    mark(home, "shop", database=file)
    refuse_lost(home, "shop", database=file)
    file.write_bytes(file.read_bytes()[:5000])
    file.with_name("shop.db-wal").write_bytes(b"the rest")
    assert fault_of(file) == ""


def test_a_missing_key_is_not_made_anew_in_a_used_home(home: Path) -> None:
    """Another key would open nothing of what the first one has sealed."""
    key = home / "shop" / "config.key"
    key.unlink()
    Box.open(None, key)
    mark(home, "shop", database=None)
    key.unlink()
    with pytest.raises(Misconfigured, match=r"config\.key is missing"):
        Box.open(None, key)
    assert not key.exists()
    Box.open(SecretStr("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="), key)


def test_a_folder_that_is_gone_is_noticed(home: Path) -> None:
    """The record is beside the folders."""
    mark(home, "shop", database=home / "shop" / "shop.db")
    for each in (home / "shop").iterdir():
        each.unlink()
    (home / "shop").rmdir()
    assert len(lost(home, "shop", database=home / "shop" / "shop.db")) == 2


def test_a_database_on_a_server_and_another_file_are_no_loss(home: Path, tmp_path: Path) -> None:
    """The settings have moved it; the old file may go."""
    mark(home, "shop", database=home / "shop" / "shop.db")
    (home / "shop" / "shop.db").unlink()
    assert lost(home, "shop", database=None) == []
    assert lost(home, "shop", database=tmp_path / "elsewhere.db") == []


def test_a_service_without_files_leaves_no_record(tmp_path: Path) -> None:
    """Its folder may be read-only."""
    mark(tmp_path, "shop", database=None)
    assert record_of(tmp_path, "shop") is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_refused(home: Path) -> None:
    """It would let an empty home start."""
    mark(home, "shop", database=home / "shop" / "shop.db")
    (home / "started" / "shop.json").write_text("{")
    with pytest.raises(Misconfigured, match=r"shop\.json"):
        refuse_lost(home, "shop", database=home / "shop" / "shop.db")
