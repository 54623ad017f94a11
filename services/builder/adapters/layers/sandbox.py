"""Runs build tools: limited in time, memory, processes and file size, with a clean environment, and ended wholly.

Every process of a build has `KNARR_SAGA_ID` and `KNARR_BUILD_HOME` in its environment, so that those that a killed
service left behind can be found at the next start. A tool gets a session of its own; when it ends, fails, takes too
much or its task is cancelled, everything that it started is killed before `run` returns.

Not guaranteed: a process that leaves its session, wipes its environment and outlives its parent is not found. Build
scripts run as the user that runs knarr; this keeps mistakes in bounds, not attackers.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil

from seedwork.errors import StorageFull
from services.builder.adapters.layers.limits import (
    Limits,
    limit_error,
    out_of_memory,
    out_of_room,
    private_bytes,
    too_many_processes,
)
from services.builder.errors import BuildFailed
from services.builder.ports import BuildOutput

LAUNCHER = Path(__file__).with_name("launcher.py")
_WATCH_S = 0.25
_PIECE_BYTES = 64 * 1024
_TAIL_LINES = 400
"""Lines kept of a tool's output. npm prints 60 lines of usage text after its reason."""
_LIMIT_LINES = 40
"""Last lines in which the text of a limit is looked for."""
_KILL_ROUNDS, _KILL_PAUSE_S = 500, 0.01
_DRAIN_S = 5.0
"""For the rest of the output, once every process is dead: only one that was not found can still hold the pipe."""

PASSED_ENV = re.compile(
    r"(SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|(HTTPS?|ALL|NO)_PROXY"
    r"|PIP_INDEX_URL|PIP_EXTRA_INDEX_URL|PIP_FIND_LINKS|PIP_TRUSTED_HOST"
    r"|UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|OFFLINE|INSECURE_HOST|INDEX_STRATEGY"
    r"|HTTP_TIMEOUT|PYTHON_DOWNLOADS_JSON_URL|NATIVE_TLS|SYSTEM_CERTS|KEYRING_PROVIDER|EXCLUDE_NEWER|INDEX_[A-Z0-9_]+_(USERNAME|PASSWORD))"
    r"|NPM_CONFIG_(REGISTRY|USERCONFIG|GLOBALCONFIG|CAFILE)|NPM_TOKEN|NODE_AUTH_TOKEN)",
    re.IGNORECASE,
)
"""What build tools may see of the platform's environment: where packages are, and how to get at them."""
_SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|AUTH|KEY(?!RING)", re.IGNORECASE)
_URL_USERINFO = re.compile(r"://([^/\s@]+)@")


@dataclass(slots=True)
class _Seen:
    """What one command printed and took."""

    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    over: BuildFailed | None = None


class ToolFailed(Exception):
    """A tool ended with an error; who ran it knows what that means."""

    def __init__(self, argv: Sequence[str], exit_code: int, lines: Sequence[bytes]) -> None:
        """Keep what it was and how it ended (negative: by which signal), with the last lines that it printed."""
        super().__init__(argv[0], exit_code)
        self.exit_code = exit_code
        self.lines = tuple(lines)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.exit_code < 0:
            return f"it was ended by {signal.Signals(-self.exit_code).name}"
        return f"exit code {self.exit_code}"

    def says(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether one of its last lines fits."""
        return any(pattern.search(line) for line in self.lines)


class Sandbox:
    """Runs the tools of builds that belong to one builder.

    Args:
        home: The builder's folder, which marks its processes.
        limits: Of each build.
        environ: The platform's environment, from which only `PASSED_ENV` and `pass_env` are taken.
        pass_env: More names.
    """

    def __init__(
        self, home: Path, limits: Limits, *, environ: Mapping[str, str] | None = None, pass_env: Sequence[str] = ()
    ) -> None:
        source = os.environ if environ is None else environ
        self._home = str(home)
        self.limits = limits
        self._passed = {
            name: value for name, value in source.items() if PASSED_ENV.fullmatch(name) or name in set(pass_env)
        }
        self.path = _tool_path(source.get("PATH", os.defpath))
        """Where tools are looked for: the platform's own virtual environment is not among them."""

    def secrets(self) -> frozenset[str]:
        """Values among those passed on that must not be shown."""
        values = {value for name, value in self._passed.items() if _SECRET_NAME.search(name)}
        userinfos = {found for value in self._passed.values() for found in _URL_USERINFO.findall(value)}
        passwords = {each.partition(":")[2] for each in userinfos}
        return frozenset((values | userinfos | passwords) - {""})

    def passed(self, name: str) -> str | None:
        """A variable that is passed on."""
        return self._passed.get(name)

    def environment_passed(self) -> Mapping[str, str]:
        """All variables that are passed on."""
        return dict(self._passed)

    def which(self, tool: str) -> Path | None:
        """Where that tool is."""
        found = shutil.which(tool, path=self.path)
        return Path(found) if found else None

    def environment(self, saga_id: str, scratch: Path) -> dict[str, str]:
        """What every tool of that build gets; `scratch` holds its HOME and its temporary files."""
        for folder in (scratch / "home", scratch / "tmp"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            **self._passed,
            "PATH": self.path,
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "CI": "1",
            "SOURCE_DATE_EPOCH": "315532800",
            "KNARR_SAGA_ID": saga_id,
            "KNARR_BUILD_HOME": self._home,
        }

    async def run(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: BuildOutput, shown: str | None = None
    ) -> None:
        """Run a tool to its end; its output goes to `output` as it comes.

        Args:
            argv: The tool and its arguments.
            cwd: Where it runs.
            env: All of its environment, from `environment`.
            output: Gets what it prints.
            shown: The command as people see it; None: not shown.

        Raises:
            ToolFailed: It ended with an error.
            OutOfMemory, TooManyProcesses: It took more than it may.
            StorageFull: The disk has no room left.
        """
        if shown:
            await asyncio.to_thread(output.say, f"$ {shown}")
        seen = _Seen()
        async with self._started(argv, cwd=cwd, env=env) as (process, printed):
            reading = asyncio.create_task(_read(printed, output, seen))
            watching = asyncio.create_task(self._watch(process.pid, seen))
            try:
                exit_code = await process.wait()
            finally:
                watching.cancel()
                await asyncio.to_thread(self._kill, process.pid, env["KNARR_SAGA_ID"])
                await process.wait()
                await asyncio.wait([reading], timeout=_DRAIN_S)
                reading.cancel()
                read, _ = await asyncio.gather(reading, watching, return_exceptions=True)
        if isinstance(read, Exception):
            raise read
        self._judge(tuple(argv), exit_code, seen)

    @asynccontextmanager
    async def _started(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]
    ) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
        """The running tool and what it prints; no process of it is left when this ends.

        The pipe is ours and not asyncio's, whose `wait` would wait for everybody who has the pipe, daemons too.
        """
        limits = {
            "private_bytes": private_bytes(self.limits.memory_bytes),
            "file_bytes": self.limits.file_bytes,
            "cpu_s": self.limits.cpu_s,
            "tasks": _tasks_of_this_machine() + 4 * self.limits.processes,
        }
        async with _pipe() as (printed, writing_end):
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(LAUNCHER), orjson.dumps(limits).decode(), *argv),
                    cwd=cwd,
                    env=dict(env),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writing_end,
                    stderr=writing_end,
                    start_new_session=True,
                )
            finally:
                os.close(writing_end)
            try:
                yield process, printed
            finally:
                if process.returncode is None:
                    self._kill(process.pid, env["KNARR_SAGA_ID"])
                    await process.wait()

    def _judge(self, argv: tuple[str, ...], exit_code: int, seen: _Seen) -> None:
        if seen.over is not None:
            raise seen.over
        if exit_code == 0:
            return
        last = tuple(seen.lines)[-_LIMIT_LINES:]
        if out_of_room(last):
            raise StorageFull("The disk has no room left for the build", todo="Make room under the platform's home.")
        if error := limit_error(exit_code, last, self.limits):
            raise error
        raise ToolFailed(argv, exit_code, seen.lines)

    async def _watch(self, pid: int, seen: _Seen) -> None:
        """Kill the tool when all its processes together take too much."""
        while True:
            await asyncio.sleep(_WATCH_S)
            count, resident = await asyncio.to_thread(_usage, pid)
            if resident > self.limits.memory_bytes:
                seen.over = out_of_memory(self.limits)
            elif count > self.limits.processes:
                seen.over = too_many_processes(count, self.limits)
            if seen.over is not None:
                _signal_group(pid)
                return

    async def stop(self, saga_id: str | None = None) -> int:
        """Kill what is left of that build, or of every build of this builder; how many processes there were."""
        return await asyncio.to_thread(self._kill_marked, saga_id)

    def _kill(self, pid: int, saga_id: str) -> None:
        """The session's group and everything below it, then those that moved away."""
        children = _below(pid)
        _signal_group(pid)
        for child in children:
            _kill_one(child)
        self._kill_marked(saga_id)

    def _kill_marked(self, saga_id: str | None) -> int:
        """Again until none is found: one may have forked while we looked. Reaping is left to whoever started them."""
        killed: set[int] = set()
        for _ in range(_KILL_ROUNDS):
            found = list(self._marked(saga_id))
            if not found:
                break
            for process in found:
                _kill_one(process)
                killed.add(process.pid)
            time.sleep(_KILL_PAUSE_S)
        return len(killed)

    def _marked(self, saga_id: str | None) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                environ = process.environ()
                if environ.get("KNARR_BUILD_HOME") != self._home or process.status() == psutil.STATUS_ZOMBIE:
                    continue
            except (psutil.Error, OSError):
                continue  # gone, or another user's
            if saga_id is None or environ.get("KNARR_SAGA_ID") == saga_id:
                yield process


@asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """A reader, and the descriptor to write to, which whoever gets it closes."""
    reading_end, writing_end = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading_end, "rb", buffering=0)
    )
    try:
        yield reader, writing_end
    finally:
        transport.close()


async def _read(printed: asyncio.StreamReader, output: BuildOutput, seen: _Seen) -> None:
    """Until every writer of the pipe is gone; goes on when the output cannot be written, so that nobody blocks."""
    partial = b""
    failure: Exception | None = None
    while piece := await printed.read(_PIECE_BYTES):
        *lines, partial = (partial + piece)[-2 * _PIECE_BYTES :].split(b"\n")
        seen.lines.extend(lines)
        try:
            if failure is None:
                await asyncio.to_thread(output.write, piece)
        except (OSError, StorageFull) as error:
            failure = error
    seen.lines.append(partial)
    if failure is not None:
        raise failure


def _usage(pid: int) -> tuple[int, int]:
    """Processes from this one downward, and their resident bytes."""
    resident = 0
    processes = _below(pid)
    for process in processes:
        try:
            resident += process.memory_info().rss
        except (psutil.Error, OSError):
            continue  # gone
    return len(processes), resident


def _below(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _signal_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left in it


def _kill_one(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return  # gone


def _tasks_of_this_machine() -> int:
    """Threads that exist: the limit counts all of a user's, so a build's own come on top of them."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return len(psutil.pids()) * 8


def _tool_path(path: str) -> str:
    own = Path(sys.prefix) / "bin" if sys.prefix != sys.base_prefix else None
    return os.pathsep.join(each for each in path.split(os.pathsep) if each and Path(each) != own) or os.defpath
