"""What happens in a simulated history, as data: made from a seed, made smaller by Hypothesis, printed, run again.

A plan is complete: the same plan gives the same history, turn by turn.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from hypothesis import strategies as st

from seedwork.saga import VerbName
from tests.simulation.world import Fate, Step

T = TypeVar("T")
Wish = Literal["rollback", "config", "scale", "restart", "rebase"]
Out = Literal["broker", "databases", "world", "slow"]

APPS = 6
"""App `n` and app `n + 3` have one repository."""
VERBS: tuple[VerbName, ...] = ("pause", "resume", "retry", "cancel", "skip", "compensate")


@dataclass(frozen=True)
class Push:
    """A commit; or (`again`) the one before once more, as two deployments of one commit at once."""

    app: int
    gap_s: float = 0
    again: bool = False
    fates: tuple[Fate, ...] = ()


@dataclass(frozen=True)
class Storm:
    """So many pushes at once, to all apps in turn."""

    pushes: int
    gap_s: float = 0
    fates: tuple[Fate, ...] = ()
    """Of every third of them."""


@dataclass(frozen=True)
class Press:
    """An operator presses a button of the saga that is `back` sagas old; refusals are part of life."""

    verb: VerbName
    back: int
    gap_s: float = 0
    force: bool = False


@dataclass(frozen=True)
class Ask:
    """Somebody wants something of a running app."""

    what: Wish
    app: int
    gap_s: float = 0


@dataclass(frozen=True)
class Crash:
    """`kill -9` of a process after so many of its turns: at whatever `await` that is."""

    process: int
    turns: int
    gap_s: float = 0


@dataclass(frozen=True)
class PauseProcess:
    """A process stands still."""

    process: int
    seconds: float
    gap_s: float = 0


@dataclass(frozen=True)
class Jump:
    """Clocks are wrong by so much for a while; `lasting_s` 0: for ever."""

    hours: float
    lasting_s: float = 0
    process: int | None = None
    """Only this one's machine; None: all machines and databases."""
    gap_s: float = 0


@dataclass(frozen=True)
class Outage:
    """The broker, or other systems, do not answer for a while; `slow`: these take long."""

    what: Out
    seconds: float
    gap_s: float = 0


@dataclass(frozen=True)
class Remove:
    """An app is removed, once its pushes have begun."""

    app: int
    gap_s: float = 0


Happening = Push | Storm | Press | Ask | Crash | PauseProcess | Jump | Outage | Remove


@dataclass(frozen=True)
class Weather:
    """How often, in percent, things go wrong by chance as long as the history lasts."""

    messages: int = 0
    """Each kind of fault of the broker."""
    database: int = 0
    """Each kind of fault of a transaction."""
    world: int = 0
    """Calls of other systems."""


@dataclass(frozen=True)
class Plan:
    """A history."""

    happenings: tuple[Happening, ...]
    weather: Weather = field(default_factory=Weather)
    laptop: bool = False
    """One process with everything, in place of replicas on a broker."""
    hold_s: int = 60
    seed: int = 0
    """Of the scheduler and of chance."""


STEPS: tuple[Step, ...] = ("source", "build", "publish", "deploy", "observe")
GAPS_S = (0.0, 0.05, 0.3, 1.0, 4.0, 15.0)


def plan_of(seed: int) -> Plan:
    """The plan of this seed: always the same."""
    chance = random.Random(seed)  # noqa: S311  no secret
    happenings = tuple(_happening(chance) for _ in range(chance.randint(8, 36)))
    return Plan(
        happenings=(_storm(chance), *happenings, _storm(chance)),
        weather=Weather(
            messages=chance.choice((0, 1, 5, 20)),
            database=chance.choice((0, 0, 1, 5)),
            world=chance.choice((0, 1, 5)),
        ),
        laptop=chance.random() < 0.3,
        hold_s=chance.choice((0, 60, 600)),
        seed=seed,
    )


def _happening(chance: random.Random) -> Happening:  # noqa: PLR0911  one for each kind
    gap_s = chance.choice(GAPS_S)
    app, process = chance.randrange(APPS), chance.randrange(9)
    match chance.choices(KINDS, WEIGHTS)[0]:
        case "push":
            return Push(app, gap_s, again=chance.random() < 0.3, fates=_fates(chance, 0.7))
        case "storm":
            return _storm(chance)
        case "press":
            return Press(chance.choice(VERBS), chance.randrange(10), gap_s, force=chance.random() < 0.5)
        case "ask":
            return Ask(chance.choice(ASKED), app, gap_s)
        case "crash":
            return Crash(process, int(10 ** (chance.random() * 3.3)), gap_s)
        case "pause":
            return PauseProcess(process, chance.choice((5.0, 35.0, 70.0, 150.0)), gap_s)
        case "jump":
            hours, lasting_s = chance.choice(JUMPS)
            return Jump(hours, lasting_s, process if chance.random() < 0.5 else None, gap_s)
        case "outage":
            return Outage(chance.choice(OUTAGES), chance.choice((2.0, 15.0, 60.0)), gap_s)
    return Remove(app, gap_s)


def _storm(chance: random.Random) -> "Storm":
    return Storm(chance.randint(10, 60), chance.choice(GAPS_S), fates=_fates(chance, 0.4))


def _fates(chance: random.Random, often: float) -> tuple[Fate, ...]:
    return tuple(
        Fate(
            chance.choice(STEPS),
            chance.choice(("refuse", "flaky", "flaky", "fault", "slow")),
            chance.choice((1, 2, 9, 40)),
            undo=chance.random() < 0.4,
        )
        for _ in range(2)
        if chance.random() < often
    )


KINDS = ("push", "storm", "press", "ask", "crash", "pause", "jump", "outage", "remove")
WEIGHTS = (30, 4, 20, 14, 14, 8, 4, 5, 2)
ASKED: tuple[Wish, ...] = ("rollback", "config", "scale", "restart", "rebase")
OUTAGES: tuple[Out, ...] = ("broker", "databases", "world", "slow")
JUMPS = ((1.0, 0.0), (1.0, 60.0), (-1.0, 60.0), (-1.0, 60.0), (0.02, 0.0), (-0.02, 0.0), (-1.0, 0.0))


# ------------------------------------------------------------------------------------------------ making it smaller


def smaller(plan: Plan) -> st.SearchStrategy[Plan]:
    """Plans with less in them than this one, for Hypothesis to look for the smallest that still fails.

    Each part is kept but for one chance in many, so that what Hypothesis tries first is nearly the whole plan; nothing
    at all is what it prefers.
    """
    happenings = st.tuples(*(_kept(_simpler(each)) for each in plan.happenings))
    weather = st.builds(
        Weather,
        messages=_or_zero(plan.weather.messages),
        database=_or_zero(plan.weather.database),
        world=_or_zero(plan.weather.world),
    )
    return st.builds(
        replace,
        st.just(plan),
        happenings=happenings.map(lambda kept: tuple(each for each in kept if each is not None)),
        weather=weather,
    )


def _simpler(what: Happening) -> st.SearchStrategy[Happening]:
    changes: dict[str, st.SearchStrategy[Any]] = {}
    if isinstance(what, Push | Storm):
        fates = st.tuples(*(_kept(st.just(each)) for each in what.fates))
        changes["fates"] = fates.map(lambda kept: tuple(each for each in kept if each is not None))
    if isinstance(what, Storm):
        changes["pushes"] = st.integers(0, 20).map(lambda less: what.pushes if less else 1)
    return st.builds(replace, st.just(what), **changes)


def _kept(what: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.integers(0, 60).flatmap(lambda kept: what if kept else st.none())


def _or_zero(value: int) -> st.SearchStrategy[int]:
    return st.integers(0, 20).map(lambda kept: value if kept else 0)
