"""The health checks of one process: attempts in, a verdict out. First its start, then whether it stays alive and ready.

The listener must belong to the instance: an answer of another program on the same port is an error that names it.
"""

import asyncio
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.deployer.adapters.probe import REFUSED, ask
from services.deployer.adapters.process import leftovers
from services.deployer.adapters.process.process import Process, end_all, launch
from services.deployer.adapters.router import Backend
from services.deployer.checks import Check, Checks
from services.deployer.errors import AppDoesNotStart

HOSTS = ("127.0.0.1", "::1")
_PROBE_S = 0.01
_SLOWEST_PROBE_S = 0.25
"""Wait between two attempts of a start: a tenth of the time that the start has taken so far, within these limits."""
_LOOK_S = 1.0
"""Interval at which the process table is read while an instance does not answer."""
_SHORTEST_ATTEMPT_S = 0.1

AGAIN = "Run it on your machine with PORT set to see the same."
NEEDS_LONGER = (
    'If it needs longer: set "attempts" of its check in `healthchecks` of app.json, or KNARR_START_TIMEOUT_S on the'
    " platform."
)


@dataclass(frozen=True, slots=True)
class Instead:
    """What an instance does instead of answering, and how to change it."""

    what: str
    todo: str
    elsewhere: bool = False
    """It listens, and not on PORT."""


class Checking:
    """Checks one process from its start to its end.

    Args:
        process: What is checked.
        port: Value of its PORT; None: it is no web process.
        checks: All of its checks.
        env: Its PORT, for commands.
        elsewhere_s: Time in seconds after which a process that listens on another port has failed.
        note: Called with what is waited for.
    """

    def __init__(
        self,
        process: Process,
        *,
        port: int | None,
        checks: Checks,
        env: Mapping[str, str],
        elsewhere_s: float,
        note: Callable[[str], None],
    ) -> None:
        self._process = process
        self._port = port
        self._checks = checks
        self._env = env
        self._elsewhere_s = elsewhere_s
        self._note = note
        self._began = asyncio.get_running_loop().time()
        self._host = HOSTS[0]

    async def until_started(self) -> Backend | None:
        """Wait until every startup and readiness check has passed; return where requests go.

        Raises:
            AppDoesNotStart: The time of a check is over; the text says what the process does instead.
        """
        passing = [
            asyncio.create_task(self._until_passed(check)) for check in (*self._checks.startup, *self._checks.readiness)
        ]
        try:
            for task in asyncio.as_completed(passing):
                await task
        finally:
            await _end(passing)
        return Backend(self._host, self._port) if self._port else None

    async def until_dead(self, ready: Callable[[str | None], None]) -> str:
        """Repeat liveness and readiness checks until a liveness check has failed; return what the process does.

        Args:
            ready: Called with None when all readiness checks pass again, and with the fault when one has failed.
        """
        unready: dict[int, str] = {}

        def now(number: int, fault: str | None) -> None:
            unready.pop(number, None)
            if fault:
                unready[number] = fault
            ready(next(iter(unready.values()), None))

        watching = [
            *(asyncio.create_task(self._until_failed(each)) for each in self._checks.liveness),
            *(asyncio.create_task(self._while_ready(n, each, now)) for n, each in enumerate(self._checks.readiness)),
        ]
        if not watching:
            return str(await asyncio.Event().wait())
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            await _end(watching)

    # ── the start ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _until_passed(self, check: Check) -> None:
        if check.uptime_s is not None:
            await asyncio.sleep(check.uptime_s)
            return
        await asyncio.sleep(check.initial_delay_s)
        loop = asyncio.get_running_loop()
        until, look_at = self._began + check.budget_s, self._began + _LOOK_S
        elsewhere_since: float | None = None
        for failures in itertools.count(1):
            left_s = check.timeout_s if check.command else max(until - loop.time(), _SHORTEST_ATTEMPT_S)
            fault = await self._attempt(replace(check, timeout_s=min(check.timeout_s, left_s)))
            if fault is None:
                await self._refuse_stranger(check)
                return
            now = loop.time()
            if now >= until or (check.counted and failures >= check.attempts):
                waited = f"{failures} attempts failed" if check.counted else f"waited {check.budget_s:g} s for it"
                raise self._not_ready(await self._instead(check, fault), waited)
            if now >= look_at:
                look_at = now + _LOOK_S
                instead = await self._instead(check, fault)
                self._note(instead.what)
                elsewhere_since = (now if elsewhere_since is None else elsewhere_since) if instead.elsewhere else None
                if elsewhere_since is not None and now - elsewhere_since >= self._elsewhere_s:
                    raise self._not_ready(instead, f"it has done so for {self._elsewhere_s:g} s")
            quickly_s = min(_SLOWEST_PROBE_S, max(_PROBE_S, (now - self._began) / 10))
            await asyncio.sleep(check.wait_s if check.command else quickly_s)

    async def _instead(self, check: Check, fault: str) -> Instead:
        name = self._process.command.label
        if check.command:
            return Instead(f"{name}: {fault}", f"Make the command of the check end with status 0. {NEEDS_LONGER}")
        port = check.port or self._port
        if fault != REFUSED:
            where = f"port {port}" if check.port else "PORT"
            return Instead(f"{name} listens on {where}, but {fault}", f"{_how_to_answer(check)} {NEEDS_LONGER}")
        ports = await asyncio.to_thread(leftovers.listening_ports, self._process.pid)
        if port in ports:
            return Instead(
                f"{name} listens on PORT ({port}), but not on the loopback address",
                "Make it listen on 0.0.0.0, not on one network's address.",
            )
        if check.port:
            return Instead(f"{name} does not listen on port {port}, which its check asks for", NEEDS_LONGER)
        todo = "Make it listen on the port that the environment variable PORT names."
        if ports:
            numbers = ", ".join(map(str, sorted(ports)))
            return Instead(
                f"{name} listens on port {numbers} instead of PORT ({port})",
                f"{todo} Or write `port: {min(ports)}` into .cupaas.yml. If it opens that port first and PORT much"
                " later, set KNARR_WRONG_PORT_S higher.",
                elsewhere=True,
            )
        return Instead(f"{name} listens on no port; PORT is {port}", f"{todo} {NEEDS_LONGER}")

    async def _refuse_stranger(self, check: Check) -> None:
        """Raise `AppDoesNotStart` if another program answered on the port."""
        port = check.port or self._port
        if check.command or port is None or sys.platform != "linux":
            return
        if port in await asyncio.to_thread(leftovers.listening_ports, self._process.pid):
            return
        stranger = await asyncio.to_thread(leftovers.listener_on, port)
        if stranger is not None and port not in await asyncio.to_thread(
            leftovers.listening_ports, self._process.pid
        ):  # it has not opened the port in between
            name = self._process.command.label
            raise self._not_ready(
                Instead(f"{name} does not listen on port {port}: {stranger} does", f"Stop that program. {AGAIN}"),
                "an answer counts only if it comes from a process of the instance",
            )

    def _not_ready(self, instead: Instead, why: str) -> AppDoesNotStart:
        process = self._process
        tail = process.output.tail(secrets=process.command.secrets)
        return AppDoesNotStart(instead.what, why=why, todo=instead.todo, log_tail=tail)

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _until_failed(self, check: Check) -> str:
        await asyncio.sleep(check.initial_delay_s)
        failures = 0
        while True:
            await asyncio.sleep(check.wait_s)
            fault = await self._attempt(check)
            if fault is not None and check.listening and await self._still_listens(check):
                fault = None  # too busy to accept, which a restart does not mend
            failures = failures + 1 if fault else 0
            if fault and failures >= check.attempts:
                times = "" if failures == 1 else f" {failures} times"
                return f"{self._process.command.label} failed its liveness check{times}: {fault}"

    async def _while_ready(self, number: int, check: Check, now: Callable[[int, str | None], None]) -> str:
        failures = 0
        while True:
            await asyncio.sleep(check.wait_s)
            fault = await self._attempt(check)
            if fault is None and failures >= check.attempts:
                now(number, None)
            failures = failures + 1 if fault else 0
            if fault and failures == check.attempts:
                now(number, f"not ready: {fault}")

    async def _still_listens(self, check: Check) -> bool:
        ports = await asyncio.to_thread(leftovers.listening_ports, self._process.pid)
        return (check.port or self._port) in ports

    # ── one attempt ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _attempt(self, check: Check) -> str | None:
        """Make one attempt; return None if it passes, else what the process does instead."""
        if check.command:
            return await self._run(check, check.command)
        if check.uptime_s is not None:
            return None
        port = check.port or self._port
        if port is None:
            return "it has no port: the check needs `port`"
        for host in HOSTS:
            fault = await ask(host, port, check)
            if fault is None and port == self._port:
                self._host = host
            if fault != REFUSED:
                return fault
        return REFUSED

    async def _run(self, check: Check, arguments: tuple[str, ...]) -> str | None:
        command = self._process.command
        child = await launch(command, env=self._env, output=asyncio.subprocess.DEVNULL, arguments=arguments)
        try:
            async with asyncio.timeout(check.timeout_s):
                status = await child.wait()
        except TimeoutError:
            return f"{check.what} ran for longer than {check.timeout_s:g} s"
        finally:
            if child.returncode is None:
                await end_all(child)
        return None if status == 0 else f"{check.what} ended with status {status}"


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _how_to_answer(check: Check) -> str:
    if check.any_status:
        return (
            "Make it answer GET /, or name another path in `healthchecks` of app.json;"
            ' "listening": true there asks for the port only.'
        )
    return "Make the health path answer 2xx or 3xx, or change it in app.json."
