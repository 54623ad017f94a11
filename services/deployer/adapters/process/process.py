"""One process with everything that it starts: a command in, its output in the app's log and its exit status out."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.cgroups import Cgroup
from services.deployer.adapters.process.output import AppLog, Output

LAUNCHER = Path(__file__).with_name("launcher.py")
_REST_OF_OUTPUT_S = 2.0
_KILL_S = 5.0
"""Time that the launcher gets to end everything; then the processes are killed one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a process is started."""

    label: str
    """Name in the app's log: `web.1`."""
    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    """Blotted out of the lines that errors carry."""
    cwd: Path
    record: str
    """Name of its entry in the records: begins with the saga's id."""
    cgroup: Cgroup | None = None
    """Its control group; None: the launcher alone ends what it leaves behind."""


async def launch(
    command: Command, *, env: Mapping[str, str], output: int, arguments: tuple[str, ...] | None = None
) -> asyncio.subprocess.Process:
    """Start a command under the launcher, which ends everything that it leaves behind.

    Must run in a thread that lives as long as knarr: the kernel ties the process to it (see `launcher`).

    Args:
        command: What is started, where and with which environment.
        env: Added to the command's environment.
        output: File descriptor for its output.
        arguments: Run instead of the command's own.
    """
    if command.cgroup is not None:
        await asyncio.to_thread(command.cgroup.make)
    with _as_file({**command.env, **env}) as file:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            os.fspath(LAUNCHER),
            str(os.getpid()),
            str(file.fileno()),
            os.fspath(command.cgroup.path) if command.cgroup else "",
            *(arguments or command.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
            pass_fds=[file.fileno()],
            cwd=command.cwd,
            start_new_session=True,
        )


async def end_all(child: asyncio.subprocess.Process) -> None:
    """Kill a launched process with everything that it started; return when all of it has ended."""
    _send(child.pid, signal.SIGHUP if sys.platform == "linux" else signal.SIGKILL)
    try:
        async with asyncio.timeout(_KILL_S):
            await child.wait()
    except TimeoutError:  # the launcher itself was stopped
        descendants = await asyncio.to_thread(leftovers.descendants, child.pid)
        _send(child.pid, signal.SIGKILL)
        await asyncio.to_thread(leftovers.kill, descendants)
        await child.wait()


class Process:
    """A running process with its output. `end` must be called, whatever happens."""

    def __init__(self, command: Command, child: asyncio.subprocess.Process, output: Output) -> None:
        self.command = command
        self.output = output
        self._child = child
        self.pid = child.pid
        """Process id of the launcher, the ancestor of everything that runs here."""

    @classmethod
    async def start(
        cls, command: Command, *, app_log: AppLog, records: leftovers.Records, env: Mapping[str, str]
    ) -> "Process":
        """Start it; `env` is added to the command's."""
        output = Output(app_log, command.label)
        try:
            child = await launch(command, env=env, output=output.write_fd)
        finally:
            output.started()
        records.add(command.record, child.pid)
        return cls(command, child, output)

    async def wait(self) -> int:
        """Return its exit status, or minus the signal that ended it, when nothing that it started is left."""
        status = await self._child.wait()
        await self.output.ended(0.2)  # its last words; a descendant that escaped does not hold us up
        return status

    async def terminate(self, grace_s: float) -> None:
        """Send SIGTERM, and wait until everything has ended or the grace is over."""
        _send(self.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._child.wait()
                while await asyncio.to_thread(leftovers.group_is_alive, self.pid):  # noqa: ASYNC110  no event reports it
                    await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """Kill everything that is left."""
        if self._child.returncode is None:
            await end_all(self._child)
        _send(self.pid, signal.SIGKILL)  # elsewhere than on Linux: the rest of the group
        if self.command.cgroup is not None:
            await asyncio.to_thread(self.command.cgroup.end)

    async def end(self, records: leftovers.Records) -> None:
        """Kill what is left, forget its record, read what it printed last."""
        await self.kill()
        records.remove(self.command.record)
        await self.output.ended(_REST_OF_OUTPUT_S)


def _as_file(env: Mapping[str, str]) -> BinaryIO:
    """Return an open file with the app's environment: the launcher's own has nothing of the app.

    Raises:
        ValueError: A name or value that no environment can have.
    """
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"illegal environment variable {name!r}")
    file = os.fdopen(os.memfd_create("env"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.write(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()))
    file.seek(0)
    return file


def _send(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
