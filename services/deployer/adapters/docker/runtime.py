"""Releases as containers of one Docker engine: what runs is asked of the engine, traffic goes through the router.

Containers outlive this process, and the engine starts them again by itself once they were observed; so a restart of
ours interrupts the apps' ports for a moment and nothing else. Which release serves is the database's to say; the
containers of any other are removed at `recover`. One process at a time may work with one installation's containers.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

import structlog

from seedwork.clock import Clock
from seedwork.errors import Conflict, KnarrError, NotFound, Unavailable
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.engine import CannotStart, Container, Engine, Login
from services.deployer.adapters.docker.networks import Networks
from services.deployer.adapters.docker.volumes import DockerVolumes, mounts
from services.deployer.adapters.images import Pullable, port_of, runnable_anywhere
from services.deployer.adapters.lines import blotted
from services.deployer.adapters.merged_log import Source, merged
from services.deployer.adapters.probe import REFUSED
from services.deployer.adapters.router import Backend, Router
from services.deployer.errors import AppDoesNotStart, CannotRun, Fenced, ReleaseCommandFailed
from services.deployer.ports import (
    Address,
    Drift,
    Instance,
    InstanceState,
    Needed,
    Note,
    Release,
    RunningCommand,
    Standing,
    Traffic,
)

log = structlog.get_logger(__name__)

STARTING = "It is starting: try again in a moment."
AGAIN = "Run the image on your machine with PORT set to see the same."
_NO_RELEASE = "It has no release yet."
_TAIL_LINES = 50
_LOOK_S = 0.1
_LOOK_AGAIN_S = 30.0
"""How often routes are compared with the engine, whatever its events say."""
_FIRST_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 60.0
_KILLED = 137
"""128 and SIGKILL; engines before 23 do not always say that it was for its memory."""
_SHELL_WORDS = {126: "the program cannot be run", 127: "there is no such program"}
"""As shells and the init process in the container mean them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, how much, and under which names."""

    installation: str = "knarr"
    start_timeout_s: float = 60.0
    grace_s: float = 10.0
    drain_s: float = 10.0
    release_command_timeout_s: float = 600.0
    settle_s: float = 1.0
    bounds: spec.Bounds = field(default_factory=spec.Bounds)
    login: Login | None = None
    """At the registry."""


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
        self._answering = Answering(self._look_soon)
        self._served: dict[str, str] = {}
        self._fences: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._stopping: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: dict[str, asyncio.Task[None]] = {}
        self._to_look_at: set[str] = set()
        self._look = asyncio.Event()

    # ── a release, step by step ──────────────────────────────────────────────────────────────────────────────────

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:
        """See `Runtime.expose`."""
        route = await self._router.open_free(app_id, app, taken=taken)
        return Address(url=self._router.url(route.port), port=route.port)

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`."""
        self._port(release)
        reference = self._pullable.reference(release.repository, release.digest)
        if await self._engine.image(reference) is None:
            await self._engine.pull(reference, login=self._options.login)
        await self._volumes.ensure(release)

    async def run_release_command(self, release: Release) -> None:
        """See `Runtime.run_release_command`."""
        if release.release_command is None:
            return
        async with self._lock(release.saga_id):
            container_id = await self._create(release, "release.1", release.release_command, step="release")
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
                    log_tail=await self._tail(container_id, release),
                )

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        await self.prepare(release)
        async with self._lock(release.saga_id):
            self._stopping.discard(release.saga_id)
            wanted = [
                self._start_one(release, process, f"{process}.{number + 1}")
                for process, count in release.formation.items()
                for number in range(count)
            ]
            await asyncio.gather(*wanted)

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        containers = await self._instances(release.app_id, release.saga_id)
        if sum(release.formation.values()) > len(containers):
            raise Conflict("The release was stopped meanwhile", why=f"nothing runs for the saga {release.saga_id}")
        notes: dict[str, str] = {}
        verdicts = [asyncio.create_task(self._prove(each, release, notes)) for each in containers]
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
        await asyncio.gather(*(self._keep(each, release) for each in containers))

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
        self._troubles.pop(app_id, None)
        await self._refresh(app_id)
        self._follow_engine()

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`."""
        found: list[str] = []
        await self._end_background(saga_id)
        if self._served.get(app_id) == saga_id:
            del self._served[app_id]
            found.append("the route")
            await self._refresh(app_id)
        async with self._lock(saga_id):
            containers = await self._engine.containers(self._labels(app_id, saga_id))
            self._stopping.add(saga_id)
            try:
                await self._drain(containers)
                await asyncio.gather(*(self._remove(each) for each in containers))
            finally:
                self._stopping.discard(saga_id)
        self._look_soon(app_id)
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
        for known in (self._served, self._fences, self._troubles):
            known.pop(app_id, None)
        return found

    # ── what there is ────────────────────────────────────────────────────────────────────────────────────────────

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        return [self._instance(each) for each in await self._instances(app_id)]

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:  # noqa: ARG002  the port's signature
        """See `Runtime.run_once`."""
        raise CannotRun(f"One-off processes are not available on the runtime `{self.name}`", why="it has none yet")

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:  # noqa: ARG002  the port's signature
        """See `Runtime.traffic`."""
        return None

    async def trouble(self, app_id: str) -> str:
        """See `Runtime.trouble`."""
        return self._troubles.get(app_id, "")

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
                self._served[each.app_id] = each.saga_id
            try:
                await self._reopen(each)
            except Conflict as error:
                self._trouble(each, error)
                self._in_background(each.app_id, self._reopen_some_day(each))
        containers = await self._engine.containers({**self._labels(), spec.SAGA: ""})
        wanted = set(self._served.values())
        unwanted = [each for each in containers if each.labels[spec.SAGA] not in wanted]
        if unwanted:
            log.warning("containers of releases that do not serve are removed", count=len(unwanted))
            self._in_background("recover", self._remove_all(unwanted))
        for each in standing:
            if each.saga_id:
                self._in_background(each.saga_id, self._bring_up(each))
            self._look_soon(each.app_id)
        self._follow_engine()

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:  # noqa: ARG002  the port's signature
        """See `Runtime.reconcile`."""
        return ()

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
        served = set(self._served.values())
        orphans = [each for each in containers if each.labels[spec.SAGA] not in keep.sagas | served]
        if orphans:
            log.warning("containers without an owner are removed", names=[each.name for each in orphans])
            await self._remove_all(orphans)
        for reference in references:
            if reference.rpartition("@")[2] not in keep.images:
                await self._engine.remove_image(reference)

    async def close(self) -> None:
        """See `Runtime.close`: the containers stay and go on."""
        for name in list(self._background):
            await self._end_background(name)
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
                self._troubles.pop(standing.app_id, None)
                self._look_soon(standing.app_id)
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
                break
            except KnarrError as error:
                if not await self._runs_somewhere(standing):
                    self._trouble(standing, error)
                await self._clock.sleep(wait_s)
                wait_s = min(_LONGEST_AGAIN_S, wait_s * 2)
        self._troubles.pop(standing.app_id, None)
        self._look_soon(standing.app_id)

    async def _runs_somewhere(self, standing: Standing) -> bool:
        with contextlib.suppress(KnarrError):
            return any(each.runs for each in await self._instances(standing.app_id, standing.saga_id))
        return False

    def _trouble(self, standing: Standing, error: KnarrError) -> None:
        self._troubles[standing.app_id] = error.message
        self._look_soon(standing.app_id)
        log.error("an app is not reachable", app=standing.app, why=error.message)

    def _in_background(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._background[name] = asyncio.create_task(work, name=f"docker-{name}")

    async def _end_background(self, name: str) -> None:
        task = self._background.pop(name, None)
        if task and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    # ── starting and observing ───────────────────────────────────────────────────────────────────────────────────

    async def _start_one(self, release: Release, process: str, label: str) -> None:
        container_id = await self._create(release, label, release.processes[process], step="deploy")
        known = await self._engine.container(container_id)
        if known is not None and known.status in {"running", "restarting"}:
            return
        try:
            await self._engine.start(container_id)
        except CannotStart as error:
            await self._engine.remove(container_id)
            raise AppDoesNotStart(f"{label} cannot be started", why=error.why, todo=AGAIN) from error

    async def _create(self, release: Release, label: str, arguments: Sequence[str], *, step: str) -> str:
        options = self._options
        name = spec.container_name(options.installation, release, label)
        config = spec.instance(
            options.installation,
            release,
            label,
            arguments,
            step=step,
            image=self._pullable.reference(release.repository, release.digest),
            port=self._port(release),
            network=await self._networks.of_app(release.app_id, release.app, release.team),
            bounds=options.bounds,
            mounts=mounts(options.installation, release),
        )
        if step == "release":  # it runs again: an interrupted one's container says nothing
            await self._engine.remove(name)
        try:
            return await self._engine.create(name, config)
        except NotFound as error:
            raise Unavailable("The image went away before its container was made", why=error.why) from error

    def _port(self, release: Release) -> int:
        """Where its web processes listen, as the image says.

        Raises:
            CannotRun: It is no image for containers.
        """
        runnable_anywhere(release.image, runtime=self.name)
        return port_of(release.image)

    async def _prove(self, container: Container, release: Release, notes: dict[str, str]) -> None:
        """Until it answers, or has stayed.

        Raises:
            AppDoesNotStart: It ended, or its time is over.
        """
        label = container.labels[spec.PROCESS]
        loop = asyncio.get_running_loop()
        began = loop.time()
        image = await self._engine.image(container.image)
        while True:
            known = await self._engine.container(container.id)
            if known is None:
                raise Conflict("The release was stopped meanwhile", why=f"the container of {label} is gone")
            if image is None or known.image_id != image["Id"]:
                raise AppDoesNotStart(f"{label} does not run the image {release.digest}", why=f"but {known.image_id}")
            if known.status in {"exited", "dead"}:
                raise await self._ended(known, release, answered=False)
            fault = await self._fault(known)
            if fault is None:
                notes.pop(label, None)
                return
            notes[label] = f"{label}: {fault}"
            if loop.time() - began > self._options.start_timeout_s:
                raise await self._not_ready(known, release, fault)
            await asyncio.sleep(_LOOK_S)

    async def _fault(self, container: Container) -> str | None:
        if not container.runs:
            return f"it is {container.status}"
        if container.labels.get(spec.PORT):
            return await self._answering.ask(container)
        if self._clock.now_ms() - container.started_ms < self._options.settle_s * 1000:
            return "it was started a moment ago"
        self._answering.stays(container)
        return None

    async def _keep(self, container: Container, release: Release) -> None:
        """From now on the engine starts it again; it has not ended in between."""
        await self._engine.keep_running(container.id)
        known = await self._engine.container(container.id)
        if known is None or known.status in {"exited", "dead"}:
            raise await self._ended(known or container, release, answered=True)

    async def _ended(self, container: Container, release: Release, *, answered: bool) -> AppDoesNotStart:
        tail = await self._tail(container.id, release)
        why = "its last lines say more" if tail else "it printed nothing"
        if container.out_of_memory or container.exit_code == _KILLED:
            sure = "it" if container.out_of_memory else "perhaps it"
            mib = self._options.bounds.memory_bytes // 2**20
            why = f"{sure} used more than its {mib} MiB of memory (KNARR_APP_MEMORY_MB); {why}"
        when = "" if answered else " before it answered" if container.labels.get(spec.PORT) else " at once"
        return AppDoesNotStart(f"{_how_it_ended(container)}{when}", why=why, todo=AGAIN, log_tail=tail)

    async def _not_ready(self, container: Container, release: Release, fault: str) -> AppDoesNotStart:
        label, port = container.labels[spec.PROCESS], container.labels.get(spec.PORT)
        if fault == REFUSED:
            what = f"{label} refuses connections on PORT ({port})"
            todo = "Make it listen on 0.0.0.0 and on the port that the environment variable PORT names."
        else:
            what = f"{label} listens on PORT, but {fault}"
            todo = "Make the health path answer 2xx or 3xx, or change it in app.json."
        return AppDoesNotStart(
            what,
            why=f"waited {self._options.start_timeout_s:g} s for it",
            todo=f"{todo} If it only needs longer, set KNARR_START_TIMEOUT_S higher.",
            log_tail=await self._tail(container.id, release),
        )

    async def _tail(self, container_id: str, release: Release) -> tuple[str, ...]:
        return blotted(await self._engine.tail(container_id, _TAIL_LINES), release.env.values())

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _drain(self, containers: Sequence[Container]) -> None:
        """Requests under way end where they are."""
        busy = [backend for each in containers if (backend := self._answering.backend(each))]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.drain_s):
                await asyncio.gather(*(backend.idle() for backend in busy))

    async def _remove(self, container: Container) -> None:
        if container.status in {"running", "restarting", "paused"}:
            await self._engine.stop(container.id, grace_s=self._options.grace_s)
        await self._engine.remove(container.id)

    async def _remove_all(self, containers: Sequence[Container]) -> None:
        await asyncio.gather(*(self._remove(each) for each in containers))

    # ── routes follow the engine ─────────────────────────────────────────────────────────────────────────────────

    def _follow_engine(self) -> None:
        if "events" not in self._background:
            self._in_background("events", self._listen())
            self._in_background("routes", self._keep_routes())

    async def _listen(self) -> None:
        """What happens to our containers, again after each loss of the connection; then everything is looked at."""
        while True:
            self._look_soon(*self._served)
            try:
                async for event in self._engine.events({**self._labels(), spec.SAGA: ""}):
                    self._look_soon(event["Actor"]["Attributes"].get(spec.APP_ID, ""))
            except KnarrError as error:
                log.warning("the Docker engine's events are lost", why=error.message)
            await self._clock.sleep(_FIRST_AGAIN_S)

    async def _keep_routes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._look.wait()
            self._look.clear()
            for app_id in list(self._to_look_at) or list(self._served):
                self._to_look_at.discard(app_id)
                try:
                    await self._refresh(app_id)
                except KnarrError as error:
                    log.warning("a route was not refreshed", app_id=app_id, why=error.message)

    def _look_soon(self, *app_ids: str) -> None:
        self._to_look_at.update(app_ids)
        self._look.set()

    async def _refresh(self, app_id: str) -> None:
        """Tell the router who serves the app now, or why nobody does."""
        route = self._router.route(app_id)
        if route is None:
            return
        containers = await self._instances(app_id)
        self._answering.keep_only(app_id, containers)
        served = [each for each in containers if each.labels[spec.SAGA] == self._served.get(app_id)]
        for each in served:
            if each.runs:
                self._answering.watch(each)
        route.serve(*self._serving(app_id, served))

    def _serving(self, app_id: str, served: Sequence[Container]) -> tuple[Sequence[Backend], str]:
        if trouble := self._troubles.get(app_id):
            return (), trouble
        if app_id not in self._served:
            return (), _NO_RELEASE
        webs = [each for each in served if each.labels.get(spec.PORT)]
        if served and not webs:
            return (), "No web process runs: its formation has none. `knarr scale APP web=1` starts one."
        backends = [backend for each in webs if (backend := self._answering.backend(each))]
        crashed = any(not each.runs for each in webs)
        return backends, "It crashed and is starting again; `knarr logs APP` shows its output." if crashed else STARTING

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

    def _instance(self, container: Container) -> Instance:
        state, note = self._state(container)
        return Instance(
            id=container.name,
            app_id=container.labels[spec.APP_ID],
            saga_id=container.labels[spec.SAGA],
            release=int(container.labels[spec.RELEASE]),
            process=container.labels[spec.PROCESS],
            state=state,
            since_ms=(container.started_ms if container.runs else container.finished_ms) or self._clock.now_ms(),
            restarts=container.restarts,
            note=note,
            digest=container.image.rpartition("@")[2],
        )

    def _state(self, container: Container) -> tuple[InstanceState, str]:
        if container.labels[spec.SAGA] in self._stopping or container.status == "removing":
            return "stopping", ""
        if container.runs:
            return ("up", "") if self._answering.proved(container) else ("starting", "it does not answer yet")
        if container.status == "created":
            return "starting", container.error
        again = "; Docker starts it again" if container.restart_policy != "no" else ""
        return "crashed", _how_it_ended(container) + again

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name) or asyncio.Lock()
        self._locks[name] = lock
        return lock


def _how_it_ended(container: Container) -> str:
    how = f"exited with status {container.exit_code}"
    if container.exit_code in _SHELL_WORDS:
        how = f"{how} ({_SHELL_WORDS[container.exit_code]})"
    elif container.exit_code > 128:
        how = f"was ended by signal {container.exit_code - 128}"
    return f"{container.labels[spec.PROCESS]} {'ran out of memory' if container.out_of_memory else how}"


def _called(container: Container) -> str:
    labels = container.labels
    if labels.get(spec.ADDON):
        return f"add-on {labels[spec.ADDON]}"
    if labels.get(spec.STEP) == "release":
        return f"the release command's container of release {labels[spec.RELEASE]}"
    return f"instance {labels[spec.PROCESS]} of release {labels[spec.RELEASE]}"
