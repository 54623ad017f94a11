"""The folder that holds everything of one platform, and the lock that lets one process have it.

<home>/lock           flock; pid, start and ports of the holder, for the message to whoever comes second
<home>/token          the admin token of this machine's user (0600)
<home>/service-token  what the services show each other (0600)
<home>/settings.json  what `knarr up` decided once for this home, such as its runtime
<home>/registry-password  of the registry that `knarr up --runtime docker` starts (0600)
<home>/platform.json  where the running platform listens
<home>/knarr.log      JSON lines
<home>/<service>/     what that service keeps
"""

import fcntl
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from seedwork.chassis.service_ports import SERVICE_PORTS
from seedwork.errors import Conflict, InvalidInput, KnarrError, Misconfigured, StorageFull, Unavailable

DEFAULT_PORT_BASE = 8700
"""The base itself is kept for a web console; the services take the next six."""


def port_of(service: str, port_base: int = DEFAULT_PORT_BASE) -> int:
    """The service's port."""
    return port_base + 1 + SERVICE_PORTS.index(service)


class HomeHeld(Conflict):
    """Another process has this home."""

    code = "home_held"
    title = "The home is in use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a running platform listens."""

    host: str
    port_base: int
    pid: int | None = None


class Home:
    """Paths inside a home, and the few files that belong to no service."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is made yet."""
        self.path = path
        self.lock = path / "lock"
        self.token_file = path / "token"
        self.service_token_file = path / "service-token"
        self.platform_file = path / "platform.json"
        self.settings_file = path / "settings.json"
        self.registry_password_file = path / "registry-password"
        self.log = path / "knarr.log"
        self.demo = path / "demo"

    @classmethod
    def find(cls, named: Path | None = None) -> Self:
        """The home that was named, else the one beside the virtual environment, else the user's.

        Args:
            named: From `--home` or `KNARR_HOME`.
        """
        if named is not None:
            return cls(named.expanduser().absolute())
        beside = Path(sys.prefix).parent / ".knarr"
        return cls(beside if beside.is_dir() else Path.home() / ".knarr")

    def make(self) -> None:
        """Make the folder, for its user only; one that others can enter is closed to them.

        Raises:
            Misconfigured: It cannot be made or written, or belongs to another user.
            StorageFull: No room.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid != os.geteuid():
                raise Misconfigured(
                    f"The home {self.path} belongs to another user",
                    why="that user could read every secret in it",
                    todo="Choose a folder of your own with --home.",
                )
            if found.st_mode & 0o077:
                self.path.chmod(0o700)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def address(self) -> Address | None:
        """Where the platform of this home listens, as it wrote down when it started; none: it never ran, or stopped."""
        try:
            record = json.loads(self.platform_file.read_bytes())
            return Address(host=str(record["host"]), port_base=int(record["port_base"]), pid=int(record["pid"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Misconfigured(f"Cannot read {self.platform_file}", why=str(error.strerror)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{self.platform_file} is damaged",
                why=str(error),
                todo="Stop knarr and start it again: it is rewritten.",
            ) from error

    def token(self) -> str | None:
        """The user's token, once `knarr up` has run here."""
        return _read_secret(self.token_file)

    def keep_secret(self, path: Path) -> str:
        """The secret in that file; made and written (0600) where there is none yet."""
        kept = _read_secret(path)
        if kept is not None:
            return kept
        secret = secrets.token_urlsafe(32)
        self.write(path, secret + "\n", mode=0o600)
        return secret

    def remembered(self) -> dict[str, Any]:
        """Return what earlier starts decided for this home; empty before the first one.

        Raises:
            InvalidInput: The file is damaged.
        """
        try:
            record = json.loads(self.settings_file.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Misconfigured(f"Cannot read {self.settings_file}", why=str(error.strerror)) from error
        except ValueError as error:
            record = error
        if not isinstance(record, dict):
            raise InvalidInput(
                f"{self.settings_file} is damaged",
                why="it is no JSON object",
                todo="Remove it, and name the runtime of this home again: `knarr up --runtime docker` or `process`.",
            )
        return record

    def remember(self, **decided: Any) -> None:
        """Add to what the home remembers."""
        record = {**self.remembered(), **decided}
        self.write(self.settings_file, json.dumps(record, sort_keys=True) + "\n")

    def write(self, path: Path, text: str, *, mode: int = 0o600) -> None:
        """Replace a file at once: a reader sees the old text or the new one, never a part.

        Raises:
            Misconfigured: The home cannot be written.
            StorageFull: No room.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from error


class HomeLock:
    """Held as long as the process lives; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, home: Home) -> None:
        """Name the home; `acquire` takes it."""
        self._home = home
        self._fd: int | None = None

    def acquire(self, *, host: str, port_base: int) -> None:
        """Take the home, and write down who has it.

        Raises:
            HomeHeld: Somebody has it; the text says who, since when, and what to do.
        """
        try:
            fd = os.open(self._home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _cannot_write(self._home.lock, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise held_by(self._home) from None
        holder = {
            "pid": os.getpid(),
            "started_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "host": host,
            "ports": [port_base + 1, port_base + 6],
        }
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
        self._fd = fd

    def release(self) -> None:
        """Let go; the file stays, so that nobody can lock a file that another one has just removed."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def holder(home: Home) -> Mapping[str, Any] | None:
    """Who has the home now: `{pid, started_at, host, ports}`; none: nobody."""
    try:
        fd = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 4096, 0)
        try:
            record: Mapping[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return record
    else:
        return None
    finally:
        os.close(fd)


def held_by(home: Home) -> HomeHeld:
    """The error for whoever comes second."""
    record = holder(home) or {}
    pid = record.get("pid")
    who = f"process {pid} has it since {record.get('started_at')}" if pid else "another process has just taken it"
    ports = record.get("ports") or []
    where = f", on ports {ports[0]} to {ports[1]}" if len(ports) == 2 else ""
    stop = f"stop it with Ctrl-C there or `kill {pid}`" if pid else "try again in a moment"
    return HomeHeld(
        f"The home {home.path} is in use",
        why=who + where,
        todo=f"Use the platform that runs, or {stop}, or choose another home with --home and --port-base.",
    )


def _read_secret(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Misconfigured(
            f"Cannot read {path}",
            why=str(error.strerror),
            todo="The file belongs to the user who started knarr: use that user, or set KNARR_TOKEN.",
        ) from error


def _cannot_write(path: Path, error: OSError) -> KnarrError:
    why = str(error.strerror)
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return StorageFull(f"Cannot write {path}", why=why, todo="Make room, or choose another place with --home.")
    if error.errno == 11:  # EAGAIN
        return Unavailable(f"Cannot write {path}", why=why)
    return Misconfigured(f"Cannot write {path}", why=why, todo="Choose a folder of your own with --home.")
