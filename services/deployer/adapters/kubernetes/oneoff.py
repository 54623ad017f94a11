"""One-off processes as pods of their own, read by their log: lines come whole.

The pod carries the release's label, so `stop` finds it, and the time at which its deployer was there last, so that a
sweep finds what a crash of a deployer left.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError, NotFound, Unavailable
from services.deployer.adapters.kubernetes import objects, verdicts
from services.deployer.adapters.kubernetes.cluster import POD, BadRequest, Cluster, Object
from services.deployer.errors import CannotRun, NoCapacity

log = structlog.get_logger(__name__)

_ALIVE_EVERY_S = 60.0
ABANDONED_S = 300.0
"""Age of the last sign of its deployer after which a pod is removed."""
_LOOK_S = 2
_PIECES_AHEAD = 64
_ENDED_BY_US = 137


class OneOff:
    """See `RunningCommand`.

    Args:
        cluster: Runs it.
        clock: For the signs that we are there.
        pod: Its manifest.
        start_limit_s: How long its pod may take to begin, the image's pull included.
        ended: Called when its pod is gone.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        pod: Object,
        *,
        start_limit_s: float,
        ended: Callable[["OneOff"], None],
    ) -> None:
        self.exit_code: int | None = None
        self._cluster = cluster
        self._clock = clock
        self._manifest = pod
        self._namespace, self._name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._start_limit_s = start_limit_s
        self._ended = ended
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_PIECES_AHEAD)
        self._fault: KnarrError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Make its pod, and wait until its container has begun.

        Raises:
            CannotRun: The cluster cannot start the command.
            NoCapacity: The cluster has no room for it.
        """
        try:
            await self._cluster.create(self._manifest)
            await self._until_begun()
        except BaseException:
            await asyncio.shield(self._remove())
            raise
        self._tasks = [
            asyncio.create_task(self._run(), name=f"run-{self._name}"),
            asyncio.create_task(self._be_alive(), name=f"alive-{self._name}"),
        ]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of its output, until it has ended."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)
        if self._fault is not None:
            raise self._fault

    async def close(self) -> None:
        """See `RunningCommand.close`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _until_begun(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            pod = await self._pod()
            if pod is not None and (pod.runs or pod.ended):
                return
            fault = verdicts.hopeless(pod) if pod else None
            if fault is not None and fault.blame == "app":
                raise CannotRun("The command cannot be started", why=fault.why or fault.what)
            if fault is not None or clock() - began > self._start_limit_s:
                why = (fault.why or fault.what) if fault else (pod and (pod.unschedulable or pod.waiting)) or ""
                raise NoCapacity("The cluster does not start the command", why=why or "it made no pod for it")
            await self._changed()

    async def _run(self) -> None:
        try:
            with contextlib.suppress(NotFound, BadRequest):  # it was stopped with its release
                async for piece in self._cluster.printed(self._namespace, self._name):
                    await self._pieces.put(piece)
            self.exit_code = await self._status()
        except KnarrError as error:
            self._fault = error
        finally:
            self.exit_code = _ENDED_BY_US if self.exit_code is None else self.exit_code
            await asyncio.shield(self._remove())

    async def _status(self) -> int | None:
        """Its exit status; None: it was removed."""
        while True:
            pod = await self._pod()
            if pod is None or pod.stopping:
                return None
            if pod.ended and not pod.runs:
                return pod.ended.exit_code
            await self._changed()

    async def _pod(self) -> verdicts.Pod | None:
        item = await self._cluster.get(POD, self._namespace, self._name)
        return verdicts.read_pods([item])[0] if item else None

    async def _changed(self) -> None:
        labels = self._manifest["metadata"]["labels"]
        listed = await self._cluster.list(POD, self._namespace, labels)
        if any(each["metadata"]["name"] == self._name and _is_decided(each) for each in listed.items):
            return
        await self._cluster.changed(POD, self._namespace, labels, listed.version, limit_s=_LOOK_S)

    async def _be_alive(self) -> None:
        while True:
            await self._clock.sleep(_ALIVE_EVERY_S)
            try:
                await self._cluster.annotate(POD, self._namespace, self._name, {objects.ALIVE: now_s(self._clock)})
            except KnarrError as error:
                log.warning("run.no_sign", pod=self._name, why=error.message)

    async def _remove(self) -> None:
        if len(self._tasks) > 1:
            self._tasks[1].cancel()
        try:
            await self._cluster.delete(POD, self._namespace, self._name, grace_s=0)
        except Unavailable as error:  # a later sweep finds it
            log.warning("run.not_removed", pod=self._name, why=error.message)
        self._ended(self)
        if self._pieces.full():
            self._pieces.get_nowait()
        self._pieces.put_nowait(None)


def now_s(clock: Clock) -> str:
    """Seconds since 1970, as a label's value."""
    return str(clock.now_ms() // 1000)


def is_abandoned(pod: Object, clock: Clock) -> bool:
    """Whether no deployer was seen to wait for it for long."""
    alive = (pod["metadata"].get("annotations") or {}).get(objects.ALIVE, "0")
    return not alive.isdigit() or clock.now_ms() / 1000 - int(alive) > ABANDONED_S


async def sweep(cluster: Cluster, clock: Clock, namespace: str, labels: Mapping[str, str]) -> None:
    """Delete the pods of a namespace with these labels for which no deployer waits."""
    for pod in (await cluster.list(POD, namespace, labels)).items:
        if is_abandoned(pod, clock):
            log.warning("run.abandoned", pod=pod["metadata"]["name"])
            await cluster.delete(POD, namespace, pod["metadata"]["name"])


def _is_decided(item: Object) -> bool:
    (pod,) = verdicts.read_pods([item])
    return pod.runs or pod.ended is not None
