"""A runtime that runs nothing: for tests of the service, and for trying its API out.

It keeps the port's contract; what an app would do is planned beforehand by its digest (`fails`, `command_fails`).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial

from seedwork.clock import Clock, SystemClock
from services.deployer.adapters import warming
from services.deployer.errors import AppDoesNotStart, Fenced, ReleaseCommandFailed
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
)


@dataclass(slots=True)
class _Unit:
    release: Release
    instances: list[Instance]


class _Echo:
    """A command that prints its arguments and ends with status 0."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.exit_code: int | None = None
        self._pieces = [" ".join(argv).encode() + b"\n"]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        self.exit_code = 0

    async def close(self) -> None:
        """See `RunningCommand.close`."""
        self.exit_code = 137 if self.exit_code is None else self.exit_code


class MemoryRuntime:
    """See `Runtime`."""

    name = "memory"
    addons: AbstractSet[str] = frozenset()

    def __init__(self, *, clock: Clock | None = None, port_base: int = 20_000) -> None:
        self.fails: dict[str, str] = {}
        """Digests whose instances do not come up, and why."""
        self.command_fails: dict[str, str] = {}
        """Digests whose release command fails, and why."""
        self.hangs: set[str] = set()
        """Digests whose instances never answer."""
        self.commands_run: list[str] = []
        """Sagas whose release command ran, in order."""
        self.serving: dict[str, str] = {}
        """The saga that has the traffic, by app."""
        self.prepared: set[str] = set()
        """Sagas whose files are there."""
        self.traffics: dict[str, Traffic] = {}
        """What `traffic` answers, by saga."""
        self.drifts: list[Drift] = []
        """What the next `reconcile` finds."""
        self._clock = clock or SystemClock()
        self._port_base = port_base
        self._units: dict[str, _Unit] = {}
        self._ports: dict[str, int] = {}
        self._fences: dict[str, int] = {}
        self._logs: dict[str, list[bytes]] = {}

    async def expose(self, app_id: str, app: str, *, taken: AbstractSet[int]) -> Address:  # noqa: ARG002  the port's signature
        """See `Runtime.expose`."""
        if app_id not in self._ports:
            used = taken | set(self._ports.values())
            self._ports[app_id] = next(port for port in range(self._port_base, 65_536) if port not in used)
        return Address(url=f"http://127.0.0.1:{self._ports[app_id]}/", port=self._ports[app_id])

    async def prepare(self, release: Release) -> None:
        """See `Runtime.prepare`."""
        self.prepared.add(release.saga_id)

    async def run_release_command(self, release: Release) -> None:
        """See `Runtime.run_release_command`."""
        if release.release_command is None:
            return
        self.commands_run.append(release.saga_id)
        if why := self.command_fails.get(release.digest):
            raise ReleaseCommandFailed("The release command ended with status 1", log_tail=(why,))

    async def start(self, release: Release) -> None:
        """See `Runtime.start`."""
        if release.saga_id in self._units:
            return
        self.prepared.add(release.saga_id)
        labels = [f"{name}.{number + 1}" for name, count in release.formation.items() for number in range(count)]
        self._units[release.saga_id] = _Unit(
            release,
            [
                Instance(
                    id=f"{release.saga_id}.{label}",
                    app_id=release.app_id,
                    saga_id=release.saga_id,
                    release=release.number,
                    process=label,
                    state="starting",
                    since_ms=self._clock.now_ms(),
                    digest=release.digest,
                )
                for label in labels
            ],
        )
        self._logs.setdefault(release.app_id, []).extend(f"{label} | starting\n".encode() for label in labels)

    async def observe(self, release: Release, *, note: Note) -> None:
        """See `Runtime.observe`."""
        unit = self._units[release.saga_id]
        note(f"waiting for {len(unit.instances)} instances")
        if release.digest in self.hangs:
            await asyncio.Event().wait()
        if why := self.fails.get(release.digest):
            unit.instances = [replace(each, state="crashed", note=why) for each in unit.instances]
            raise AppDoesNotStart(why, log_tail=(why,))
        unit.instances = [replace(each, state="up") for each in unit.instances]

    async def switch(self, app_id: str, saga_id: str | None, *, fence: int) -> None:
        """See `Runtime.switch`."""
        if fence < self._fences.get(app_id, 0):
            raise Fenced("The traffic stays where it is", why="it was moved under a higher fence")
        self._fences[app_id] = fence
        if saga_id is None:
            self.serving.pop(app_id, None)
        else:
            self.serving[app_id] = saga_id

    async def stop(self, app_id: str, saga_id: str) -> Sequence[str]:
        """See `Runtime.stop`."""
        found = []
        if self.serving.get(app_id) == saga_id:
            del self.serving[app_id]
            found.append("the route")
        if unit := self._units.pop(saga_id, None):
            found += [f"instance {each.process}" for each in unit.instances]
        if saga_id in self.prepared:
            self.prepared.remove(saga_id)
            found.append("its files")
        return found

    async def forget(self, app_id: str) -> Sequence[str]:
        """See `Runtime.forget`."""
        found: list[str] = []
        for saga_id in [each for each, unit in self._units.items() if unit.release.app_id == app_id]:
            found += await self.stop(app_id, saga_id)
        if port := self._ports.pop(app_id, None):
            found.append(f"port {port}")
        self._fences.pop(app_id, None)
        self._logs.pop(app_id, None)
        return found

    async def instances(self, app_id: str) -> Sequence[Instance]:
        """See `Runtime.instances`."""
        return [each for unit in self._units.values() for each in unit.instances if each.app_id == app_id]

    async def run_once(self, release: Release, argv: Sequence[str], *, label: str) -> RunningCommand:  # noqa: ARG002  the port's signature
        """See `Runtime.run_once`."""
        return _Echo(argv)

    async def traffic(self, app_id: str, saga_id: str) -> Traffic | None:  # noqa: ARG002  the port's signature
        """See `Runtime.traffic`."""
        return self.traffics.get(saga_id)

    async def trouble(self, app_id: str) -> str:  # noqa: ARG002  the port's signature
        """See `Runtime.trouble`."""
        return ""

    async def logs(self, app_id: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """See `Runtime.logs`."""
        known = self._logs.get(app_id, [])
        at = max(0, len(known) - lines)
        while True:
            for line in known[at:]:
                yield line
            at = len(known)
            if not follow:
                return
            await self._clock.sleep(0.05)

    async def recover(self, standing: Sequence[Standing]) -> None:
        """See `Runtime.recover`."""
        for each in standing:
            self._ports[each.app_id] = each.port
            self._fences[each.app_id] = each.fence
            if each.saga_id:
                self.serving[each.app_id] = each.saga_id
                await self._bring_up(await each.load())
            if each.warm:
                stop = partial(self.stop, each.app_id, each.warm.saga_id)
                await warming.bring_up(each.warm, start=self._bring_up, stop=stop, clock=self._clock)

    async def _bring_up(self, release: Release) -> None:
        await self.start(release)
        await self.observe(release, note=lambda _: None)

    async def reconcile(self, standing: Sequence[Standing]) -> Sequence[Drift]:  # noqa: ARG002  the port's signature
        """See `Runtime.reconcile`."""
        found, self.drifts = self.drifts, []
        return found

    async def sweep(self, needed: Callable[[], Awaitable[Needed]]) -> None:
        """See `Runtime.sweep`."""
        prepared = set(self.prepared)
        keep = (await needed()).sagas
        self.prepared -= prepared - keep - set(self._units)

    async def close(self) -> None:
        """See `Runtime.close`."""
        self._units.clear()
        self.serving.clear()
