"""Starts `knarr up` in a tenth of the time: one process imports everything once, each platform is a fork of it.

In: one JSON line a start (arguments, environment, folder, log file). Out: its process id, and how it ended. The fork is
what `python -m knarr` would be after its imports: a process of its own, alone in its session, with the environment that
it was given. Most of a start's time is imports, and a hundred crash points need hundreds of starts.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

EAGER = ("knarr.cli", "knarr.up", "alembic.command", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl")


class WarmProcess:
    """A fork, with the part of `subprocess.Popen` that the harness uses."""

    def __init__(self, pid: int, ended: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """How it ended; none: it runs."""
        return self._look(0)

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            self.returncode = int(self._ended.readline())
        return self.returncode


class Launcher:
    """The process that has imported everything. One fork at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "libs"])},
        )

    def start(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> WarmProcess:
        """`knarr` with these arguments; the one before must have ended."""
        order = {"arguments": arguments, "environment": dict(environment), "folder": str(folder), "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return WarmProcess(int(self._process.stdout.readline()), self._process.stdout)

    def close(self) -> None:
        """End it, once its last fork has ended."""
        self._process.communicate(timeout=60)


def main() -> None:
    """Fork for each order, tell who it is, wait for its end, tell how it ended; leave nothing behind."""
    names = ("webhook", "source", "builder", "registry", "deployer", "saga_coordinator")
    for module in (*EAGER, *(f"services.{name}.app" for name in names)):
        importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(**json.loads(line))
        _tell(pid)
        _tell(_end_of(pid))


def _end_of(pid: int) -> int:
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([sys.stdin], [], [], 0.02)[0]:  # no order comes while one is carried out: the tests are gone
            os.kill(pid, signal.SIGKILL)


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become(arguments: Sequence[str], environment: Mapping[str, str], folder: str, log: str) -> None:
    """In the fork: be `knarr` with these arguments, and end."""
    from knarr.cli import main as knarr
    from seedwork import crash

    os.setsid()
    os.chdir(folder)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for there, here in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(there, here)
    os.environ.clear()
    os.environ.update(environment)
    crash.arm(environment.get("KNARR_CRASH_AT", ""))
    sys.argv = ["knarr", *arguments]
    try:
        knarr()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
