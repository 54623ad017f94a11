"""Releases as local processes: folders, instances and routes brought together behind the port `Runtime`.

What runs is known in this process only, and dies with it: the kernel kills the instances when knarr is killed, a
graceful stop ends them, and `recover` kills whatever is left of both before it starts what the database says. So
each thing runs exactly once.
"""

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from ocistore.store import ImageStore
from seedwork.clock import Clock
from seedwork.errors import Conflict, InvalidInput, KnarrError
from services.deployer.adapters import warming
from services.deployer.adapters.counts import CountsBySaga
from services.deployer.adapters.process import leftovers, volumes
from services.deployer.adapters.process.addons import ProcessAddOns
from services.deployer.adapters.process.cgroups import Bounds, Cgroups, open_cgroups
from services.deployer.adapters.process.checking import AGAIN
from services.deployer.adapters.process.folders import Folders, Root
from services.deployer.adapters.process.instance import Supervised, Times
from services.deployer.adapters.process.oneoff import OneOff
from services.deployer.adapters.process.output import AppLog
from services.deployer.adapters.process.process import Command, Process
from services.deployer.adapters.process.repairing import Repairs, lost_files
from services.deployer.adapters.process.units import Unit, fixed_port, in_the_way, refuse_port
from services.deployer.adapters.router import Backend, Router
from services.deployer.checks import Patience, checks_of
from services.deployer.errors import CannotRun, Fenced, ReleaseCommandFailed
from services.deployer.ports import (
    Address,
    Drift,
    Instance,
    Needed,
    Note,
    Release,
    RunningCommand,
    Standing,
    Traffic,
    Warm,
)

log = structlog.get_logger(__name__)

BY_CGROUP = "a cgroup for each instance"
BY_SUBREAPER = "a subreaper for each instance"
STARTING = "It is starting: try again in a moment."
_NO_RELEASE = "It has no release yet."
_REPLACED = "It is being replaced: its port is fixed, so the old release stops before the new one starts."
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_FIRST_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long, and how much."""

    start_timeout_s: float = 60.0
    start_timeout_max_s: float = 600.0
    wrong_port_s: float = 20.0
    grace_s: float = 10.0
    drain_s: float = 10.0
    release_command_timeout_s: float = 600.0
    settle_s: float = 1.0
    bounds: Bounds = field(default_factory=Bounds)
    """Of each instance, where the machine has control groups."""
    log_max_bytes: int = 16 * 1024 * 1024


class ProcessRuntime:
    """See `Runtime`.

    Args:
        home: The deployer's folder.
        images: Where images are read from.
        router: The apps' ports.
        clock: Time for people.
        limits: How long, and how much.
        addons: Servers of add-ons; they run as long as this runtime.
    """

    name = "process"

    def __init__(
        self,
        home: Path,
        *,
        images: ImageStore,
        router: Router,
        clock: Clock,
        limits: Limits,
        addons: ProcessAddOns | None = None,
    ) -> None:
        self._addons = addons
        self.addons: AbstractSet[str] = addons.kinds if addons else frozenset()
        self._home = home
        self._router = router
        self._counts = CountsBySaga()
        self._clock = clock
        self._limits = limits
        self._folders = Folders(home, images)
        self._records = leftovers.Records(home / "run")
        self._units: dict[str, Unit] = {}
        self._changing: Counter[str] = Counter()
        """Calls that start or stop a release, by app: what differs meanwhile is no drift."""
        self._repairs = Repairs(clock)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._served: dict[str, str] = {}
        self._fences: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._logs: dict[str, AppLog] = {}
        self._background: dict[str, asyncio.Task[None]] = {}
        self._one_off: set[OneOff] = set()
        self._home_id = ""
        self._cgroups: Cgroups | None = None
        self._no_cgroups = "the runtime has not started yet"
        self._patience = Patience(
            start_s=limits.start_timeout_s, start_max_s=limits.start_timeout_max_s, settle_s=limits.settle_s
        )

    # ── a release, step by step ──────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """See `Runtime.expose`."""
        route = await self._router.open_free(app_id, app, taken=taken)
        return Address(url=self._router.url(route.port), port=route.port)

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`."""
        refuse_port(release, self._units.values())
        await self._placed(release)

    async def run_release_command(self, release: Release) -> None:
        """See `Runtime.run_release_command`."""
        if release.release_command is None:
            return
        app_log = self._log(release.app_id)
        root = await self._placed(release)
        command = self._command(release, root, "release.1", release.release_command)
        app_log.say(command.label, f"release {release.number}: running the release command")
        process = await Process.start(command, app_log=app_log, records=self._records, env={})
        limit_s = self._limits.release_command_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                status = await process.wait()
            how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        except TimeoutError:
            status, how = 1, f"ran for longer than {limit_s:g} s (KNARR_RELEASE_COMMAND_TIMEOUT_S)"
        finally:
            await process.end(self._records)
        app_log.say(command.label, f"the release command {how}")
        if status:
            raise ReleaseCommandFailed(
                f"The release command {how}",
                why="nothing was switched over",
                todo=AGAIN,
                log_tail=process.output.tail(secrets=command.secrets),
            )

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        with self._changes(release.app_id):
            if not self._runs(release.saga_id):
                refuse_port(release, self._units.values())
                await self._make_way(release)
            async with self._lock(release.saga_id):
                if not self._runs(release.saga_id):
                    unit = Unit(release, await self._placed(release))
                    self._begin(unit)
                    self._units[release.saga_id] = unit

    def _runs(self, saga_id: str) -> bool:
        unit = self._units.get(saga_id)
        return unit is not None and unit.gave_way_to is None

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        unit = self._units.get(release.saga_id)
        if unit is None:
            raise Conflict("The release was stopped meanwhile", why=f"nothing runs for the saga {release.saga_id}")
        verdicts = [asyncio.create_task(each.proved()) for each in unit.instances]
        try:
            waiting: set[asyncio.Task[None]] = set(verdicts)
            while waiting:
                open_notes = [each.note for each in unit.instances if each.note and not each.decided]
                note(open_notes[0] if open_notes else f"waiting for {len(waiting)} of {len(verdicts)} instances")
                done, waiting = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for verdict in done:
                    verdict.result()
        finally:
            for verdict in verdicts:
                verdict.cancel()
            await asyncio.gather(*verdicts, return_exceptions=True)
        unit.keep()

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """See `Runtime.switch`."""
        if fence < self._fences.get(app_id, 0):
            raise Fenced(
                "The traffic stays where it is",
                why=f"it was moved under the fence {self._fences[app_id]}, and this is {fence}",
                todo="A newer deployment of the app is live; nothing is to be done.",
            )
        self._fences[app_id] = fence
        if saga_id is None:
            self._served.pop(app_id, None)
        else:
            self._served[app_id] = saga_id
        self._refresh(app_id)

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`."""
        if not _SAFE_NAME.fullmatch(saga_id):
            raise InvalidInput("That is no saga's id", why=repr(saga_id[:100]))
        with self._changes(app_id):
            found = await self._remove(app_id, saga_id)
            await self._come_back(app_id)
        return found

    @contextlib.contextmanager
    def _changes(self, app_id: str) -> Iterator[None]:
        self._changing[app_id] += 1
        try:
            yield
        finally:
            self._changing[app_id] -= 1
            self._changing += Counter()  # drops zeros

    async def _remove(self, app_id: str, saga_id: str) -> list[str]:
        """Stop the saga's instances and remove everything that carries its label; return what was found."""
        found: list[str] = []
        await self._end_background(saga_id)
        if self._served.get(app_id) == saga_id:
            del self._served[app_id]
            await self._repairs.forget(app_id)
            self._refresh(app_id)
            found.append("the route")
        async with self._lock(saga_id):
            if unit := self._units.get(saga_id):
                found += [f"instance {each.command.label} of release {unit.release.number}" for each in unit.instances]
                await self._stop_unit(unit)
            found += await self._kill_marked({leftovers.SAGA: saga_id})
            await asyncio.to_thread(self._records.remove_of, saga_id)
            found += await self._folders.remove(saga_id)
        return found

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        found: list[str] = []
        for saga_id in [each.release.saga_id for each in self._units.values() if each.release.app_id == app_id]:
            found += await self._remove(app_id, saga_id)
        await self._end_background(app_id)
        await self._repairs.forget(app_id)
        found += await self._kill_marked({leftovers.APP_ID: app_id})
        if route := self._router.route(app_id):
            found.append(f"port {route.port}")
            await self._router.close(app_id)
        found += await asyncio.to_thread(self._log(app_id).remove)
        for known in (self._served, self._fences, self._troubles, self._logs):
            known.pop(app_id, None)
        return found

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        return [
            Instance(
                id=each.command.record,
                app_id=app_id,
                saga_id=unit.release.saga_id,
                release=unit.release.number,
                process=each.command.label,
                state=each.state,
                since_ms=each.since_ms,
                restarts=each.restarts,
                note=each.note,
                digest=unit.root.digest,
                next_start_ms=each.next_start_ms,
                first_answer_ms=each.first_answer_ms,
                log_tail=each.log_tail,
            )
            for unit in list(self._units.values())
            if unit.release.app_id == app_id
            for each in unit.instances
        ]

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:
        """See `Runtime.run_once`."""
        root = await self._placed(release)
        command = self._command(release, root, label, argv)
        try:
            started = await OneOff.start(command, records=self._records, ended=self._one_off.discard)
        except (OSError, ValueError) as error:
            raise CannotRun(f"The command {argv[0]!r} cannot be started", why=str(error)) from error
        self._one_off.add(started)
        return started

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:  # noqa: ARG002  a saga has one app
        """See `Runtime.traffic`."""
        return self._counts.traffic(saga_id)

    async def trouble(self, app_id: str) -> str:
        """See `Runtime.trouble`."""
        return self._troubles.get(app_id, "")

    async def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        async for piece in self._log(app_id).read(lines=lines, follow=follow):
            yield piece

    # ── from start to stop of knarr ──────────────────────────────────────────────────────────────────────────────

    async def recover(self, standing: Sequence[Standing]) -> None:
        """See `Runtime.recover`."""
        self._home_id = await asyncio.to_thread(leftovers.home_id_of, self._home)
        await asyncio.to_thread(self._open_cgroups)
        for each in standing:
            self._fences[each.app_id] = each.fence
            if each.saga_id:
                self._served[each.app_id] = each.saga_id
            try:
                await self._reopen(each)
            except Conflict as error:
                self._trouble(each, error)
                self._in_background(each.app_id, self._reopen_some_day(each))
        killed = await asyncio.to_thread(self._kill_leftovers)
        if killed:
            log.warning("processes of an earlier run were ended", count=killed)
        await self._folders.clear_unfinished()
        for each in standing:
            if each.saga_id:
                self._in_background(each.saga_id, self._bring_up(each))
            if each.warm:
                self._in_background(each.warm.saga_id, self._bring_up_warm(each, each.warm))

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:
        """See `Runtime.reconcile`. Only the release that has the traffic is compared: one that stays warm is not."""
        for each in standing:
            if not self._repairs.under_way(each.app_id):
                self._repairs.seen(each, await self._differing(each), partial(self._repair, each))
        return self._repairs.ledger.take()

    async def _differing(self, standing: Standing) -> list[str]:
        """What is not as the database says, in words; nothing under an older fence, or while a release changes."""
        if standing.fence < self._fences.get(standing.app_id, 0):
            return []
        found = []
        if not self._router.is_open(standing.app_id) and not self._in_hand(standing.app_id):
            found.append(f"port {standing.port} of the app is not open")
        unit = self._units.get(standing.saga_id or "")
        lost = unit is not None and await asyncio.to_thread(lost_files, unit)
        if not self._is_standing(standing) or unit is not self._units.get(standing.saga_id or ""):
            return found
        if unit is None and not any(fixed_port(each.release) for each in self._of_app(standing.app_id)):
            found.append("no instance of the release runs")
        elif unit is not None and unit.gave_way_to is not None:
            if not in_the_way(unit.release, self._units.values()):
                found.append(f"release {unit.release.number} made way for release {unit.gave_way_to}, which is gone")
        elif unit is not None and lost:
            found.append(f"files of release {unit.release.number} are gone")
        elif unit is not None:
            found += [f"{each.command.label} is not watched" for each in unit.instances if each.is_over]
        return found

    def _is_standing(self, standing: Standing) -> bool:
        """Whether its release has the traffic, also here, and is neither started nor stopped at this moment."""
        return (
            standing.saga_id is not None
            and self._served.get(standing.app_id) == standing.saga_id
            and not self._changing[standing.app_id]
            and not self._in_hand(standing.saga_id)
        )

    def _in_hand(self, name: str) -> bool:
        task = self._background.get(name)
        return task is not None and not task.done()

    def _of_app(self, app_id: str) -> list[Unit]:
        return [each for each in self._units.values() if each.release.app_id == app_id]

    async def _repair(self, standing: Standing) -> bool:
        """Make it as the database says; False: nothing differs any more."""
        found = await self._differing(standing)
        if not found:
            return False
        log.warning("drift.repair", app=standing.app, what=found)
        if not self._router.is_open(standing.app_id):
            await self._router.close(standing.app_id)
            try:
                await self._reopen(standing)
            except Conflict as error:
                self._trouble(standing, error)
                raise
            self._troubles.pop(standing.app_id, None)
        if not self._is_standing(standing):
            return True
        unit = self._units.get(standing.saga_id or "")
        if unit is None:
            release = await standing.load()
            if self._is_standing(standing):
                await self.start(release)
                self._units[release.saga_id].keep()
        elif unit.gave_way_to is not None:
            await self._come_back(standing.app_id)
        else:
            await self._restore(unit)
        self._refresh(standing.app_id)
        return True

    async def _restore(self, unit: Unit) -> None:
        """Unpack lost files again; replace instances that ran without them, or that nothing watches, one by one."""
        release = unit.release
        async with self._lock(release.saga_id):
            if self._units.get(release.saga_id) is not unit:
                return
            old = [each for each in unit.instances if each.is_over]
            if await asyncio.to_thread(lost_files, unit):
                old = list(unit.instances)
                await self._folders.remove(release.saga_id)
                unit.root = await self._placed(release)
            for each in old:
                await each.stop()
                process, label = each.command.label.rpartition(".")[0], each.command.label
                instance = self._instance(unit, process, label)
                unit.instances[unit.instances.index(each)] = instance
                instance.start()
                instance.keep()
                with contextlib.suppress(KnarrError):  # it crashes, which its state says; the others are replaced too
                    await instance.proved()

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """See `Runtime.sweep`."""
        await self._folders.sweep(needed, running=set(self._units))

    async def close(self) -> None:
        """See `Runtime.close`."""
        await self._repairs.close()
        for name in list(self._background):
            await self._end_background(name)
        await self._router.close()
        await asyncio.gather(*(each.close() for each in list(self._one_off)))
        await asyncio.gather(*(self._stop_unit(unit, drain=False) for unit in list(self._units.values())))
        if self._addons is not None:
            await self._addons.close()
        if self._home_id:
            await asyncio.to_thread(self._kill_leftovers)
        if self._cgroups is not None:
            await asyncio.to_thread(self._cgroups.close)
        for app_log in self._logs.values():
            app_log.close()

    async def isolation(self) -> str:
        """Say how everything is ended that an instance leaves, and which limits hold: for `knarr doctor`."""
        bounds = self._limits.bounds
        wanted = [f"{bounds.memory_bytes // 2**20} MiB of memory"] if bounds.memory_bytes else []
        wanted += [f"{bounds.processes} processes"] if bounds.processes else []
        if self._cgroups is None:
            unmet = f"; not limited to {' and '.join(wanted)}" if wanted else ""
            return f"{BY_SUBREAPER} ends what it leaves; no cgroups: {self._no_cgroups}{unmet}"
        if self._cgroups.unmet:
            lacking = " and ".join(self._cgroups.unmet)
            return f"{BY_CGROUP}; no limits: the cgroup controllers {lacking} are not available to knarr"
        limits = f"limited to {' and '.join(wanted)}" if wanted else "no limits are set"
        return f"{BY_CGROUP}; {limits}"

    def _open_cgroups(self) -> None:
        opened = open_cgroups(self._home_id, self._limits.bounds)
        if isinstance(opened, Cgroups):
            self._cgroups = opened
        else:
            self._no_cgroups = opened

    def _kill_leftovers(self) -> int:
        return (self._cgroups.clear() if self._cgroups else 0) + self._kill_found()

    def _kill_found(self) -> int:
        found = {each.pid: each for each in self._records.remembered()}
        found |= {each.pid: each for each in leftovers.marked(self._home_id)}
        return leftovers.kill(found.values())

    async def _reopen(self, standing: Standing) -> None:
        await self._router.open(standing.app_id, standing.app, standing.port)
        self._refresh(standing.app_id)

    async def _reopen_some_day(self, standing: Standing) -> None:
        while True:
            await self._clock.sleep(5.0)
            with contextlib.suppress(Conflict):
                await self._reopen(standing)
                self._troubles.pop(standing.app_id, None)
                return

    async def _bring_up(self, standing: Standing) -> None:
        """Start what was live, however long it takes: it is live, so nobody else will."""
        wait_s = _FIRST_AGAIN_S
        while True:
            try:
                release = await standing.load()
                await self.start(release)
                break
            except (KnarrError, OSError) as error:
                self._trouble(standing, error)
                await self._clock.sleep(wait_s)
                wait_s = min(_LONGEST_AGAIN_S, wait_s * 2)
        self._troubles.pop(standing.app_id, None)
        self._units[release.saga_id].keep()
        self._refresh(standing.app_id)

    async def _bring_up_warm(self, standing: Standing, warm: Warm) -> None:
        async def start(release: Release) -> None:
            if fixed_port(release) is None:  # else it would take the port of the release that serves
                await self.start(release)
                self._units[release.saga_id].keep()

        async def stop() -> None:
            self._background.pop(warm.saga_id, None)  # this task, which `stop` would end
            await self.stop(standing.app_id, warm.saga_id)

        await warming.bring_up(warm, start=start, stop=stop, clock=self._clock)

    def _trouble(self, standing: Standing, error: Exception) -> None:
        text = error.message if isinstance(error, KnarrError) else str(error)
        self._troubles[standing.app_id] = text
        self._refresh(standing.app_id)
        log.error("an app is not reachable", app=standing.app, why=text)

    def _in_background(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._background[name] = asyncio.create_task(work, name=f"bring-up-{name}")

    async def _end_background(self, name: str) -> None:
        if task := self._background.pop(name, None):
            task.cancel()
            await asyncio.wait([task])

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _make_way(self, release: Release) -> None:
        """Stop instances of the app that listen on the fixed port of this release; their files stay."""
        if fixed_port(release) is not None and (served := self._served.get(release.app_id)) not in {
            None,
            release.saga_id,
        }:
            await self._end_background(served or "")  # else it would take the port while this release starts
        for unit in in_the_way(release, list(self._units.values())):
            await self._repairs.end(release.app_id)
            async with self._lock(unit.release.saga_id):
                unit.gave_way_to = release.number
                self._refresh(release.app_id)
                text = f"release {unit.release.number} makes way for release {release.number}: both listen on port"
                self._log(release.app_id).say("router", f"{text} {release.port}")
                await self._end(unit)
                for instance in unit.instances:
                    instance.note = f"{text} {release.port}"

    async def _come_back(self, app_id: str) -> None:
        """Start the release that has the traffic again, where it made way for one that is gone."""
        unit = self._units.get(self._served.get(app_id, ""))
        if unit is None or unit.gave_way_to is None or in_the_way(unit.release, self._units.values()):
            return
        async with self._lock(unit.release.saga_id):
            if unit.gave_way_to is None or self._units.get(unit.release.saga_id) is not unit:
                return
            self._log(app_id).say("router", f"release {unit.release.number} starts again")
            self._begin(unit)
            unit.keep()

    def _begin(self, unit: Unit) -> None:
        """Make its instances and start them."""
        unit.gave_way_to = None
        unit.instances = [
            self._instance(unit, process, f"{process}.{number}")
            for process, count in unit.release.formation.items()
            for number in range(1, count + 1)
        ]
        for instance in unit.instances:
            instance.start()

    def _instance(self, unit: Unit, process: str, label: str) -> Supervised:
        release = unit.release
        return Supervised(
            self._command(release, unit.root, label, release.processes[process]),
            is_web=process == "web",
            port=release.port,
            checks=checks_of(process, release.checks, patience=self._patience),
            times=Times(grace_s=self._limits.grace_s, elsewhere_s=self._limits.wrong_port_s),
            app_log=self._log(release.app_id),
            records=self._records,
            clock=self._clock,
            changed=lambda: self._refresh(release.app_id),
        )

    async def _placed(self, release: Release) -> Root:
        """Unpack the release, mount its volumes, and have its add-ons run."""
        if self._addons is not None:
            for addon in release.addons:
                await self._addons.provide(addon, note=lambda _: None)
        root = await self._folders.prepare(release)
        for volume in release.volumes:
            await asyncio.to_thread(volumes.mount, self._home, volume, root.path / "app")
        return root

    def _command(self, release: Release, root: Root, label: str, arguments: Sequence[str]) -> Command:
        record = f"{release.saga_id}.{label}"
        return Command(
            label=label,
            arguments=tuple(arguments),
            env={
                "LANG": "C.UTF-8",
                "HOME": os.fspath(root.path / "app"),
                "TMPDIR": os.fspath(root.path / "tmp"),
                "PATH": os.defpath,
                **root.env,
                **release.env,
                **{each.variable: os.fspath(volumes.folder_of(self._home, each)) for each in release.volumes},
                "KNARR_APP": release.app,
                leftovers.APP_ID: release.app_id,
                leftovers.SAGA: release.saga_id,
                "KNARR_RELEASE": str(release.number),
                **({"KNARR_COMMIT": release.commit} if release.commit else {}),
                "KNARR_INSTANCE": label,
                leftovers.MARK: self._home_id,
            },
            secrets=tuple(release.env.values()),
            cwd=root.workdir,
            record=record,
            cgroup=self._cgroups.of(record) if self._cgroups else None,
        )

    async def _stop_unit(self, unit: Unit, *, drain: bool = True) -> None:
        """Requests end, then instances; the unit is gone whatever happens."""
        try:
            await self._end(unit, drain=drain)
        finally:
            self._units.pop(unit.release.saga_id, None)
            self._refresh(unit.release.app_id)

    async def _end(self, unit: Unit, *, drain: bool = True) -> None:
        """Requests end, then instances."""
        try:
            if drain:
                busy = [each.backend for each in unit.instances if each.backend]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.drain_s):
                        await asyncio.gather(*(backend.idle() for backend in busy))
                self._cut(unit, busy)
        finally:
            await asyncio.gather(*(each.stop() for each in unit.instances))

    def _cut(self, unit: Unit, backends: Sequence[Backend]) -> None:
        """Name requests that are still open when the drain time is over."""
        count = sum(backend.cut(self._limits.drain_s) for backend in backends if backend.requests)
        if count:
            text = f"{count} requests were cut after {self._limits.drain_s:g} s (KNARR_DRAIN_S)"
            self._log(unit.release.app_id).say("router", f"release {unit.release.number} stops: {text}")
            log.warning("requests were cut", app=unit.release.app, release=unit.release.number, count=count)

    async def _kill_marked(self, labels: Mapping[str, str]) -> list[str]:
        """Those that left their group: daemons, and whatever else had set itself apart."""
        escaped = await asyncio.to_thread(lambda: leftovers.kill(leftovers.marked(self._home_id, labels)))
        return [f"{escaped} processes beside the instances"] if escaped else []

    def _refresh(self, app_id: str) -> None:
        """Tell the router who serves the app now, or why nobody does."""
        if route := self._router.route(app_id):
            unit = self._units.get(self._served.get(app_id, ""))
            route.serve(*self._serving(app_id, unit))

    def _serving(self, app_id: str, unit: Unit | None) -> tuple[Sequence[Backend], str]:
        if trouble := self._troubles.get(app_id):
            return (), trouble
        if unit is None:
            return (), STARTING if app_id in self._served else _NO_RELEASE
        if unit.gave_way_to is not None:
            return (), _REPLACED
        webs = [each for each in unit.instances if each.is_web]
        if not webs:
            return (), "No web process runs: its formation has none. `knarr scale APP web=1` starts one."
        backends = [each.backend for each in webs if each.backend and each.state == "up"]
        for backend in backends:
            backend.counts = self._counts.of(unit.release.saga_id)
        crashed = any(each.state == "crashed" for each in webs)
        return backends, "It crashed and is starting again; `knarr logs APP` shows its output." if crashed else STARTING

    def _lock(self, saga_id: str) -> asyncio.Lock:
        lock = self._locks.get(saga_id) or asyncio.Lock()
        self._locks[saga_id] = lock
        return lock

    def _log(self, app_id: str) -> AppLog:
        if app_id not in self._logs:
            if not _SAFE_NAME.fullmatch(app_id):
                raise InvalidInput("That is no app's id", why=repr(app_id[:100]))
            self._logs[app_id] = AppLog(self._home / "logs" / f"{app_id}.log", max_bytes=self._limits.log_max_bytes)
        return self._logs[app_id]
