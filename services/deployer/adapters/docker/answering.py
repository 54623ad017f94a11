"""Which containers pass their health checks: containers in, backends for the router out, as soon as they pass.

A pass counts for one start of a container: started again, it has a new address and must pass anew. After its start
the readiness checks go on and decide whether it gets requests, the liveness checks whether it is restarted.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from seedwork.clock import Clock
from seedwork.errors import KnarrError
from services.deployer.adapters.counts import CountsBySaga
from services.deployer.adapters.docker import spec
from services.deployer.adapters.docker.engine import Container, Engine
from services.deployer.adapters.docker.listening import Elsewhere, elsewhere
from services.deployer.adapters.probe import REFUSED, ask
from services.deployer.adapters.router import Backend
from services.deployer.checks import Check, Checks, Patience, checks_of

log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 0.5
_SEEN_LATE_MS = 5_000
"""A start that is older when it is seen first: it may have answered long ago."""
_LOOK_ELSEWHERE_MS = 1_000
"""How often the sockets of a container that refuses connections on PORT are looked at, in milliseconds."""
_ADOPT_AFTER_MS = 3_000
"""Time for which another port must be the only one that answers: an app may open a second port first."""
NO_ADDRESS = "it has no address in the app's network"

Start = tuple[str, int]
"""A container's id, and when it was started."""


@dataclass(slots=True)
class _Known:
    """What is known of one start of a container."""

    checks: Checks
    seen_ms: int
    """Age of the start when it was seen first, in milliseconds."""
    passed: set[int] = field(default_factory=set)
    """Positions in `at_start` of the checks that have passed."""
    faults: dict[int, str] = field(default_factory=dict)
    proved: bool = False
    backend: Backend | None = None
    first_answer_ms: int | None = None
    """Milliseconds from the start until it had passed."""
    unready: dict[str, str] = field(default_factory=dict)
    """Faults of readiness checks that have failed since."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    elsewhere: Elsewhere | None = None
    """Where it listens instead of PORT, as last seen."""
    looked_ms: int = 0
    """Its age at that look."""
    alone_since_ms: int | None = None
    """Its age when the same port was first the only one that answers."""
    adopted: int | None = None
    """The port that gets its requests instead of PORT."""

    @property
    def at_start(self) -> tuple[Check, ...]:
        """Checks that must pass once."""
        return (*self.checks.startup, *self.checks.readiness)


class Answering:
    """Keeps what is known of each start.

    Args:
        engine: Runs commands inside the containers.
        clock: The time that the engine's records are compared with.
        patience: Limits of the platform for the checks.
        changed: Called with the app's id when a container begins or ceases to take requests.
        failed: Called when a liveness check has failed, with what the container does instead.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        patience: Patience,
        *,
        changed: Callable[[str], None],
        failed: Callable[[Container, str], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._patience = patience
        self._changed = changed
        self._failed = failed
        self.counts = CountsBySaga()
        self.port_again_s = 5.0
        """Poll interval in seconds of PORT, while another port is adopted."""
        self._known: dict[str, dict[Start, _Known]] = defaultdict(dict)

    def proved(self, container: Container) -> bool:
        """Whether it has passed what it must since its start."""
        known = self._look_up(container)
        return known is not None and known.proved

    def first_answer_ms(self, container: Container) -> int | None:
        """Milliseconds from its start until it had passed; None: it was not seen."""
        known = self._look_up(container)
        return known.first_answer_ms if known else None

    def unready(self, container: Container) -> str:
        """Why it gets no requests although it has started; empty: it gets them."""
        known = self._look_up(container)
        return next(iter(known.unready.values()), "") if known else ""

    def adopted(self, container: Container) -> int | None:
        """The port that was adopted instead of PORT; None: it listens on PORT."""
        known = self._look_up(container)
        return known.adopted if known else None

    def elsewhere(self, container: Container) -> Elsewhere | None:
        """Where it listens instead of PORT; None: it does, or it was not seen to listen at all."""
        known = self._look_up(container)
        return known.elsewhere if known else None

    def backend(self, container: Container) -> Backend | None:
        """Where its requests go, whether it is ready for new ones or not."""
        known = self._look_up(container)
        return known.backend if known else None

    def late(self, container: Container, elapsed_s: float) -> tuple[Check, str] | None:
        """The first check whose time is over, with what the container did instead of passing it."""
        known = self._of(container)
        for number, check in enumerate(known.at_start):
            if number not in known.passed and elapsed_s > check.budget_s:
                return check, known.faults.get(number, "it was not asked yet")
        return None

    async def ask(self, container: Container) -> str | None:
        """Try each check that has not passed since the start; None if all have, else what one of them found."""
        known = self._of(container)
        if known.proved:
            return None
        waiting = [number for number in range(len(known.at_start)) if number not in known.passed]
        found = await asyncio.gather(*(self._attempt(container, known.at_start[number]) for number in waiting))
        for number, fault in zip(waiting, found, strict=True):
            if fault is None:
                known.passed.add(number)
            else:
                known.faults[number] = fault
        if faults := [fault for fault in found if fault is not None]:
            for number, fault in zip(waiting, found, strict=True):
                if fault == REFUSED and known.at_start[number].port is None:
                    await self._look_elsewhere(container, known, known.at_start[number])
            return faults[0]
        self._prove(container, known)
        return None

    def watch(self, container: Container) -> None:
        """Go on asking until it passes, or `keep_only` says that it is gone."""
        known = self._of(container)
        if not known.proved and not known.tasks:
            self._begin(known, self._until_it_passes(container, known))

    def keep_only(self, app_id: str, containers: Collection[Container]) -> None:
        """These are all of the app's containers: what was known of earlier starts goes."""
        running = {_start(each) for each in containers if each.runs}
        for start in self._known[app_id].keys() - running:
            for task in self._known[app_id].pop(start).tasks:
                task.cancel()
        if not running:
            del self._known[app_id]

    async def close(self) -> None:
        """Ask no more."""
        tasks = [task for starts in self._known.values() for known in starts.values() for task in known.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self, container: Container) -> _Known | None:
        return self._known[_app(container)].get(_start(container)) if container.runs else None

    def _of(self, container: Container) -> _Known:
        starts, start = self._known[_app(container)], _start(container)
        if start not in starts:
            process, declared = spec.process_of(container.labels[spec.PROCESS]), spec.declared_checks(container.labels)
            checks = checks_of(process, declared, patience=self._patience)
            starts[start] = _Known(checks, self._age_ms(container))
        return starts[start]

    def _age_ms(self, container: Container) -> int:
        return max(0, self._clock.now_ms() - container.started_ms)

    def _begin(self, known: _Known, work: Coroutine[Any, Any, None]) -> None:
        known.tasks.append(asyncio.create_task(work))

    def _prove(self, container: Container, known: _Known) -> None:
        if known.proved:
            return
        known.proved = True
        if known.seen_ms < _SEEN_LATE_MS:
            known.first_answer_ms = self._age_ms(container)
        address, port = _address(container), known.adopted or int(container.labels.get(spec.PORT) or 0)
        if address and port:
            known.backend = Backend(address, port, counts=self.counts.of(container.labels[spec.SAGA]))
        if known.adopted:
            self._begin(known, self._until_port_opens(container, known))
        for check in known.checks.readiness:
            self._begin(known, self._keep_ready(container, known, check))
        for check in known.checks.liveness:
            self._begin(known, self._keep_alive(container, check))

    async def _attempt(self, container: Container, check: Check) -> str | None:
        age_s = self._age_ms(container) / 1000
        if age_s < check.initial_delay_s:
            return f"its first check is due {check.initial_delay_s:g} s after its start"
        if check.uptime_s is not None:
            return None if age_s >= check.uptime_s else "it was started a moment ago"
        if check.command is not None:
            return await self._run(container, check, check.command)
        port = check.port or self._port(container)
        if not port:
            return f"{check.what} needs a port, and the process has none"
        address = _address(container)
        return await ask(address, port, check) if address else NO_ADDRESS

    def _port(self, container: Container) -> int:
        """Where its requests go; 0: it gets none."""
        known = self._look_up(container)
        return (known.adopted if known else None) or int(container.labels.get(spec.PORT) or 0)

    async def _look_elsewhere(self, container: Container, known: _Known, check: Check) -> None:
        """Adopt the only port that answers in place of PORT, unless the app names its port."""
        age_ms, port, address = self._age_ms(container), self._port(container), _address(container)
        if known.adopted or not (port and address) or age_ms - known.looked_ms < _LOOK_ELSEWHERE_MS:
            return
        known.looked_ms = age_ms
        before = known.elsewhere.adoptable if known.elsewhere else None
        known.elsewhere = await elsewhere(self._engine, container, address, port, check)
        now = known.elsewhere.adoptable if known.elsewhere else None
        if now is None or now != before or known.alone_since_ms is None:
            known.alone_since_ms = age_ms if now else None
        elif age_ms - known.alone_since_ms >= _ADOPT_AFTER_MS and not container.labels.get(spec.FIXED_PORT):
            known.adopted = now
            log.info("instance.port_adopted", container=container.name, port=now, instead_of=port)

    async def _until_port_opens(self, container: Container, known: _Known) -> None:
        """Send requests to PORT from the time on that it answers: the adopted port was opened before it."""
        address, port = _address(container), int(container.labels[spec.PORT])
        check = next(each for each in known.at_start if each.port is None and each.command is None)
        while True:
            await asyncio.sleep(self.port_again_s)
            if await ask(address, port, check) is None:
                break
        log.info("instance.port_opened", container=container.name, port=port, instead_of=known.adopted)
        known.adopted, known.elsewhere = None, None
        known.backend = Backend(address, port, counts=self.counts.of(container.labels[spec.SAGA]))
        self._changed(_app(container))

    async def _run(self, container: Container, check: Check, argv: tuple[str, ...]) -> str | None:
        try:
            async with asyncio.timeout(check.timeout_s):
                return None if await self._engine.succeeds(container.id, argv) else f"{check.what} failed"
        except TimeoutError:
            return f"{check.what} did not end within {check.timeout_s:g} s"

    async def _until_it_passes(self, container: Container, known: _Known) -> None:
        wait_s = _FIRST_WAIT_S
        while not known.proved:
            try:
                await self.ask(container)
            except KnarrError as error:
                log.warning("check.not_made", container=container.name, why=error.message)
            await asyncio.sleep(0 if known.proved else wait_s)
            wait_s = min(_LONGEST_WAIT_S, wait_s * 1.5)
        self._changed(_app(container))

    async def _keep_ready(self, container: Container, known: _Known, check: Check) -> None:
        failures = 0
        async for fault in self._again_and_again(container, check):
            failures = failures + 1 if fault else 0
            was = check.what in known.unready
            if fault and failures >= check.attempts:
                known.unready[check.what] = fault
            elif not fault:
                known.unready.pop(check.what, None)
            if was is not (check.what in known.unready):
                self._changed(_app(container))

    async def _keep_alive(self, container: Container, check: Check) -> None:
        failures = 0
        async for fault in self._again_and_again(container, check):
            failures = failures + 1 if fault else 0
            if fault and failures >= check.attempts:
                self._failed(container, fault)
                return

    async def _again_and_again(self, container: Container, check: Check) -> AsyncIterator[str | None]:
        """Attempts of a check, as long as the task runs; one that the engine did not make says nothing."""
        while True:
            await asyncio.sleep(check.wait_s)
            try:
                yield await self._attempt(container, check)
            except KnarrError as error:
                log.warning("check.not_made", container=container.name, why=error.message)


def _address(container: Container) -> str:
    return next(iter(container.addresses.values()), "")


def _start(container: Container) -> Start:
    return container.id, container.started_ms


def _app(container: Container) -> str:
    return container.labels[spec.APP_ID]
