"""A seed in, what goes wrong out: what is hit, in which order, after how many pushes, for how long. Pure.

The same seed and phases give the same acts. When exactly they come is the machine's part: an act waits for its pushes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from seedwork.chassis.settings import SERVICE_PORTS

Phase = Literal["kills", "pauses", "mysql", "pulsar", "registry", "api", "rolling", "docker"]
PHASES: tuple[Phase, ...] = get_args(Phase)
UNASKED: tuple[Phase, ...] = tuple(each for each in PHASES if each != "docker")
"""What is run when nobody says what: restarting the engine hits everybody who uses it."""
REPLICAS = ("a", "b")
OUTAGE_S = 60.0
"""MySQL's long outage and the API server's."""
BROKER_AWAY_S = 120.0
SPOILED_S = 15.0
REGISTRY_FAULTS = ("500", "cut-upload", "cut-download", "refuse")


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that goes wrong."""

    phase: Phase
    target: str
    """`builder.a`, `builder.*` (both replicas), a kind of the registry's faults; else the server's name."""
    after_pushes: int
    """So many are accepted after the act before this one."""
    moment_s: float
    """So long after the last of those, so that it hits a deployment at any step."""
    lasts_s: float
    """How long it is away, paused, or broken."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.phase} {self.target}, {self.lasts_s:.0f} s, after {self.after_pushes} pushes"


def plan_of(seed: int, phases: Sequence[Phase], *, lease_s: float) -> list[Act]:
    """The acts of these phases: all mixed, but a rolling restart comes when they are over, and the engine's last."""
    chance = Random(seed)  # noqa: S311  no secret
    mixed: list[Act] = []
    last: list[Act] = []
    for phase in PHASES:  # in this order, whatever the order of the arguments
        acts = list(_acts(phase, chance, lease_s=lease_s))
        if phase in phases:
            (last if phase in {"rolling", "docker"} else mixed).extend(acts)
    chance.shuffle(mixed)
    return mixed + last


def _acts(phase: Phase, chance: Random, *, lease_s: float) -> Iterator[Act]:
    for target, lasts_s in _targets(phase, chance, lease_s):
        yield Act(phase, target, chance.randint(1, 3), chance.uniform(0, 4), lasts_s)


def _targets(phase: Phase, chance: Random, lease_s: float) -> list[tuple[str, float]]:
    """What is hit in a phase, and for how long."""
    one_of_each = [f"{service}.{chance.choice(REPLICAS)}" for service in SERVICE_PORTS]
    both_of_each = [f"{service}.*" for service in SERVICE_PORTS]
    restart = ("restart", 0.0)
    targets: dict[Phase, list[tuple[str, float]]] = {
        "kills": [(target, chance.uniform(0, 5)) for target in one_of_each + both_of_each],
        "pauses": [(target, 2 * lease_s) for target in one_of_each],
        "mysql": [restart, ("outage", OUTAGE_S)],
        "pulsar": [restart, ("outage", BROKER_AWAY_S)],
        "registry": [(fault, SPOILED_S) for fault in REGISTRY_FAULTS],
        "api": [("outage", OUTAGE_S)],
        "rolling": [restart],
        "docker": [restart],
    }
    return targets[phase]
