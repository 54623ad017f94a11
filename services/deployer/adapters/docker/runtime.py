"""Releases as containers of one Docker engine: what runs is asked of the engine, traffic goes through the router.

Containers outlive this process, and the engine starts them again by itself once they were observed; so a restart of
ours interrupts the apps' ports for a moment and nothing else. Which release serves is the database's to say; the
containers of any other are removed at `recover`. One process at a time may work with one installation's containers.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

import structlog

from seedwork.clock import Clock
from seedwork.errors import Conflict, KnarrError
from services.deployer.adapters import warming
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.differences import Difference, differences
from services.deployer.adapters.docker.engine import CannotStart, Container, Engine
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.oneoff import OneOff
from services.deployer.adapters.docker.options import Options
from services.deployer.adapters.docker.repairs import Repairs
from services.deployer.adapters.docker.routes import Routes
from services.deployer.adapters.docker.shown import Shown
from services.deployer.adapters.docker.starting import AGAIN, Starting
from services.deployer.adapters.docker.volumes import DockerVolumes
from services.deployer.adapters.images import Pullable
from services.deployer.adapters.merged_log import Source, merged
from services.deployer.adapters.router import Router
from services.deployer.errors import Fenced, ReleaseCommandFailed
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

_FIRST_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 60.0


@dataclass(slots=True)
class _Wanted:
    """A release that was started here and not stopped."""

    release: Release
    observed: bool = False
    """From then on what is not as the release says is drift."""


class DockerRuntime:
    """See `Runtime`.

    Args:
        engine: Runs the containers.
        networks: Of the apps.
        pullable: How the engine names them.
        router: The apps' ports.
        clock: For waiting.
        options: How long, how much.
    """

    name = "docker"
    addons: AbstractSet[str] = frozenset({"mongodb", "mysql", "postgres", "redis"})

    def __init__(
        self,
        *,
        engine: Engine,
        networks: Networks,
        pullable: Pullable,
        router: Router,
        clock: Clock,
        options: Options,
    ) -> None:
        self._engine = engine
        self._networks = networks
        self._pullable = pullable
        self._router = router
        self._clock = clock
        self._options = options
        self._volumes = DockerVolumes(engine, installation=options.installation)
        self._routes = Routes(
            engine,
            router,
            lambda: self._answering,
            clock,
            labels=self._labels(),
            release=self._observed,
            looked=self._compare,
        )
        self._answering = Answering(
            engine, clock, options.patience, changed=self._routes.look_soon, failed=self._not_alive
        )
        self._starting = Starting(engine, networks, pullable, self._answering, options)
        self._repairs = Repairs(engine, self._starting, clock)
        self._shown = Shown(self._answering, self._starting, clock)
        self._fences: dict[str, int] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._stopping: set[str] = set()
        self._commands: set[OneOff] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: dict[str, asyncio.Task[None]] = {}

    # ── a release, step by step ──────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """See `Runtime.expose`."""
        route = await self._router.open_free(app_id, app, taken=taken)
        return Address(url=self._router.url(route.port), port=route.port)

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`."""
        self._starting.port(release)
        reference = self._starting.reference(release)
        if await self._engine.image(reference) is None:
            await self._engine.pull(reference, login=self._options.login)
        await self._volumes.ensure(release)

    async def run_release_command(self, release: Release) -> None:
        """See `Runtime.run_release_command`."""
        if release.release_command is None:
            return
        async with self._lock(release.saga_id):
            container_id = await self._starting.create(release, "release.1", release.release_command, step="release")
            limit_s = self._options.release_command_timeout_s
            try:
                await self._engine.start(container_id)
                async with asyncio.timeout(limit_s):
                    status = await self._engine.ended(container_id)
                how = f"ended with status {status}"
            except TimeoutError:
                status, how = 1, f"ran for longer than {limit_s:g} s (KNARR_RELEASE_COMMAND_TIMEOUT_S)"
            except CannotStart as error:
                status, how = 1, f"could not be started: {error.why}"
            finally:
                await self._engine.stop(container_id, grace_s=0)  # it stays for its log, until its release goes
            if status:
                raise ReleaseCommandFailed(
                    f"The release command {how}",
                    why="nothing was switched over",
                    todo=AGAIN,
                    log_tail=await self._starting.tail(container_id, release),
                )

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        await self.prepare(release)
        async with self._lock(release.saga_id):
            self._stopping.discard(release.saga_id)
            self._wanted.setdefault(release.saga_id, _Wanted(release))
            await asyncio.gather(*(self._starting.start_one(release, each) for each in spec.wanted_labels(release)))

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        containers = await self._instances(release.app_id, release.saga_id)
        if sum(release.formation.values()) > len(containers):
            raise Conflict("The release was stopped meanwhile", why=f"nothing runs for the saga {release.saga_id}")
        notes: dict[str, str] = {}
        prove = partial(self._starting.prove, wanted=lambda: release.saga_id in self._wanted)
        verdicts = [asyncio.create_task(prove(each, release, notes)) for each in containers]
        try:
            waiting: set[asyncio.Task[None]] = set(verdicts)
            while waiting:
                note(next(iter(notes.values()), f"waiting for {len(waiting)} of {len(verdicts)} instances"))
                done, waiting = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for verdict in done:
                    verdict.result()
        finally:
            for verdict in verdicts:
                verdict.cancel()
            await asyncio.gather(*verdicts, return_exceptions=True)
        await asyncio.gather(*(self._starting.keep(each, release) for each in containers))
        if wanted := self._wanted.get(release.saga_id):
            wanted.observed = True

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
            self._routes.served.pop(app_id, None)
        else:
            self._routes.served[app_id] = saga_id
        self._routes.troubles.pop(app_id, None)
        await self._routes.refresh(app_id)
        self._routes.follow()

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`."""
        found: list[str] = []
        self._wanted.pop(saga_id, None)
        await self._end_background(saga_id)
        if self._routes.served.get(app_id) == saga_id:
            del self._routes.served[app_id]
            await self._repairs.forget(app_id)
            found.append("the route")
            await self._routes.refresh(app_id)
        async with self._lock(saga_id):
            containers = await self._engine.containers(self._labels(app_id, saga_id))
            self._stopping.add(saga_id)
            try:
                await self._drain(containers)
                await asyncio.gather(*(self._remove(each) for each in containers))
            finally:
                self._stopping.discard(saga_id)
        self._routes.look_soon(app_id)
        return [*found, *(_called(each) for each in containers)]

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        found: list[str] = []
        sagas = {each.labels.get(spec.SAGA, "") for each in await self._engine.containers(self._labels(app_id))}
        for saga_id in sorted(sagas - {""}):
            found += await self.stop(app_id, saga_id)
        await self._end_background(app_id)
        for container in await self._engine.containers(self._labels(app_id)):
            await self._engine.remove(container.id)
            found.append(_called(container))
        for volume in await self._engine.volumes(self._labels(app_id)):
            await self._engine.remove_volume(volume)
            found.append(f"volume {volume}")
        for network in await self._engine.networks(self._labels(app_id)):
            await self._engine.remove_network(network["Name"])
            found.append(f"network {network['Name']}")
        if route := self._router.route(app_id):
            found.append(f"port {route.port}")
            await self._router.close(app_id)
        for known in (self._routes.served, self._fences, self._routes.troubles):
            known.pop(app_id, None)
        return found

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        containers = await self._instances(app_id)
        wanted = [each for each in self._wanted.values() if each.release.app_id == app_id]
        observed = {each.release.saga_id: each.release for each in wanted if each.observed}
        return await self._shown.instances(containers, observed, stopping=self._stopping)

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:
        """See `Runtime.run_once`."""
        await self.prepare(release)
        once = f"run.{uuid.uuid4().hex[:8]}"
        container_id = await self._starting.create(release, once, argv, step="run", shown_as=label)
        command = OneOff(self._engine, container_id, ended=self._commands.discard)
        self._commands.add(command)
        await command.start()
        return command

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:  # noqa: ARG002  a saga has one app
        """See `Runtime.traffic`."""
        return self._answering.counts.traffic(saga_id)

    async def trouble(self, app_id: str) -> str:
        """See `Runtime.trouble`."""
        return self._routes.troubles.get(app_id, "")

    async def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`: what is left of the containers that are there, the release command's included."""

        async def sources() -> Sequence[Source]:
            containers = await self._engine.containers({**self._labels(app_id), spec.SAGA: ""})
            return [
                Source(id=each.id, label=each.labels[spec.PROCESS], read=partial(self._read_log, each.id))
                for each in containers
            ]

        async for piece in merged(sources, lines=lines, follow=follow):
            yield piece

    async def _read_log(
        self, container_id: str, *, lines: int | None, follow: bool, after: str
    ) -> AsyncIterator[bytes]:
        since = "0"
        if after:
            seconds, _, fraction = after.removesuffix("Z").partition(".")
            since = f"{int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp())}.{fraction}"
        async for line in self._engine.logs(container_id, lines=lines, follow=follow, since=since):
            yield line

    # ── from start to stop of knarr ──────────────────────────────────────────────────────────────────────────────

    async def recover(self, standing: Sequence[Standing]) -> None:
        """See `Runtime.recover`."""
        await self._networks.join_all()
        for each in standing:
            self._fences[each.app_id] = each.fence
            if each.saga_id:
                self._routes.served[each.app_id] = each.saga_id
            try:
                await self._reopen(each)
            except Conflict as error:
                self._trouble(each, error)
                self._in_background(each.app_id, self._reopen_some_day(each))
        containers = await self._engine.containers({**self._labels(), spec.SAGA: ""})
        wanted = set(self._routes.served.values()) | {each.warm.saga_id for each in standing if each.warm}
        unwanted = [
            each for each in containers if each.labels[spec.SAGA] not in wanted or each.labels.get(spec.STEP) == "run"
        ]
        if unwanted:
            log.warning("containers of releases that do not serve are removed", count=len(unwanted))
            self._in_background("recover", self._remove_all(unwanted))
        for each in standing:
            if each.saga_id:
                self._in_background(each.saga_id, self._bring_up(each))
            if each.warm:
                self._in_background(each.warm.saga_id, self._bring_up_warm(each, each.warm))
            self._routes.look_soon(each.app_id)
        self._routes.follow()

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:  # noqa: ARG002  what serves is known here
        """See `Runtime.reconcile`: repairs are made as the engine's events come; here is looked for what has none."""
        await self._routes.look_for_changes()
        return self._repairs.ledger.take()

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """See `Runtime.sweep`: containers of sagas that nobody knows, and images that no release needs."""
        containers = await self._engine.containers({**self._labels(), spec.SAGA: ""})
        references = [
            reference
            for image in await self._engine.images(spec.IMAGE_MARK)
            for reference in image.get("RepoDigests") or ()
            if self._pullable.is_ours(reference)
        ]
        keep = await needed()
        served = set(self._routes.served.values())
        commands = {each.container_id for each in self._commands}
        orphans = [
            each
            for each in containers
            if each.labels[spec.SAGA] not in keep.sagas | served
            or (each.labels.get(spec.STEP) == "run" and each.id not in commands)
        ]
        if orphans:
            log.warning("containers without an owner are removed", names=[each.name for each in orphans])
            await self._remove_all(orphans)
        for reference in references:
            if reference.rpartition("@")[2] not in keep.images:
                await self._engine.remove_image(reference)

    async def close(self) -> None:
        """See `Runtime.close`: the containers stay and go on."""
        for command in list(self._commands):
            await command.close()
        for name in list(self._background):
            await self._end_background(name)
        await self._routes.close()
        await self._repairs.close()
        await self._answering.close()
        await self._router.close()
        await self._engine.close()

    async def _reopen(self, standing: Standing) -> None:
        await self._router.open(standing.app_id, standing.app, standing.port)

    async def _reopen_some_day(self, standing: Standing) -> None:
        while True:
            await self._clock.sleep(5.0)
            with contextlib.suppress(Conflict):
                await self._reopen(standing)
                self._routes.troubles.pop(standing.app_id, None)
                self._routes.look_soon(standing.app_id)
                return

    async def _bring_up(self, standing: Standing) -> None:
        """Have every instance of what is live, however long it takes: it is live, so nobody else will."""
        wait_s = _FIRST_AGAIN_S
        while True:
            try:
                release = await standing.load()
                await self.start(release)
                for container in await self._instances(release.app_id, release.saga_id):
                    await self._engine.keep_running(container.id)
                self._wanted[release.saga_id].observed = True
                break
            except KnarrError as error:
                if not await self._runs_somewhere(standing):
                    self._trouble(standing, error)
                await self._clock.sleep(wait_s)
                wait_s = min(_LONGEST_AGAIN_S, wait_s * 2)
        self._background.pop(standing.saga_id or "", None)
        self._routes.troubles.pop(standing.app_id, None)
        self._routes.look_soon(standing.app_id)

    async def _bring_up_warm(self, standing: Standing, warm: Warm) -> None:
        async def start(release: Release) -> None:
            await self.start(release)
            for container in await self._instances(release.app_id, release.saga_id):
                await self._engine.keep_running(container.id)
                if container.runs:
                    self._answering.watch(container)

        stop = partial(self.stop, standing.app_id, warm.saga_id)
        await warming.bring_up(warm, start=start, stop=stop, clock=self._clock)
        self._background.pop(warm.saga_id, None)

    async def _runs_somewhere(self, standing: Standing) -> bool:
        with contextlib.suppress(KnarrError):
            return any(each.runs for each in await self._instances(standing.app_id, standing.saga_id))
        return False

    def _trouble(self, standing: Standing, error: KnarrError) -> None:
        self._routes.troubles[standing.app_id] = error.message
        self._routes.look_soon(standing.app_id)
        log.error("an app is not reachable", app=standing.app, why=error.message)

    def _in_background(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._background[name] = asyncio.create_task(work, name=f"docker-{name}")

    async def _end_background(self, name: str) -> None:
        task = self._background.pop(name, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drain(self, containers: Sequence[Container]) -> None:
        """Requests under way end where they are."""
        busy = [backend for each in containers if (backend := self._answering.backend(each))]
        try:
            async with asyncio.timeout(self._options.drain_s):
                await asyncio.gather(*(backend.idle() for backend in busy))
        except TimeoutError:
            for backend in busy:
                backend.cut(self._options.drain_s)

    async def _remove(self, container: Container) -> None:
        if container.status in {"running", "restarting", "paused"}:
            await self._engine.stop(container.id, grace_s=self._options.grace_s)
        await self._engine.remove(container.id)

    async def _remove_all(self, containers: Sequence[Container]) -> None:
        await asyncio.gather(*(self._remove(each) for each in containers))

    # ── what is wanted against what there is ─────────────────────────────────────────────────────────────────────

    def _observed(self, saga_id: str) -> Release | None:
        wanted = self._wanted.get(saga_id)
        return wanted.release if wanted and wanted.observed else None

    async def _compare(self, app_id: str, containers: Sequence[Container]) -> None:
        """Repair what differs from the release that serves; not while it is being brought up or stopped."""
        release = self._observed(self._routes.served.get(app_id, ""))
        if release is None or release.saga_id in self._background or release.saga_id in self._stopping:
            return
        self._repairs.seen(
            release,
            await self._differences(release, containers),
            look=partial(self._still_different, release),
            lock=self._lock(release.saga_id),
            done=partial(self._routes.look_soon, app_id),
        )

    async def _still_different(self, release: Release) -> Sequence[Difference]:
        if self._routes.served.get(release.app_id) != release.saga_id or release.saga_id in self._stopping:
            return ()
        return await self._differences(release, await self._instances(release.app_id, release.saga_id))

    async def _differences(self, release: Release, containers: Sequence[Container]) -> list[Difference]:
        known = await self._engine.networks(self._labels(release.app_id))
        return [
            each
            for each in differences(
                release,
                containers,
                reference=self._starting.reference(release),
                networks=[str(network["Name"]) for network in known],
            )
            if f"alive-{each.container_id}" not in self._background
        ]

    def _not_alive(self, container: Container, fault: str) -> None:
        name = f"alive-{container.id}"
        if name not in self._background:
            self._shown.restarted(container, fault)
            self._in_background(name, self._restart(container, fault))

    async def _restart(self, container: Container, fault: str) -> None:
        """A container that does not pass a liveness check is restarted, and must pass its checks anew."""
        app_id = container.labels[spec.APP_ID]
        log.warning("check.liveness_failed", container=container.name, why=fault)
        try:
            await self._engine.restart(container.id, grace_s=self._options.grace_s)
        except KnarrError as error:
            log.warning("check.restart_failed", container=container.name, why=error.message)
        finally:
            self._background.pop(f"alive-{container.id}", None)
            self._routes.look_soon(app_id)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _labels(self, app_id: str | None = None, saga_id: str | None = None) -> dict[str, str]:
        labels = {spec.INSTALLATION: self._options.installation}
        if app_id:
            labels[spec.APP_ID] = app_id
        if saga_id:
            labels[spec.SAGA] = saga_id
        return labels

    async def _instances(self, app_id: str, saga_id: str | None = None) -> list[Container]:
        return await self._engine.containers({**self._labels(app_id, saga_id), spec.STEP: "deploy"})

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name) or asyncio.Lock()
        self._locks[name] = lock
        return lock


def _called(container: Container) -> str:
    labels = container.labels
    if labels.get(spec.ADDON):
        return f"add-on {labels[spec.ADDON]}"
    if labels.get(spec.STEP) == "release":
        return f"the release command's container of release {labels[spec.RELEASE]}"
    if labels.get(spec.STEP) == "run":
        return f"the one-off process {labels[spec.PROCESS]} of release {labels[spec.RELEASE]}"
    return f"instance {labels[spec.PROCESS]} of release {labels[spec.RELEASE]}"
