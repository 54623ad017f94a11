"""How each kind of add-on runs as a process of this machine: programs, first set-up, command line, greeting. Pure.

Only `find` reads the file system. Secrets stand in files that only this user reads, never in an argument list.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.deployer.ports import AddOn

KINDS = ("mysql", "postgres", "redis")
"""Kinds that can run as processes. MongoDB needs a client to make its first user, so it needs a container."""

_DIRECTORIES: Mapping[str, Sequence[str]] = {
    "postgres": ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"),
    "mysql": ("/usr/sbin", "/usr/libexec", "/opt/homebrew/opt/mysql*/bin", "/opt/homebrew/opt/mariadb*/bin"),
    "redis": ("/usr/sbin", "/opt/homebrew/bin"),
}
"""Where distributions put server programs that are not on PATH."""
_VERSION = re.compile(r"(\d+(?:\.\d+){0,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Programs of one kind on this machine."""

    kind: str
    server: Path
    setup: Path | None = None
    """Program that makes an empty data folder; None: the server does it."""

    @property
    def is_mariadb(self) -> bool:
        """True where the MySQL server is MariaDB."""
        return self.server.name == "mariadbd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command of the first set-up."""

    argv: tuple[str, ...]
    stdin: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Folders and port of one add-on."""

    data: Path
    secrets: Path
    """Folder of configuration files; only this user reads it."""
    port: int


def find(path: str) -> dict[str, Programs]:
    """Return the programs of this machine by kind.

    Args:
        path: Where programs are looked for first, as in PATH.
    """
    found = {}
    if server := _program(("redis-server", "valkey-server"), "redis", path):
        found["redis"] = Programs(kind="redis", server=server)
    server, initdb = (_program((name,), "postgres", path) for name in ("postgres", "initdb"))
    if server and initdb:
        found["postgres"] = Programs(kind="postgres", server=server, setup=initdb)
    install = _program(("mariadb-install-db",), "mysql", path)
    mariadbd, mysqld = (_program((name,), "mysql", path) for name in ("mariadbd", "mysqld"))
    if mariadbd and install:
        found["mysql"] = Programs(kind="mysql", server=mariadbd, setup=install)
    elif mysqld:
        found["mysql"] = Programs(kind="mysql", server=mysqld)
    return found


def _program(names: Iterable[str], kind: str, path: str) -> Path | None:
    for name in names:
        if on_path := shutil.which(name, path=path):
            return Path(on_path).resolve() if kind == "postgres" else Path(on_path)
        for pattern in _DIRECTORIES[kind]:
            root, _, rest = pattern.partition("/")[2].partition("/")
            matches = sorted(Path(f"/{root}").glob(f"{rest}/{name}"), reverse=True)
            if usable := next((each for each in matches if os.access(each, os.X_OK)), None):
                return usable
    return None


def version_in(printed: str, kind: str) -> str | None:
    """Return the version that a server prints of itself with `--version`."""
    after = {"mysql": "Ver ", "redis": "v=", "postgres": ")"}[kind]
    found = _VERSION.search(printed.partition(after)[2] or printed)
    return found[1] if found else None


def satisfies(version: str, wanted: str | None) -> bool:
    """Return whether a server's version begins with the parts that are asked for (`15` of `15.4`)."""
    if wanted is None:
        return True
    parts = wanted.split(".")
    return version.split(".")[: len(parts)] == parts


def files(addon: AddOn, place: Place, programs: Programs) -> dict[str, bytes]:
    """Return the configuration files by name; each is written for this user only."""
    user, password = addon.user, addon.password
    if addon.kind == "postgres":
        return {"password": f"{password}\n".encode()}
    if addon.kind == "redis":
        lines = [
            f"port {place.port}",
            "bind 127.0.0.1",
            f'dir "{place.data}"',
            "appendonly yes",
            f"requirepass {password}",
        ]
        return {"redis.conf": "".join(f"{line}\n" for line in lines).encode()}
    root = f"ALTER USER 'root'@'localhost' IDENTIFIED BY '{password}';\n"
    if programs.is_mariadb:  # its set-up makes users without a password for other host names
        root += "DELETE FROM mysql.global_priv WHERE User IN ('root', '') AND Host <> 'localhost';\nFLUSH PRIVILEGES;\n"
    sql = (
        f"CREATE DATABASE IF NOT EXISTS `{user}`;\n"
        f"CREATE USER IF NOT EXISTS '{user}'@'localhost' IDENTIFIED BY '{password}';\n"
        f"CREATE USER IF NOT EXISTS '{user}'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"GRANT ALL ON `{user}`.* TO '{user}'@'localhost';\n"
        f"GRANT ALL ON `{user}`.* TO '{user}'@'127.0.0.1';\n"
    )
    return {"init.sql": (sql + root).encode()}


def set_up(addon: AddOn, place: Place, programs: Programs) -> list[Step]:
    """Return the commands that make the data folder, in their order; run once, on an empty folder."""
    data = str(place.data)
    if addon.kind == "postgres":
        single = (str(programs.server), "--single", "-D", data, "postgres")
        password = f"--pwfile={place.secrets / 'password'}"
        form = ("--auth=scram-sha-256", "-E", "UTF8", "--locale=C", "--no-instructions")
        initdb = (str(programs.setup), "-D", data, "-U", addon.user, password, *form)
        return [Step(argv=initdb), Step(argv=single, stdin=f"CREATE DATABASE {addon.user}\n".encode())]
    if addon.kind == "mysql" and programs.is_mariadb:
        options = ("--auth-root-authentication-method=normal", "--skip-test-db", f"--datadir={data}")
        return [Step(argv=(str(programs.setup), "--no-defaults", *options))]
    if addon.kind == "mysql":
        return [Step(argv=(str(programs.server), "--no-defaults", "--initialize-insecure", f"--datadir={data}"))]
    return []


def command(addon: AddOn, place: Place, programs: Programs) -> tuple[str, ...]:
    """Return the argument list of the server."""
    server, data, port = str(programs.server), str(place.data), str(place.port)
    if addon.kind == "postgres":
        return (server, "-D", data, "-h", "127.0.0.1", "-p", port, "-k", "")
    if addon.kind == "redis":
        return (server, str(place.secrets / "redis.conf"))
    sockets = ("--socket=mysql.sock", "--pid-file=mysql.pid")  # in `data`: a socket's whole path may have 107 bytes
    init = f"--init-file={place.secrets / 'init.sql'}"
    network = ("--bind-address=127.0.0.1", f"--port={port}", "--loose-mysqlx=OFF", "--skip-name-resolve")
    return (server, "--no-defaults", f"--datadir={data}", *sockets, init, *network)


def greets(kind: str) -> Callable[[bytes], bool]:
    """Return a check of the first bytes that a server sends or answers; see `hello`."""
    expected: Mapping[str, Callable[[bytes], bool]] = {
        "redis": lambda answer: answer.startswith(b"+OK"),
        "postgres": lambda answer: answer.startswith(b"R"),
        "mysql": lambda answer: len(answer) > 5 and answer[4] == 10,
    }
    return expected[kind]


def hello(addon: AddOn) -> bytes:
    """Return what a client sends first: a log-in to Redis, the start-up packet of PostgreSQL, nothing to MySQL."""
    if addon.kind == "redis":
        secret = addon.password.encode()
        return b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(secret), secret)
    if addon.kind == "postgres":
        values = f"user\0{addon.user}\0database\0{addon.user}\0\0".encode()
        body = (196608).to_bytes(4, "big") + values  # protocol 3.0
        return (len(body) + 4).to_bytes(4, "big") + body
    return b""
