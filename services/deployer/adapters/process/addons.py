"""Add-ons as processes of this machine: one server for each, on a loopback port of its own.

```
addons/<app id>/<name>/port       the port, chosen once
addons/<app id>/<name>/data/      the server's data
addons/<app id>/<name>/private/   configuration and sockets; secrets are here
addons/<app id>/<name>/server.log
```

A server runs as long as knarr runs, is started again when it ends, and gets the time to write its memory when knarr
stops. PostgreSQL refuses to run as root: as root it is started in a user namespace, where it has another number.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import structlog

from seedwork.archives import disk_errors
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.process import addon_servers as servers
from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.addon_servers import Place, Programs
from services.deployer.adapters.process.output import AppLog
from services.deployer.adapters.process.process import Command, Process
from services.deployer.errors import AddOnDoesNotStart, CannotRun
from services.deployer.ports import AddOn, Note

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_GRACE_S = 30.0
"""Time in seconds for a server to write what it has in memory."""
_SET_UP_S = 300.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_STARTS = 5
"""Ends of a server before `provide` gives up."""
_TAIL_LINES = 30
_ANSWER_S = 5.0
_LOG_BYTES = 4 * 1024 * 1024


class _Server:
    """A server that is kept running."""

    def __init__(self, addon: AddOn, place: Place, command: Command, records: leftovers.Records) -> None:
        self.addon = addon
        self.place = place
        self.ends = 0
        self._command = command
        self._records = records
        self._log = AppLog(place.secrets.parent / "server.log", max_bytes=_LOG_BYTES)
        self._process: Process | None = None
        self._task = asyncio.create_task(self._run(), name=f"addon-{command.record}")

    @property
    def tail(self) -> tuple[str, ...]:
        """Last lines, without the password."""
        return self._process.output.tail(secrets=[self.addon.password]) if self._process else ()

    async def stop(self) -> None:
        """End the server, with time to write its memory."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # PostgreSQL: SIGINT does not wait for its clients
                os.killpg(process.pid, signal.SIGINT if self.addon.kind == "postgres" else signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await process.wait()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._log.close()

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            self._process = await Process.start(self._command, app_log=self._log, records=self._records, env={})
            try:
                status = await self._process.wait()
            finally:
                await self._process.end(self._records)
            self.ends += 1
            log.warning("addon.ended", app=self.addon.app, addon=self.addon.name, status=status, next_start_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, wait_s * 2)


class ProcessAddOns:
    """See `AddOns`.

    Args:
        home: The deployer's folder.
        path: Where server programs are looked for first, as in PATH.
        start_timeout_s: Time in seconds for a server to let its user in.
    """

    def __init__(self, home: Path, *, path: str, start_timeout_s: float) -> None:
        self._home = home
        self._programs = servers.find(path)
        self._start_timeout_s = start_timeout_s
        self._records = leftovers.Records(home / "run")
        self._running: dict[tuple[str, str], _Server] = {}
        self._lock = asyncio.Lock()

    @property
    def kinds(self) -> AbstractSet[str]:
        """Kinds whose programs are on this machine."""
        return frozenset(self._programs)

    def address(self, app_id: str, name: str, port: int) -> tuple[str, int]:  # noqa: ARG002  the port's signature
        """See `AddOns.address`."""
        return "127.0.0.1", _port(self._folder(app_id, name))

    async def provide(self, addon: AddOn, *, note: Note) -> None:
        """See `AddOns.provide`."""
        key = (addon.app_id, addon.name)
        async with self._lock:
            if key not in self._running:
                self._running[key] = await self._start(addon, note)
        await self._until_it_answers(self._running[key], note)

    async def withdraw(self, app_id: str, name: str) -> Sequence[str]:
        """See `AddOns.withdraw`."""
        async with self._lock:
            if server := self._running.pop((app_id, name), None):
                await server.stop()
            folder = self._folder(app_id, name)
            if not await asyncio.to_thread(folder.is_dir):
                return []
            await asyncio.to_thread(shutil.rmtree, folder)
            return [f"add-on {name}", f"the data of {name}"]

    async def close(self) -> None:
        """Stop all servers."""
        async with self._lock:
            running, self._running = list(self._running.values()), {}
            await asyncio.gather(*(server.stop() for server in running))

    async def _start(self, addon: AddOn, note: Note) -> _Server:
        programs = self._programs.get(addon.kind)
        if programs is None:
            raise CannotRun(
                f"The add-on {addon.name} cannot be provided",
                why=f"this machine has no server program for {addon.kind}",
                todo="Install one, or run apps with Docker: `knarr up --runtime docker`.",
                code="addons_unavailable",
            )
        await self._check_version(addon, programs)
        folder = self._folder(addon.app_id, addon.name)
        port = await asyncio.to_thread(_port, folder)
        place = Place(data=folder / "data", secrets=folder / "private", port=port)
        await asyncio.to_thread(_write, place, servers.files(addon, place, programs))
        if not await asyncio.to_thread(place.data.is_dir):
            note(f"{addon.name}: making its data folder")
            await self._set_up(addon, place, programs)
        return _Server(addon, place, self._command(addon, place, programs), self._records)

    async def _check_version(self, addon: AddOn, programs: Programs) -> None:
        if addon.version is None:
            return
        status, printed = await _finished([str(programs.server), "--version"], env=_environment())
        version = servers.version_in(printed.decode(errors="replace"), addon.kind) if status == 0 else None
        if version is None or not servers.satisfies(version, addon.version):
            raise CannotRun(
                f"The add-on {addon.name} is asked for in version {addon.version}",
                why=f"this machine has {addon.kind} {version or 'in an unknown version'}",
                todo="Ask for that version or for none, or run apps with Docker: `knarr up --runtime docker`.",
                code="addons_unavailable",
            )

    async def _set_up(self, addon: AddOn, place: Place, programs: Programs) -> None:
        """Make the data folder; it has its name only when it is complete."""
        draft = Place(data=place.data.with_name("new"), secrets=place.secrets, port=place.port)
        await asyncio.to_thread(_fresh, draft.data)
        for step in servers.set_up(addon, draft, programs):
            argv = _as_another_user(addon.kind, step.argv)
            status, printed = await _finished(argv, env=_environment(), stdin=step.stdin)
            if status:
                lines = blotted(printed.splitlines()[-_TAIL_LINES:], [addon.password])
                raise AddOnDoesNotStart(
                    f"The data folder of the add-on {addon.name} cannot be made",
                    why=f"{Path(step.argv[0]).name} ended with status {status}",
                    log_tail=lines,
                )
        with disk_errors():
            await asyncio.to_thread(draft.data.rename, place.data)

    def _command(self, addon: AddOn, place: Place, programs: Programs) -> Command:
        env = {
            **_environment(),
            "HOME": str(place.secrets),
            leftovers.MARK: leftovers.home_id_of(self._home),
            leftovers.APP_ID: addon.app_id,
        }
        return Command(
            label=addon.name,
            arguments=_as_another_user(addon.kind, servers.command(addon, place, programs)),
            env=env,
            secrets=(addon.password,),
            cwd=place.data,
            record=f"addon-{addon.app_id}.{addon.name}",
        )

    async def _until_it_answers(self, server: _Server, note: Note) -> None:
        addon = server.addon
        clock = asyncio.get_running_loop().time
        began, ends = clock(), server.ends
        while not await _answers(addon, server.place.port):
            if server.ends - ends >= _STARTS or clock() - began > self._start_timeout_s:
                tail = server.tail
                await self._give_up(server)
                raise AddOnDoesNotStart(
                    f"The add-on {addon.name} does not take connections",
                    why=f"its server ended {server.ends - ends} times in {clock() - began:.0f} s",
                    log_tail=tail,
                )
            note(f"{addon.name}: waiting until it takes connections")
            await asyncio.sleep(_POLL_S)

    async def _give_up(self, server: _Server) -> None:
        async with self._lock:
            if self._running.get((server.addon.app_id, server.addon.name)) is server:
                del self._running[server.addon.app_id, server.addon.name]
                await server.stop()

    def _folder(self, app_id: str, name: str) -> Path:
        return self._home / "addons" / app_id / name


def _port(folder: Path) -> int:
    """Return the port of an add-on; at the first call a free one is chosen and written down."""
    file = folder / "port"
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(file.read_text())
    with disk_errors(), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        draft = file.with_name("port.new")
        draft.write_text(f"{port}\n")
        draft.rename(file)
    return port


def _write(place: Place, files: Mapping[str, bytes]) -> None:
    with disk_errors():
        place.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in files.items():
            path = place.secrets / name
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)


def _fresh(folder: Path) -> None:
    with disk_errors():
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, mode=0o700)


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC"}


def _as_another_user(kind: str, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command as root has to start it: in a user namespace, and still ended with knarr."""
    if os.geteuid() != 0 or kind == "redis":
        return tuple(argv)
    if kind == "mysql":
        return (*argv, "--user=root")
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    return (*namespace, "setpriv", "--pdeathsig", "KILL", *argv)


async def _finished(argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a command to its end: its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_SET_UP_S):
            printed, _ = await process.communicate(stdin)
    except TimeoutError:
        return 124, b"it took longer than %d s" % _SET_UP_S
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return process.returncode or 0, printed


async def _answers(addon: AddOn, port: int) -> bool:
    """Return whether the server on that port greets as its kind does."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(servers.hello(addon))
            return servers.greets(addon.kind)(await reader.read(64))
    except (OSError, TimeoutError):
        return False
    finally:
        if writer:
            writer.transport.abort()
