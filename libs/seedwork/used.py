"""Refuses a used home that lost a database or a key, so that nothing empty is made in its place.

After its first complete start a service lists its SQLite file and its key files in `<home>/started/<service>.json`.
From then on each of them must be there, and a database must be whole as far as its first page says. The record is no
part of the service's folder: a folder that is gone is noticed too. An interrupted first start leaves no record.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedwork.errors import Misconfigured

_MAGIC = b"SQLite format 3\0"
"""First bytes of a database file: https://sqlite.org/fileformat2.html#the_database_header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a service had when it was started for the first time, relative to the home."""

    database: str | None
    """Its SQLite file; null: its database is on a server."""
    keys: Sequence[str] = ()


def record_of(home: Path, service: str) -> Record | None:
    """The record of a service, or None before its first complete start.

    Raises:
        Misconfigured: It cannot be read.
    """
    path = _path(home, service)
    try:
        found = json.loads(path.read_bytes())
        return Record(database=found["database"], keys=tuple(found["keys"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(
            f"The record {path} cannot be read", why=str(error), todo="Restore it from the backup of the home"
        ) from error


def mark(home: Path, service: str, *, database: Path | None) -> None:
    """Keep the record after a complete start. Where there is neither a file nor a key, there is none.

    Raises:
        Misconfigured: It cannot be written.
    """
    folder = home / service
    keys = sorted(str(each.relative_to(home)) for each in folder.glob("*.key"))
    inside = database is not None and database.is_relative_to(home)
    record = {"database": str(database.relative_to(home)) if database and inside else None, "keys": keys}
    if not inside and not keys:
        return
    path = _path(home, service)
    text = json.dumps(record) + "\n"
    try:
        if path.is_file() and path.read_text() == text:
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = path.with_suffix(".draft")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise Misconfigured(f"The record {path} cannot be written", why=str(error.strerror)) from error


def lost(home: Path, service: str, *, database: Path | None, keys: bool = True) -> list[str]:
    """What a used home lost of a service, one phrase for each file; empty: nothing.

    Args:
        home: Of the platform.
        service: Whose files are looked at.
        database: The SQLite file that the settings name now; null: they name a server.
        keys: Whether key files are needed; False: the key is a setting.
    """
    record = record_of(home, service)
    if record is None:
        return []
    found = []
    if database is not None and record.database is not None and home / record.database == database:
        found += [f"its database {database} {fault}"] if (fault := fault_of(database)) else []
    if keys:
        found += [f"its key {home / each} is missing" for each in record.keys if not (home / each).is_file()]
    return found


def refuse_lost(home: Path, service: str, *, database: Path | None) -> None:
    """Refuse the start of a service whose database is lost.

    Raises:
        Misconfigured: The text names the file and what to do.
    """
    if found := lost(home, service, database=database, keys=False):
        raise refusal(home, found)


def refuse_lost_key(file: Path) -> None:
    """Refuse to make a key anew in a folder `<home>/<service>` that had one.

    Raises:
        Misconfigured: The text names the file and what to do.
    """
    home, service = file.parent.parent, file.parent.name
    record = record_of(home, service)
    if record is not None and str(file.relative_to(home)) in record.keys:
        raise refusal(home, [f"its key {file} is missing"])


def refusal(home: Path, found: Sequence[str]) -> Misconfigured:
    """The error for a home that lost these files."""
    return Misconfigured(
        f"The home {home} is used, but {'; '.join(found)}",
        why="a new one would forget the apps, their releases or their secrets, so nothing was made in its place",
        todo=f"Restore {'it' if len(found) == 1 else 'them'} from the backup of the home (docs/operate.md, Back up), "
        "or begin anew with another home",
        code="home_incomplete",
    )


def fault_of(database: Path) -> str:
    """What is wrong with a SQLite file as far as its size and first page show; empty: nothing."""
    try:
        size = database.stat().st_size
        with database.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not size:
        return "is empty"
    if len(header) < 100 or not header.startswith(_MAGIC):
        return "is not a SQLite database"
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big")
    counted = header[24:28] == header[92:96]  # else a program before SQLite 3.7 wrote it, and the number says nothing
    # A kill during a checkpoint leaves a first page that is ahead of the file: the write-ahead log has the rest.
    if counted and size < pages * page_bytes and not _has_bytes(database.with_name(f"{database.name}-wal")):
        return f"is cut off: it has {size} of {pages * page_bytes} bytes"
    return ""


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _path(home: Path, service: str) -> Path:
    return home / "started" / f"{service}.json"
