"""Complete health checks in, probes of a container out; and the checks that the deployer makes itself. Pure.

A container has one probe of each type, and a kubelet's HTTP probe fails above 399 and reads no body. So the deployer
makes, once, before the traffic moves: HTTP checks that pass with any status, those with `content`, and each check of a
type after its first one. Reference: https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from services.deployer.checks import Check, Checks

_SPARE_S = 30
"""The deployer ends the start of a release before the kubelet does: it says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """How the checks of a process are made."""

    startup: Check | None
    readiness: Check | None
    liveness: Check | None
    own: tuple[Check, ...]
    """By the deployer, once for each pod."""
    settle_s: int
    """Time in seconds for which a container must run to be available."""
    start_s: float
    """Longest time of a start in seconds."""


def plan(checks: Checks) -> Probes:
    """Choose who makes which check."""
    startup, readiness = _first(checks.startup), _first(checks.readiness)
    asked = [each for each in (*checks.startup, *checks.readiness) if each.uptime_s is None and each.command is None]
    return Probes(
        startup=startup,
        readiness=readiness,
        liveness=_first(checks.liveness),
        own=tuple(each for each in asked if each not in (startup, readiness) or each.content is not None),
        settle_s=ceil(max((each.uptime_s or 0.0 for each in checks.startup), default=0.0)),
        start_s=checks.start_s,
    )


def manifest(probes: Probes, *, web: bool, port: int | str) -> dict[str, Any]:
    """Return the probes of a container.

    Args:
        probes: What is to be made.
        web: It gets requests, so it is not ready before its port takes connections.
        port: Number or name of its port.
    """
    made: dict[str, Any] = {}
    if probes.startup:
        # longer than the deployer waits: it ends the start, and says why
        made["startupProbe"] = _probe(probes.startup, port, period_s=1, failures=ceil(probes.start_s) + _SPARE_S)
    if check := probes.readiness:
        made["readinessProbe"] = _probe(check, port, period_s=_period(check), failures=check.attempts)
    elif web:
        # a connection is enough, which no app logs
        made["readinessProbe"] = {
            "tcpSocket": {"port": port},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        }
    if check := probes.liveness:
        alive = _probe(check, port, period_s=_period(check), failures=check.attempts)
        if not probes.startup:  # else it begins when the startup probe has passed
            alive["initialDelaySeconds"] = max(ceil(check.initial_delay_s), ceil(probes.start_s))
        made["livenessProbe"] = alive
    return made


def _first(checks: Sequence[Check]) -> Check | None:
    """The check that the kubelet makes: only it can run a command in a container."""
    commands = [each for each in checks if each.command is not None]
    others = [each for each in checks if each.listening or (each.path is not None and not each.any_status)]
    return next(iter([*commands, *others]), None)


def _period(check: Check) -> int:
    return max(1, ceil(check.wait_s))


def _probe(check: Check, port: int | str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        **_way(check, check.port or port),
        "initialDelaySeconds": ceil(check.initial_delay_s),
        "periodSeconds": period_s,
        "timeoutSeconds": max(1, ceil(check.timeout_s)),
        "failureThreshold": failures,
    }


def _way(check: Check, port: int | str) -> dict[str, Any]:
    if check.command is not None:
        return {"exec": {"command": list(check.command)}}
    if check.listening:
        return {"tcpSocket": {"port": port}}
    asked: dict[str, Any] = {"path": check.path, "port": port, "scheme": "HTTP"}
    if check.headers:
        asked["httpHeaders"] = [{"name": name, "value": value} for name, value in check.headers.items()]
    return {"httpGet": asked}
