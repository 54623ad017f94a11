"""Where a container listens instead of PORT: its sockets in, the port to adopt or the fault in words out.

A container has a network namespace of its own, so whatever listens there belongs to the instance. The kernel's tables
are read by `cat` inside the container; an image without `cat` is judged by PORT alone.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.deployer.adapters.docker.engine import Container, Engine
from services.deployer.adapters.probe import ask
from services.deployer.checks import Check

TABLES = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = re.compile(r"^[ \t]*+\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:0000 0A ", re.MULTILINE)
_ENGINE_DNS = "0B00007F"
"""127.0.0.11, on which the engine answers name lookups inside each container."""
_TIMEOUT_S = 5.0
"""Of one question, in seconds."""
_MOST_PORTS = 16
"""More listeners are not asked."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """TCP ports on which something in a container listens."""

    open: tuple[int, ...] = ()
    """Reachable from outside the container."""
    local: tuple[int, ...] = ()
    """Only on its loopback address."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What an instance does that does not listen on PORT."""

    sockets: Sockets
    answering: tuple[int, ...] = ()
    """Those of `sockets.open` that pass the check."""

    @property
    def adoptable(self) -> int | None:
        """The only port that passes the check; None: there is none, or more than one."""
        return self.answering[0] if len(self.answering) == 1 else None

    def fault(self, label: str, port: int) -> tuple[str, str] | None:
        """Return what `label` does instead of listening on `port`, and what to do; None: it listens nowhere."""
        local = self.sockets.local
        on_port = "Make it listen on 0.0.0.0 and on the port that the environment variable PORT names."
        if self.answering:
            return (
                f"{label} listens on {_listed(self.answering)} instead of PORT ({port})",
                f"{on_port} Or write the port of its pages into .cupaas.yml: `port: {self.answering[0]}`.",
            )
        if self.sockets.open:
            return (
                f"{label} listens on {_listed(self.sockets.open)} instead of PORT ({port}), and does not answer there",
                on_port,
            )
        if local:
            where = f"PORT ({port})" if port in local else _listed(local)
            return f"{label} listens on {where}, but only on the loopback address of its container", on_port
        return None


def sockets(tables: str) -> Sockets:
    """Read the listening sockets of `/proc/net/tcp` and `/proc/net/tcp6`."""
    listening = [(address, port) for address, port in _LISTENING.findall(tables) if address != _ENGINE_DNS]
    found = {(int(port, 16), _is_loopback(address)) for address, port in listening}
    reachable = {port for port, loopback in found if not loopback}
    return Sockets(tuple(sorted(reachable)), tuple(sorted({port for port, _ in found} - reachable)))


def _is_loopback(address: str) -> bool:
    """Addresses are words of four bytes in the machine's order; that is the lowest byte first."""
    if len(address) == 8:
        return address.endswith("7F")
    mapped = address.startswith("0000000000000000FFFF0000") and address.endswith("7F")
    return mapped or address == "00000000000000000000000001000000"


async def elsewhere(engine: Engine, container: Container, address: str, port: int, check: Check) -> Elsewhere | None:
    """Look where a container listens, and ask each port but PORT; None: nothing is known, or PORT is open.

    Args:
        engine: Runs the container.
        container: Does not answer on PORT.
        address: Of the container.
        port: The value of PORT.
        check: What must pass.
    """
    tables = await engine.output(container.id, TABLES)
    found = sockets(tables) if tables else Sockets()
    if not (found.open or found.local) or port in found.open:
        return None
    candidates = [each for each in found.open if each != port][:_MOST_PORTS]
    asked = replace(check, timeout_s=min(check.timeout_s, _TIMEOUT_S))
    faults = await asyncio.gather(*(ask(address, each, asked) for each in candidates))
    passing = [each for each, fault in zip(candidates, faults, strict=True) if fault is None]
    return Elsewhere(found, tuple(passing))


def _listed(ports: Sequence[int]) -> str:
    return ("port " if len(ports) == 1 else "the ports ") + " and ".join(map(str, ports[:_MOST_PORTS]))
