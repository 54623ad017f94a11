"""Declared health checks of a process in, complete checks within the platform's limits out. Pure.

Every runtime executes the same result: the process runtime and Docker by asking the instance, Kubernetes as probes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.source.contract import HealthCheck

DEFAULT_PATH = "/"
DEFAULT_ATTEMPTS = 3
"""Failed attempts in a row after which a readiness or liveness check has failed."""
DEFAULT_TIMEOUT_S = 30.0
"""Time limit of one attempt of the default check: a page may take long, and the default check must not judge that."""
SHORTEST_WAIT_S = 0.2
SHORTEST_TIMEOUT_S = 0.1
LONGEST_TIMEOUT_S = 120.0
LONGEST_WAIT_S = 300.0
MOST_ATTEMPTS = 1000
LISTENER_LOST = HealthCheck(type="liveness", name="listener", listening=True, attempts=6, wait_s=10.0)
"""Default liveness check of `web`. A busy app passes; an app that has closed its port for a minute does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Limits of the platform in seconds."""

    start_s: float = 60.0
    """Time in which an instance must start, where the app does not ask for another (KNARR_START_TIMEOUT_S)."""
    start_max_s: float = 600.0
    """Longest time that an app may ask for (KNARR_START_TIMEOUT_MAX_S)."""
    settle_s: float = 1.0
    """Time for which a process without a check must run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, complete: nothing is left to a default. Exactly one of its four ways is set.

    The ways: `path` (HTTP GET), `listening` (TCP connection), `command` (exit status 0), `uptime_s` (it still runs).
    """

    type: Literal["startup", "readiness", "liveness"]
    name: str
    path: str | None = None
    any_status: bool = False
    """True: every HTTP answer passes. False: a status from 200 to 399."""
    port: int | None = None
    """TCP port; None: the value of PORT."""
    content: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    listening: bool = False
    command: tuple[str, ...] | None = None
    uptime_s: float | None = None
    attempts: int
    """Failed attempts in a row until the check has failed. Startup: `budget_s` decides, unless `counted`."""
    counted: bool = False
    """True: the app declares the attempts of a command, so a start ends with the last of them."""
    timeout_s: float
    wait_s: float
    initial_delay_s: float
    budget_s: float
    """Time from the start of the process until the check must have passed (startup and readiness at the start)."""

    @property
    def what(self) -> str:
        """The check in words, for messages to people."""
        if self.command is not None:
            return f"the command `{' '.join(self.command)}`"[:200]
        if self.uptime_s is not None:
            return f"{self.uptime_s:g} s without an end"
        where = f" on port {self.port}" if self.port else ""
        return f"a TCP connection{where}" if self.listening else f"GET {self.path}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """All checks of one process."""

    startup: tuple[Check, ...]
    """At least one. The instance has started when all have passed."""
    readiness: tuple[Check, ...]
    """The instance receives requests while all pass; also part of its start."""
    liveness: tuple[Check, ...]
    """When one has failed, the instance is restarted, and that counts as a crash."""

    @property
    def start_s(self) -> float:
        """Longest time in seconds from the start of a process until it must have started."""
        return max(check.budget_s for check in (*self.startup, *self.readiness))


def checks_of(process: str, declared: Mapping[str, tuple[HealthCheck, ...]], *, patience: Patience) -> Checks:
    """Complete the checks of a process type.

    Without a startup check `web` must answer `GET /` with any status, and another process must run for `settle_s`.
    `web` must always listen on PORT, since its requests go there.
    """
    of_type: dict[str, list[HealthCheck]] = {"startup": [], "readiness": [], "liveness": []}
    for each in declared.get(process, ()):
        of_type[each.type].append(each)
    startup = of_type["startup"] or [
        HealthCheck(path=DEFAULT_PATH, timeout_s=min(DEFAULT_TIMEOUT_S, patience.start_s))
        if process == "web"
        else HealthCheck(uptime_s=patience.settle_s)
    ]
    if process == "web" and not any(each.port is None and _asks_the_network(each) for each in startup):
        startup = [*startup, HealthCheck(name="listener", listening=True)]
    liveness = of_type["liveness"] or ([LISTENER_LOST] if process == "web" else [])
    return Checks(
        startup=_complete(startup, patience, any_status=not of_type["startup"]),
        readiness=_complete(of_type["readiness"], patience),
        liveness=_complete(liveness, patience),
    )


def longest_start_s(
    processes: Iterable[str], declared: Mapping[str, tuple[HealthCheck, ...]], patience: Patience
) -> float:
    """Return the longest start time in seconds of these process types; 0: there are none."""
    return max((checks_of(each, declared, patience=patience).start_s for each in processes), default=0.0)


def _complete(declared: Iterable[HealthCheck], patience: Patience, *, any_status: bool = False) -> tuple[Check, ...]:
    return tuple(_check(each, patience, any_status=any_status) for each in declared)


def _check(declared: HealthCheck, patience: Patience, *, any_status: bool) -> Check:
    timeout_s = _within(declared.timeout_s, SHORTEST_TIMEOUT_S, LONGEST_TIMEOUT_S)
    wait_s = _within(declared.wait_s, SHORTEST_WAIT_S, LONGEST_WAIT_S)
    attempts = None if declared.attempts is None else int(_within(declared.attempts, 1, MOST_ATTEMPTS))
    initial_s = _within(declared.initial_delay_s, 0.0, patience.start_max_s)
    asked_s = patience.start_s if attempts is None else attempts * (wait_s + timeout_s)
    uptime_s = None if declared.uptime_s is None else _within(declared.uptime_s, 0.0, patience.start_max_s)
    http = _asks_the_network(declared) and not declared.listening
    return Check(
        type=declared.type,
        name=declared.name,
        path=(declared.path or DEFAULT_PATH) if http else None,
        any_status=any_status,
        port=declared.port,
        content=declared.content if http else None,
        headers=declared.headers if http else {},
        listening=declared.listening and not declared.command,
        command=declared.command or None,
        uptime_s=None if declared.listening or declared.command else uptime_s,
        attempts=attempts or DEFAULT_ATTEMPTS,
        counted=attempts is not None and bool(declared.command),
        timeout_s=timeout_s,
        wait_s=wait_s,
        initial_delay_s=initial_s,
        budget_s=max(uptime_s or 0.0, min(initial_s + asked_s, patience.start_max_s)),
    )


def _asks_the_network(declared: HealthCheck) -> bool:
    return not declared.command and (declared.listening or declared.uptime_s is None)


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
