"""Containers of releases in, instances as people see them out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from seedwork.clock import Clock
from services.deployer.adapters.docker import differences, spec
from services.deployer.adapters.docker.answering import Answering
from services.deployer.adapters.docker.engine import Container
from services.deployer.adapters.docker.starting import Starting, how_it_ended
from services.deployer.ports import Instance, InstanceState, Release

_ENGINE_FORGETS_MS = 10_000
"""The engine waits 0.1 s before it starts a container again, and twice as long each time, unless one ran for 10 s."""
_FIRST_WAIT_MS, _LONGEST_WAIT_MS = 100, 60_000


@dataclass(slots=True)
class _Restarts:
    """Restarts of a container for its liveness checks."""

    count: int
    why: str
    started_ms: int
    """Which start has failed."""


class Shown:
    """Knows what the engine does not.

    Args:
        answering: Who passes its checks.
        starting: Reads last lines.
        clock: For times that are not known.
    """

    def __init__(self, answering: Answering, starting: Starting, clock: Clock) -> None:
        self._answering = answering
        self._starting = starting
        self._clock = clock
        self._restarts: dict[str, _Restarts] = {}

    def restarted(self, container: Container, why: str) -> None:
        """Count a restart for a liveness check that has failed."""
        known = self._restarts.get(container.id)
        count = known.count + 1 if known else 1
        self._restarts[container.id] = _Restarts(count, why, container.started_ms)

    async def instances(
        self, containers: Sequence[Container], observed: Mapping[str, Release], *, stopping: Collection[str]
    ) -> list[Instance]:
        """Those that there are, and those that there should be.

        Args:
            containers: Of an app.
            observed: Releases of the app whose instances had all passed their checks, by saga.
            stopping: Sagas whose instances are being stopped.
        """
        found = [await self._instance(each, observed, stopping) for each in containers]
        for saga_id, release in observed.items():
            there = [each for each in containers if each.labels[spec.SAGA] == saga_id]
            found += differences.missing(release, there, since_ms=self._clock.now_ms())
        return found

    async def _instance(
        self, container: Container, observed: Mapping[str, Release], stopping: Collection[str]
    ) -> Instance:
        release = observed.get(container.labels[spec.SAGA])
        state, note = self._state(container, release, stopping)
        ours = self._restarts.get(container.id)
        restarts = container.restarts + (ours.count if ours else 0)
        tail = await self._starting.tail(container.id, release) if release and (restarts or state == "crashed") else ()
        return Instance(
            id=container.name,
            app_id=container.labels[spec.APP_ID],
            saga_id=container.labels[spec.SAGA],
            release=int(container.labels[spec.RELEASE]),
            process=container.labels[spec.PROCESS],
            state=state,
            since_ms=(container.started_ms if container.runs else container.finished_ms) or self._clock.now_ms(),
            restarts=restarts,
            note=note,
            digest=container.image.rpartition("@")[2],
            next_start_ms=next_start_ms(container) if container.status == "restarting" else None,
            first_answer_ms=None if restarts else self._answering.first_answer_ms(container),
            log_tail=tail,
        )

    def _state(
        self, container: Container, release: Release | None, stopping: Collection[str]
    ) -> tuple[InstanceState, str]:
        if container.labels[spec.SAGA] in stopping or container.status == "removing":
            return "stopping", ""
        ours = self._restarts.get(container.id)
        if ours and ours.started_ms == container.started_ms:
            return "crashed", f"it is restarted, since it does not pass a liveness check: {ours.why}"
        reference = self._starting.reference(release) if release else None
        if changed := differences.state_of(container, reference=reference):
            return changed
        why = f"it was restarted, since it did not pass a liveness check: {ours.why}" if ours else ""
        if container.runs:
            return self._running(container, why)
        if container.status == "created":
            return "starting", container.error
        again = "; Docker starts it again" if container.restart_policy != "no" else ""
        return "crashed", why or how_it_ended(container) + again

    def _running(self, container: Container, why: str) -> tuple[InstanceState, str]:
        if not self._answering.proved(container):
            return "starting", why or "it does not answer yet"
        unready = self._answering.unready(container)
        if unready:
            return "starting", f"it gets no requests: {unready}"
        adopted = self._answering.adopted(container)
        return "up", f"it listens on port {adopted} instead of PORT ({container.labels[spec.PORT]})" if adopted else ""


def next_start_ms(container: Container) -> int:
    """Latest time at which the engine starts a container again that has ended by itself."""
    ran_ms = container.finished_ms - container.started_ms
    doublings = 0 if ran_ms >= _ENGINE_FORGETS_MS else min(container.restarts - 1, 10)
    return container.finished_ms + min(_LONGEST_WAIT_MS, _FIRST_WAIT_MS << max(doublings, 0))
