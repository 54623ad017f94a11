"""One instance: its process is started, observed, watched, and started again when it ends by itself.

Until it was `kept` an end is a verdict on the release (`proved` raises it) and nothing is started again; afterwards an
end is a crash, and the next start comes after a wait that grows from half a second to a minute.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from seedwork.clock import Clock
from services.deployer.adapters.probe import REFUSED, probe
from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.output import AppLog, Output
from services.deployer.adapters.router import Backend
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import InstanceState

log = structlog.get_logger(__name__)

LAUNCHER = Path(__file__).with_name("launcher.py")
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
STABLE_S = 60.0
"""Who has run for so long begins again with the shortest wait."""
_PROBE_S = 0.01
_SLOWEST_PROBE_S = 0.25
"""Between two probes goes a tenth of the time that the start has taken so far: nobody waits longer than that for us."""
_LOOK_S = 1.0
"""How often the process table is read while an instance does not answer."""
_REST_OF_OUTPUT_S = 2.0

AGAIN = "Run it on your machine with PORT set to see the same."
_NEEDS_LONGER = "If it only needs longer, set KNARR_START_TIMEOUT_S higher."


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a process is started."""

    label: str
    """`web.1`: whose output it is."""
    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    """Blotted out of the lines that errors carry."""
    cwd: Path
    record: str
    """The name of its entry in the records: begins with the saga's id."""


class Process:
    """A running process group with its output. `end` must be called, whatever happens."""

    def __init__(self, command: Command, child: asyncio.subprocess.Process, output: Output) -> None:
        self.command = command
        self.output = output
        self._child = child
        self.pid = child.pid

    @classmethod
    async def start(
        cls, command: Command, *, app_log: AppLog, records: leftovers.Records, env: Mapping[str, str]
    ) -> "Process":
        """Start it in a session of its own; `env` is added to the command's.

        Must run in a thread that lives as long as knarr: the kernel ties the process to it (see `launcher`).
        """
        output = Output(app_log, command.label)
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                os.fspath(LAUNCHER),
                str(os.getpid()),
                *command.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.write_fd,
                stderr=output.write_fd,
                env={**command.env, **env},
                cwd=command.cwd,
                start_new_session=True,
            )
        finally:
            output.started()
        records.add(command.record, child.pid)
        return cls(command, child, output)

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        status = await self._child.wait()
        await self.output.ended(0.2)  # its last words; what its children still print does not hold us up
        return status

    async def terminate(self, grace_s: float) -> None:
        """SIGTERM to the whole group, and wait until all of it has ended or the grace is over."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._child.wait()
                while await asyncio.to_thread(leftovers.group_is_alive, self.pid):  # noqa: ASYNC110  nobody is told of it
                    await asyncio.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to whatever is left of the group."""
        self._signal(signal.SIGKILL)

    async def end(self, records: leftovers.Records) -> None:
        """Kill the group, forget its record, read what it said last."""
        self.kill()
        await self._child.wait()
        self.kill()
        records.remove(self.command.record)
        await self.output.ended(_REST_OF_OUTPUT_S)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long what may take."""

    start_s: float
    settle_s: float
    grace_s: float
    elsewhere_s: float
    """For an app that listens, but not on PORT."""


@dataclass(frozen=True, slots=True)
class _Instead:
    """What an instance does instead of answering, and what to do about it."""

    what: str
    todo: str
    elsewhere: bool = False
    """It listens, and not on PORT."""


class Supervised:
    """An instance and whoever keeps it running.

    Args:
        command: How it is started.
        is_web: Whether it gets a PORT and must answer on it.
        health_path: What must answer; None: a TCP connection is enough.
        patience: The limits.
        app_log: Where its output goes.
        records: Where its process is remembered.
        clock: Time for people.
        changed: Called after each change of `state`.
    """

    def __init__(
        self,
        command: Command,
        *,
        is_web: bool,
        health_path: str | None,
        patience: Patience,
        app_log: AppLog,
        records: leftovers.Records,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.command = command
        self.is_web = is_web
        self.state: InstanceState = "starting"
        self.note = ""
        self.restarts = 0
        self.backend: Backend | None = None
        self._health_path = health_path
        self._patience = patience
        self._app_log = app_log
        self._records = records
        self._clock = clock
        self._changed = changed
        self._kept = False
        self._stopping = False
        self._process: Process | None = None
        self._fault: AppDoesNotStart | None = None
        self._decided = asyncio.Event()
        self.since_ms = clock.now_ms()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"instance-{self.command.record}")
        self._task.add_done_callback(self._over)

    def keep(self) -> None:
        """From now on it is started again whenever it ends."""
        self._kept = True

    async def proved(self) -> None:
        """Wait for the first verdict; later: whether it is up now.

        Raises:
            AppDoesNotStart: It is not.
        """
        await self._decided.wait()
        if self.state != "up":
            raise self._fault or AppDoesNotStart(f"{self.command.label} does not run", why=self.note, todo=AGAIN)

    @property
    def decided(self) -> bool:
        """Whether there is a verdict."""
        return self._decided.is_set()

    async def stop(self) -> None:
        """SIGTERM, the grace, SIGKILL; nothing of it runs on return."""
        self._stopping = True
        self._become("stopping")
        if self._task is None:
            return
        try:
            if process := self._process:
                await process.terminate(self._patience.grace_s)
                process.kill()
            else:
                self._task.cancel()
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()

    async def _run(self) -> None:
        crashes = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                fault = await self._live_once()
            except (OSError, ValueError) as error:  # no process, no pipe, no folder; a name that no variable can have
                fault = AppDoesNotStart(f"{self.command.label} could not be started", why=str(error))
            except AppDoesNotStart as error:
                fault = error
            self._decide(fault)
            if self._stopping or not self._kept:
                self._become("stopping" if self._stopping else "crashed", fault.what)
                return
            crashes = 1 if asyncio.get_running_loop().time() - began > STABLE_S else crashes + 1
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(crashes - 1, 10))
            self.restarts += 1
            self._become("crashed", f"{fault.what}; it starts again in {wait_s:g} s")
            self._app_log.say(self.command.label, f"{fault.what}; it starts again in {wait_s:g} s")
            log.warning("an instance ended", instance=self.command.record, why=fault.what, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            self._become("starting")

    async def _live_once(self) -> AppDoesNotStart:
        """One process from its start to its end; why it ended."""
        port = _free_port() if self.is_web else None
        process = await Process.start(
            self.command,
            app_log=self._app_log,
            records=self._records,
            env={"PORT": str(port)} if port else {},
        )
        self._process = process
        exited = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._until_ready(process, port))
        try:
            await asyncio.wait({exited, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                self.backend = ready.result()
                self._decide(None)
                self._become("up")
            return self._ended(await exited, was_up=self.state == "up")
        finally:
            self.backend = None
            self._process = None
            for task in (exited, ready):
                task.cancel()
            await asyncio.gather(exited, ready, return_exceptions=True)
            await process.end(self._records)

    async def _until_ready(self, process: Process, port: int | None) -> Backend | None:
        """Until it answers (or, without a port, has lived for a moment).

        Raises:
            AppDoesNotStart: Its time is over; the text says what it does instead.
        """
        if port is None:
            await asyncio.sleep(self._patience.settle_s)
            return None
        loop = asyncio.get_running_loop()
        began = loop.time()
        until, look_at = began + self._patience.start_s, began + _LOOK_S
        elsewhere_since: float | None = None
        while True:
            fault = REFUSED
            for host in ("127.0.0.1", "::1"):
                answer = await probe(host, port, self._health_path)
                if answer is None:
                    return Backend(host, port)
                if answer != REFUSED:
                    fault = answer
                    break
            now = loop.time()
            if now >= until:
                instead = await self._instead(process, port, fault)
                raise self._not_ready(process, instead, f"waited {self._patience.start_s:g} s for it")
            if now >= look_at:
                look_at = now + _LOOK_S
                instead = await self._instead(process, port, fault)
                self.note = instead.what
                elsewhere_since = (now if elsewhere_since is None else elsewhere_since) if instead.elsewhere else None
                if elsewhere_since is not None and now - elsewhere_since >= self._patience.elsewhere_s:
                    raise self._not_ready(process, instead, f"it has done so for {self._patience.elsewhere_s:g} s")
            await asyncio.sleep(min(_SLOWEST_PROBE_S, max(_PROBE_S, (now - began) / 10)))

    async def _instead(self, process: Process, port: int, fault: str) -> _Instead:
        name = self.command.label
        if fault != REFUSED:
            return _Instead(
                f"{name} listens on PORT, but {fault}",
                f"Make the health path answer 2xx or 3xx, or change it in app.json. {_NEEDS_LONGER}",
            )
        ports = await asyncio.to_thread(leftovers.listening_ports, process.pid)
        if port in ports:
            return _Instead(
                f"{name} listens on PORT ({port}), but not on the loopback address",
                "Make it listen on 0.0.0.0, not on one network's address.",
            )
        todo = "Make it listen on the port that the environment variable PORT names."
        if ports:
            numbers = ", ".join(map(str, sorted(ports)))
            return _Instead(
                f"{name} listens on port {numbers} instead of PORT ({port})",
                f"{todo} If it opens that port first and PORT much later, set KNARR_WRONG_PORT_S higher.",
                elsewhere=True,
            )
        return _Instead(f"{name} listens on no port; PORT is {port}", f"{todo} {_NEEDS_LONGER}")

    def _not_ready(self, process: Process, instead: _Instead, why: str) -> AppDoesNotStart:
        tail = process.output.tail(secrets=self.command.secrets)
        return AppDoesNotStart(instead.what, why=why, todo=instead.todo, log_tail=tail)

    def _ended(self, status: int, *, was_up: bool) -> AppDoesNotStart:
        how = f"exited with status {status}" if status >= 0 else f"was ended by {_signal_name(-status)}"
        tail = self._process.output.tail(secrets=self.command.secrets) if self._process else ()
        when = "" if was_up else " before it answered" if self.is_web else " at once"
        why = "its last lines say more" if tail else "it printed nothing"
        if status == -signal.SIGKILL:
            why = f"perhaps the machine ran out of memory; {why}"
        return AppDoesNotStart(f"{self.command.label} {how}{when}", why=why, todo=AGAIN, log_tail=tail)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for a verdict any more; a fault of ours is said."""
        self._decided.set()
        if not task.cancelled() and (error := task.exception()):
            self._become("crashed", f"knarr stopped watching it: {error}")
            log.error("an instance is not watched any more", instance=self.command.record, exc_info=error)

    def _decide(self, fault: AppDoesNotStart | None) -> None:
        if not self._decided.is_set():
            self._fault = fault
            self._decided.set()

    def _become(self, state: InstanceState, note: str = "") -> None:
        self.state = state
        self.note = note
        self.since_ms = self._clock.now_ms()
        self._changed()


def _free_port() -> int:
    """A loopback port that nobody has now; the app is told it at once, so that it is seldom lost in between."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
