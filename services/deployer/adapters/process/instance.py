"""One instance: its process is started, checked, watched, and started again when it ends by itself.

Until it was `kept` an end is a verdict on the release (`proved` raises it) and nothing is started again; afterwards an
end is a crash, and the next start comes after a wait that grows from half a second to a minute. A failed liveness check
ends the process and counts as a crash.
"""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError, StorageFull, Unavailable
from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.checking import AGAIN, Checking
from services.deployer.adapters.process.output import AppLog
from services.deployer.adapters.process.process import Command, Process
from services.deployer.adapters.router import Backend
from services.deployer.checks import Checks
from services.deployer.errors import AppDoesNotStart
from services.deployer.ports import InstanceState

log = structlog.get_logger(__name__)

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
STABLE_S = 60.0
"""After so long a run the next wait is the shortest one again."""
_FAULTS_OF_THE_APP = frozenset({errno.E2BIG, errno.EINVAL, errno.ENAMETOOLONG})
"""Errors of a start that come from the app's arguments and variables; all others are faults of the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Limits of one instance in seconds."""

    grace_s: float
    """From SIGTERM to SIGKILL."""
    elsewhere_s: float
    """For an app that listens, but not on PORT."""


class Supervised:
    """An instance with the task that keeps it running.

    Args:
        command: How it is started.
        is_web: Whether it gets a PORT.
        port: Its port, whatever it is told; None: a free one at each start.
        checks: All of its health checks.
        times: The limits.
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
        port: int | None,
        checks: Checks,
        times: Times,
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
        self.next_start_ms: int | None = None
        self.first_answer_ms: int | None = None
        """Milliseconds from the first start to the moment when its checks had passed."""
        self.log_tail: tuple[str, ...] = ()
        """Last lines before the last end."""
        self.backend: Backend | None = None
        self._port = port
        self._checks = checks
        self._times = times
        self._app_log = app_log
        self._records = records
        self._clock = clock
        self._changed = changed
        self._kept = False
        self._stopping = False
        self._process: Process | None = None
        self._fault: KnarrError | None = None
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
            Unavailable: The machine could not start it.
        """
        await self._decided.wait()
        if self.state != "up":
            raise self._fault or AppDoesNotStart(f"{self.command.label} does not run", why=self.note, todo=AGAIN)

    @property
    def decided(self) -> bool:
        """Whether there is a verdict."""
        return self._decided.is_set()

    @property
    def is_over(self) -> bool:
        """Whether nothing starts it again any more, although it was not stopped."""
        return self._task is not None and self._task.done() and not self._stopping

    async def stop(self) -> None:
        """SIGTERM, the grace, SIGKILL; nothing of it runs on return."""
        self._stopping = True
        self._become("stopping")
        if self._task is None:
            return
        try:
            if process := self._process:
                await process.terminate(self._times.grace_s)
                await process.kill()
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
                fault: KnarrError = await self._live_once()
            except (OSError, ValueError) as error:
                fault = _cannot_start(self.command.label, error)
            except KnarrError as error:
                fault = error
            self.log_tail = fault.log_tail
            self._decide(fault)
            if self._stopping or not self._kept:
                self._become("stopping" if self._stopping else "crashed", fault.what)
                return
            crashes = 1 if asyncio.get_running_loop().time() - began > STABLE_S else crashes + 1
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(crashes - 1, 10))
            self.restarts += 1
            self.next_start_ms = self._clock.now_ms() + int(wait_s * 1000)
            self._become("crashed", f"{fault.what}; it starts again in {wait_s:g} s")
            self._app_log.say(self.command.label, f"{fault.what}; it starts again in {wait_s:g} s")
            log.warning(
                "instance.ended",
                app=self.command.env.get("KNARR_APP"),
                process=self.command.label,
                instance=self.command.record,
                why=fault.what,
                next_start_s=wait_s,
            )
            await asyncio.sleep(wait_s)
            self.next_start_ms = None
            self._become("starting")

    async def _live_once(self) -> AppDoesNotStart:
        """One process from its start to its end; why it ended."""
        began_ms = self._clock.now_ms()
        port = (self._port or _free_port()) if self.is_web else None
        env = {"PORT": str(port)} if port else {}
        process = await Process.start(self.command, app_log=self._app_log, records=self._records, env=env)
        self._process = process
        checking = Checking(
            process,
            port=port,
            checks=self._checks,
            env=env,
            elsewhere_s=self._times.elsewhere_s,
            note=self._say_what_is_waited_for,
        )
        exited = asyncio.create_task(process.wait())
        checked = asyncio.create_task(self._started(checking, began_ms))
        try:
            await asyncio.wait({exited, checked}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return self._ended(exited.result(), was_up=self.state == "up")
            dead = checked.result()
            tail = process.output.tail(secrets=self.command.secrets)
            await process.terminate(self._times.grace_s)
            return AppDoesNotStart(dead, why="it was ended and starts again", log_tail=tail)
        finally:
            self.backend = None
            self._process = None
            for task in (exited, checked):
                task.cancel()
            await asyncio.gather(exited, checked, return_exceptions=True)
            await process.end(self._records)

    async def _started(self, checking: Checking, began_ms: int) -> str:
        """Until its checks have passed; then until a liveness check has failed; what it does then."""
        backend = await checking.until_started()
        if self.first_answer_ms is None:
            self.first_answer_ms = self._clock.now_ms() - began_ms
        self.backend = backend
        self._decide(None)
        self._become("up")

        def ready(fault: str | None) -> None:
            self.backend = None if fault else backend
            self._become("starting" if fault else "up", fault or "")

        return await checking.until_dead(ready)

    def _say_what_is_waited_for(self, text: str) -> None:
        self.note = text

    def _ended(self, status: int, *, was_up: bool) -> AppDoesNotStart:
        how = f"exited with status {status}" if status >= 0 else f"was ended by {_signal_name(-status)}"
        tail = self._process.output.tail(secrets=self.command.secrets) if self._process else ()
        when = "" if was_up else " before it answered" if self.is_web else " at once"
        why = "its last lines say more" if tail else "it printed nothing"
        if self.command.cgroup is not None and self.command.cgroup.ran_out_of_memory():
            why = f"it used more memory than it may (KNARR_APP_MEMORY_MB); {why}"
        elif status == -signal.SIGKILL:
            why = f"perhaps the machine ran out of memory; {why}"
        return AppDoesNotStart(f"{self.command.label} {how}{when}", why=why, todo=AGAIN, log_tail=tail)

    def _over(self, task: asyncio.Task[None]) -> None:
        """There will be no verdict any more; a fault of ours is said."""
        self._decided.set()
        if not task.cancelled() and (error := task.exception()):
            self._become("crashed", f"knarr stopped watching it: {error}")
            log.error("an instance is not watched any more", instance=self.command.record, exc_info=error)

    def _decide(self, fault: KnarrError | None) -> None:
        if not self._decided.is_set():
            self._fault = fault
            self._decided.set()

    def _become(self, state: InstanceState, note: str = "") -> None:
        self.state = state
        self.note = note
        self.since_ms = self._clock.now_ms()
        self._changed()


def _cannot_start(label: str, error: OSError | ValueError) -> KnarrError:
    """Whose fault it is that there is no process: the app's own words, or the machine."""
    if isinstance(error, ValueError) or error.errno in _FAULTS_OF_THE_APP:
        return AppDoesNotStart(f"{label} could not be started", why=str(error))
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("The disk has no room left", why=str(error), todo="Make room under the platform's home.")
    return Unavailable(f"{label} could not be started on this machine", why=str(error))


def _free_port() -> int:
    """A loopback port that is free now; the app is given it at once, so that it is seldom lost in between."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
