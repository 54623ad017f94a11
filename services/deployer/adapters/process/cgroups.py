"""A control group (cgroup v2) for each instance: limits in; what counts against them, and the end of all of it, out.

A process leaves its parent, its session and its environment, and not its cgroup. So everything that an instance left is
ended at once, also what forks faster than it is killed, and what outlived its launcher. Limits need the controllers
`memory` and `pids`, which a cgroup hands down only while no process is in it.

All functions block: call them in a thread. Reference: https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

log = structlog.get_logger(__name__)

_CONTROLLERS = ("memory", "pids")
KILL_FILE = "cgroup.kill"
_END_S = 5.0
_ENTER = 'echo 0 > "$1"'
"""A shell script that moves its shell into a control group."""
_ENTER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one instance may use; None: no limit."""

    memory_bytes: int | None = None
    processes: int | None = None
    """Processes and threads."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The control group of one instance. It exists between `make` and `end`."""

    path: Path
    settings: Mapping[str, str]
    """Contents of its files, by name: `memory.max`."""

    def make(self) -> None:
        """Make it, empty; one that is there already stays.

        Raises:
            OSError: The system refuses.
        """
        self.path.mkdir(exist_ok=True)
        for name, value in self.settings.items():
            (self.path / name).write_text(value)

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel ended something in it because of its limit."""
        return _field(self.path / "memory.events", "oom_kill") not in {None, "0"}

    def end(self) -> int:
        """Kill everything in it and remove it; return how many processes there were."""
        count = len(_processes(self.path))
        until = time.monotonic() + _END_S
        while _field(self.path / "cgroup.events", "populated") == "1" and time.monotonic() < until:
            _kill(self.path)
            time.sleep(0.005)
        for folder, _, _ in os.walk(self.path, topdown=False):
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("cgroup.not_removed", path=folder, why=error.strerror)
        return count


class Cgroups:
    """The control groups of a home.

    Args:
        base: The one that holds those of all instances.
        bounds: Of each instance.
        controllers: Those that count in it.
    """

    def __init__(self, base: Path, bounds: Bounds, controllers: frozenset[str]) -> None:
        self._base = base
        wanted = {"memory": bounds.memory_bytes, "pids": bounds.processes}
        self._settings = {f"{name}.max": str(limit) for name, limit in wanted.items() if limit and name in controllers}
        if "memory.max" in self._settings and (base / "memory.swap.max").exists():
            self._settings["memory.swap.max"] = "0"
        self.unmet = tuple(name for name, limit in wanted.items() if limit and name not in controllers)
        """Controllers that are lacking for a limit."""

    def of(self, name: str) -> Cgroup:
        """Return that of an instance."""
        return Cgroup(self._base / re.sub(r"[^0-9A-Za-z._-]", "_", name), self._settings)

    def clear(self) -> int:
        """End everything in them, as after a crash of ours; return how many processes there were."""
        try:
            found = [each for each in self._base.iterdir() if each.is_dir()]
        except FileNotFoundError:
            return 0
        return sum(Cgroup(each, {}).end() for each in found)

    def close(self) -> None:
        """End everything, and leave no control group behind; one that is just being ended elsewhere is waited for."""
        until = time.monotonic() + _END_S
        while self._base.exists() and time.monotonic() < until:
            self.clear()
            with contextlib.suppress(OSError):
                self._base.rmdir()
                return
            time.sleep(0.01)


def open_cgroups(home_id: str, bounds: Bounds) -> Cgroups | str:
    """Return the control groups of a home, or why there are none, in words."""
    if sys.platform != "linux":
        return "this system has no control groups"
    own = own_cgroup()
    if own is None:
        return "no cgroup v2 is mounted"
    base = own / f"knarr-{home_id}"
    try:
        base.mkdir(exist_ok=True)
    except OSError as error:
        return f"{own} cannot be written: {error.strerror}"
    why = _not_entered(base)
    if why:
        with contextlib.suppress(OSError):
            base.rmdir()
        return f"no process can be moved into {base}: {why}"
    lacking = [each for each in _CONTROLLERS if each not in _words(base / "cgroup.controllers")]
    if lacking and bounds != Bounds():
        _leave_to_children(own)
        _enable(own, lacking)
    _enable(base, _CONTROLLERS)
    return Cgroups(base, bounds, frozenset(_words(base / "cgroup.subtree_control")))


def own_cgroup() -> Path | None:
    """Return the folder of the control group in which we run; None: there is no cgroup v2."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
        memberships = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    inside = next((line[3:] for line in memberships.splitlines() if line.startswith("0::/")), None)
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if inside is not None and after.startswith("cgroup2 "):
            root, mounted = before.split()[3:5]
            return Path(mounted) / os.path.relpath(inside, root)
    return None


def _not_entered(base: Path) -> str:
    """Move a process there, as each instance is moved; return why that fails, or an empty text."""
    path = base / "probe"
    try:
        path.mkdir(exist_ok=True)
        argv = ["sh", "-c", _ENTER, "sh", str(path / "cgroup.procs")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ENTER_S)
        return done.stderr.strip().rpartition("\n")[2]
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def _leave_to_children(own: Path) -> None:
    """Move us into a child of our cgroup, if nothing else is in it: a service with `Delegate=yes` is alone there."""
    ours = {os.getpid(), *(each.pid for each in psutil.Process().children(recursive=True))}
    found = _processes(own, nested=False)
    if found and ours.issuperset(found):
        leaf = own / "knarr-main"
        with contextlib.suppress(OSError):
            leaf.mkdir(exist_ok=True)
            for pid in found:
                (leaf / "cgroup.procs").write_text(str(pid))


def _enable(group: Path, controllers: tuple[str, ...] | list[str]) -> None:
    """Let children have limits of these kinds, as far as the kernel allows it."""
    for each in controllers:
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{each}")


def _kill(path: Path) -> None:
    try:
        (path / KILL_FILE).write_text("1")
    except OSError:  # before Linux 5.14, or it is gone
        for pid in _processes(path):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _processes(path: Path, *, nested: bool = True) -> list[int]:
    folders = [folder for folder, _, _ in os.walk(path)] if nested else [os.fspath(path)]
    return [int(pid) for folder in folders for pid in _words(Path(folder) / "cgroup.procs")]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _field(path: Path, name: str) -> str | None:
    """Return the value after a name in a file of such pairs."""
    words = _words(path)
    return dict(zip(words[::2], words[1::2], strict=False)).get(name)
