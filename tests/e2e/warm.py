"""Starts `knarr up` in a third of the time: one process imports everything once, each platform is a fork of it.

In: one JSON line a start (arguments, environment, folder, log file), and the end of a pipe. Out, through the pipe: the
platform's process id, and how it ended. The fork is what `python -m knarr` would be after its imports: a process of its
own, alone in its session, with the environment that it was given. Most of a start's time is imports, and the scenarios
need hundreds of starts.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

EAGER = ("knarr.cli", "knarr.up", "alembic.command", "uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl")
_LOOK_S = 0.02


class WarmProcess:
    """A fork, with the part of `subprocess.Popen` that the harness uses."""

    def __init__(self, told: int) -> None:
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

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
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode


class Launcher:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self._orders, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.warm", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "libs"])},
            )

    def start(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> WarmProcess:
        """`knarr` with these arguments."""
        order = {"arguments": arguments, "environment": dict(environment), "folder": str(folder), "log": str(log)}
        told, tell = os.pipe()
        socket.send_fds(self._orders, [b"\n"], [tell])
        os.close(tell)
        self._orders.sendall(json.dumps(order).encode() + b"\n")
        return WarmProcess(told)

    def close(self) -> None:
        """End it; platforms that still run are killed."""
        self._orders.close()
        self._process.wait(60)


def main() -> None:
    """Fork for each order, until the tests have gone."""
    names = ("webhook", "source", "builder", "registry", "deployer", "saga_coordinator")
    for module in (*EAGER, *(f"services.{name}.app" for name in names)):
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    orders = socket.socket(fileno=int(sys.argv[1]))
    lines = orders.makefile("rb", buffering=0)
    while pipes := socket.recv_fds(orders, 1, 1)[1]:
        order = json.loads(lines.readline())
        if os.fork() == 0:
            orders.close()
            lines.close()
            _watch(order, pipes[0])
        os.close(pipes[0])


def _watch(order: Mapping[str, object], pipe: int) -> None:
    """In a fork: fork the platform, tell who it is and how it ends; when the tests have gone, it has to go."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launcher = os.getppid()
    pid = os.fork()
    if pid == 0:
        os.close(pipe)
        _become(**order)  # type: ignore[arg-type]  # as `Launcher.start` wrote it
    os.write(pipe, b"%d\n" % pid)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        if os.getppid() != launcher:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)


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
    code = 1
    try:
        knarr()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
