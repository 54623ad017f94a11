"""Who runs in our name: the process table in, processes of this home out, and their end.

Every process that we start gets `KNARR_HOME_ID` in its environment, and its children inherit it; so those are found
that a killed knarr left behind, and those that left their process group. Some programs write over their environment
(`setproctitle` does): for those there is a record per process, with its id and its time of birth.

All functions block: call them in a thread.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson
import psutil

from seedwork.messages import new_id

MARK = "KNARR_HOME_ID"
SAGA = "KNARR_SAGA_ID"
APP_ID = "KNARR_APP_ID"

_SAME_BIRTH_S = 0.5
"""Two readings of one process's time of birth differ by less; a reused process id is younger by far more."""


def home_id_of(home: Path) -> str:
    """The random name of this home, made at its first use."""
    path = home / "home.id"
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(new_id())
    name = path.read_text().strip()
    if not name:  # killed between making and writing it: nothing was started under it yet
        name = new_id()
        path.write_text(name)
    return name


class Records:
    """One small file per process that we started: what is needed to find it again, and nothing secret."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, pid: int) -> None:
        """Remember a process that was just started."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(psutil.NoSuchProcess):
            born = psutil.Process(pid).create_time()
            (self._folder / name).write_bytes(orjson.dumps({"pid": pid, "born": born}))

    def remove(self, name: str) -> None:
        """Forget a process whose whole group is gone."""
        (self._folder / name).unlink(missing_ok=True)

    def remove_of(self, saga_id: str) -> None:
        """Forget every process of that saga."""
        for path in self._folder.glob(f"{saga_id}.*"):
            path.unlink(missing_ok=True)

    def remembered(self) -> list[psutil.Process]:
        """The processes of all records, with everything in the sessions that they lead; the records go."""
        found: dict[int, psutil.Process] = {}
        if not self._folder.is_dir():
            return []
        for path in list(self._folder.iterdir()):
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
                record = orjson.loads(path.read_bytes())
                for process in _session(int(record["pid"]), float(record["born"])):
                    found[process.pid] = process
            path.unlink(missing_ok=True)
        return list(found.values())


def _session(leader: int, born: float) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            age = process.create_time() - born
            if process.pid == leader:
                if abs(age) < _SAME_BIRTH_S:
                    yield process
                    yield from process.children(recursive=True)
            elif os.getsid(process.pid) == leader and age > -_SAME_BIRTH_S and not _is_younger(leader, born):
                yield process


def _is_younger(pid: int, born: float) -> bool:
    """Whether that process id belongs to somebody else by now."""
    try:
        return psutil.Process(pid).create_time() - born >= _SAME_BIRTH_S
    except psutil.Error:
        return False


def marked(home_id: str, labels: Mapping[str, str] | None = None) -> list[psutil.Process]:
    """Living processes of this home whose environment has these values."""
    wanted = {MARK: home_id, **(labels or {})}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid():
                continue
            env = process.environ()
            if all(env.get(name) == value for name, value in wanted.items()) and is_alive(process):
                found.append(process)
    return found


def kill(processes: Iterable[psutil.Process], *, patience_s: float = 5.0) -> int:
    """Kill them with their process groups and wait until they are gone; how many there were."""
    processes = list(processes)
    own = os.getpgid(0)
    for process in processes:
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            group = os.getpgid(process.pid)
            if group == process.pid and group != own:
                os.killpg(group, signal.SIGKILL)
            process.kill()
    until = time.monotonic() + patience_s
    while any(is_alive(each) for each in processes) and time.monotonic() < until:
        time.sleep(0.01)
    return len(processes)


def group_is_alive(group: int) -> bool:
    """Whether a process of that group lives; a zombie that nobody collects does not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return any(is_alive(each) for each in _members(group))


def descendants(pid: int) -> list[psutil.Process]:
    """Return every process below that one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which that process, its group and its descendants listen, as far as the system shows."""
    tree = {each.pid: each for each in (*_members(pid), *descendants(pid))}
    return {port for process in tree.values() for port in _listens_on(process)}


def listener_on(port: int) -> str | None:
    """Return the program that listens on a TCP port: `nginx (process 17)`; None: the system shows none."""
    for process in psutil.process_iter():
        if port in _listens_on(process):
            with contextlib.suppress(psutil.Error):
                return f"{process.name()} (process {process.pid})"
    return None


def _listens_on(process: psutil.Process) -> set[int]:
    with contextlib.suppress(psutil.Error, OSError):
        connections = process.net_connections(kind="tcp")
        return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    return set()


def _members(group: int) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                yield process


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
