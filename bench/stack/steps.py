"""Round trips and steps a second on Pulsar and MySQL: deployments of five steps, by real coordinators.

A coordinator is `python -m services.saga_coordinator`, a process of its own. Who answers it:

- `instant`: this process, at once, keeping nothing. A step is then two messages (command and answer) and the
  coordinator's commits: what the coordinator can do.
- `kernel`: participants with a schema, an inbox, jobs and an outbox each, in a process of their own. A step is then
  three times as many commits: what knarr costs apart from the work itself.

Deployments are begun and their ends heard by this process, over Pulsar, too. With two replicas there are two
coordinators, and two processes with participants.
"""

import argparse
import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from subprocess import PIPE
from time import perf_counter

import psutil

from bench.figures import Figure, percentile
from bench.orchestra import COMMANDS, STEPS, Audience, Instant, Kind, Trips, check_participants, quiet, steps_of
from bench.stack.place import Place, Processors, Subscriptions, end, place, running
from seedwork.adapters.pulsar import PulsarBus
from seedwork.bus import Handle
from seedwork.chassis.run import look_seldom_for_cycles
from seedwork.leaving import leave
from seedwork.messages import Command, Envelope, Event, FailureEvent, Message, UndoFailed, WorkReported
from services.saga_coordinator.contract import DeploymentFailed, DeploymentSucceeded
from services.saga_coordinator.engine import SUBSCRIPTION
from services.saga_coordinator.sagas import DEFINITIONS
from services.webhook.contract import DeploymentRequested

WARM_UP = 100
KINDS: tuple[Kind, ...] = ("instant", "kernel")
WHO = {"instant": "coordinator", "kernel": "coordinator and participants"}
SCHEMAS: Mapping[str, Sequence[str]] = {"instant": (), "kernel": tuple(COMMANDS)}
"""Of participants, by the names of their steps."""


def subscriptions(kind: Kind) -> Subscriptions:
    """Who listens to what.

    Raises:
        RuntimeError: A step has no participant.
    """
    check_participants()
    commands: list[type[Command]] = [each for pair in COMMANDS.values() for each in pair]
    mine: dict[str, Sequence[type[Message]]] = {"audience": (DeploymentSucceeded, DeploymentFailed)}
    if kind == "instant":
        mine["participants"] = commands
    else:
        mine["watch"] = commands
        mine.update({name: COMMANDS[name] for name in COMMANDS})
    return {SUBSCRIPTION: DEFINITIONS.messages(), **mine}


def told() -> list[type[Message]]:
    """What this process, and that of the participants, may send."""
    kinds: set[type[Message]] = {DeploymentRequested, WorkReported, UndoFailed}
    for step in STEPS.values():
        answers: tuple[type[Event | FailureEvent] | None, ...] = (step.ok, step.failed, step.undone)
        kinds.update(each for each in answers if each is not None)
    return sorted(kinds, key=lambda each: each.__name__)


class Stage(Audience):
    """Running coordinators, somebody who answers, and who spends how much processor time."""

    def __init__(self, bus: PulsarBus, trips: Trips, processors: Processors, others: "Cast") -> None:
        super().__init__(bus, trips)
        self.processors = processors
        self._others = others

    async def sagas(self, count: int, in_flight: int) -> None:
        """See `Audience.sagas`.

        Raises:
            RuntimeError: A process without which no saga ends has ended.
        """
        going = asyncio.create_task(super().sagas(count, in_flight))
        try:
            while not (await asyncio.wait([going], timeout=1.0))[0]:
                self._others.must_run()
            await going
        finally:
            going.cancel()


@dataclass(frozen=True, slots=True)
class Cast:
    """The processes beside this one."""

    coordinators: Sequence[psutil.Popen]
    participants: Sequence[psutil.Popen]

    def must_run(self) -> None:
        """Raises RuntimeError where one of them does not."""
        for each in (*self.coordinators, *self.participants):
            if each.poll() is not None:
                raise RuntimeError(f"{' '.join(each.args)} has ended with {each.returncode}")


@contextlib.contextmanager
def cast(where: Place, kind: Kind, replicas: int) -> Iterator[Cast]:
    """Start them; they are ready."""
    with running(where, ["saga_coordinator"], replicas=replicas) as coordinators, contextlib.ExitStack() as stack:
        wanted = range(replicas if kind == "kernel" else 0)
        yield Cast(coordinators, [stack.enter_context(_participants(where)) for _ in wanted])


@contextlib.contextmanager
def _participants(where: Place) -> Iterator[psutil.Popen]:
    """All five of them in a process that takes commands."""
    command = [sys.executable, "-m", "bench.stack.participants"]
    log = where.folder / "participants.log"
    with log.open("ab") as errors:
        process = psutil.Popen(command, env=where.settings(), stdout=PIPE, stderr=errors, start_new_session=True)
    try:
        if not process.stdout.readline():
            raise RuntimeError(log.read_text()[-4000:])
        yield process
    finally:
        end([process])
        process.stdout.close()


@contextlib.asynccontextmanager
async def stage(where: Place, given: Cast, *, fail: bool = False, watch: bool = False) -> AsyncIterator[Stage]:
    """Connect to the bus; with `instant` participants answer, else they are watched if that is wanted."""
    bus, trips = PulsarBus(where.pulsar, types=told), Trips()
    ours = {"coordinator": given.coordinators, "participants": given.participants, "this process": [psutil.Process()]}
    processors = Processors({name: group for name, group in ours.items() if group})
    made = Stage(bus, trips, processors, given)
    if not given.participants:
        await Instant(bus, fail=fail, trips=trips).join()
    elif watch:
        await bus.subscribe("watch", [each for pair in COMMANDS.values() for each in pair], _watching(trips))
    await made.listen()
    await bus.open()
    try:
        yield made
    finally:
        await bus.close()


def _watching(trips: Trips) -> Handle:
    async def watch(commands: Sequence[Envelope]) -> None:
        for each in commands:
            trips.arrived(each.correlationid)

    return watch


async def round_trip(where: Place, given: Cast, runs: int, sagas: int, group: str) -> list[Figure]:
    """One saga at a time: from a command's arrival to the next one's."""
    halves, tails = [], []
    async with stage(where, given, watch=True) as all_of_it:
        await all_of_it.sagas(WARM_UP, 4)
        for _ in range(runs):
            all_of_it.trips.forget()
            await all_of_it.sagas(sagas, 1)
            halves.append(percentile(all_of_it.trips.taken_ms, 0.5))
            tails.append(percentile(all_of_it.trips.taken_ms, 0.99))
    return [
        Figure(group=group, name="round trip, 1 in flight: p50", values=halves, unit="ms"),
        Figure(group=group, name="round trip, 1 in flight: p99", values=tails, unit="ms"),
    ]


async def throughput(
    where: Place, given: Cast, *, in_flight: int, runs: int, sagas: int, group: str, fail: bool = False
) -> list[Figure]:
    """Many at a time; beside the rate stands who spent how much processor time on a step."""
    steps = steps_of(sagas, fail=fail)
    rates: list[float] = []
    costs: dict[str, list[float]] = {}
    async with stage(where, given, fail=fail) as all_of_it:
        await all_of_it.sagas(max(WARM_UP, in_flight), in_flight)
        for _ in range(runs):
            gc.collect()
            all_of_it.processors.begin()
            began = perf_counter()
            await all_of_it.sagas(sagas, in_flight)
            rates.append(steps / (perf_counter() - began))
            for who, spent_s in all_of_it.processors.spent_s().items():
                costs.setdefault(who, []).append(spent_s * 1000 / steps)
    name = f"{in_flight} in flight" + (", all undone" if fail else "")
    target = ">= 2000" if in_flight == 500 and not fail else ""
    rate = Figure(group=group, name=name, values=rates, unit="steps/s", target=target)
    if in_flight < 500 or fail:
        return [rate]
    spent = [
        Figure(group=group, name=f"{name}: CPU of {who}", values=each, unit="ms/step") for who, each in costs.items()
    ]
    return [rate, *spent]


async def measure(where: Place, kind: Kind, replicas: int, runs: int, scale: float) -> None:
    """All of one kind, on servers and with processes of its own; `scale` 1: as in the table."""
    many = "" if replicas == 1 else f", {replicas} replicas"
    group = f"Steps on Pulsar and MySQL: {WHO[kind]}{many}"

    def some(sagas: int) -> int:
        return max(2, int(sagas * scale))

    with cast(where, kind, replicas) as given:
        if replicas == 1:
            for figure in await round_trip(where, given, runs, some(50), group):
                figure.tell()
        # many more than are in flight: the second in which the last ones end counts for little
        levels = ((64, 1024), (500, 8000)) if kind == "instant" else ((500, 4000),)
        for in_flight, sagas in levels:
            for figure in await throughput(
                where, given, in_flight=in_flight, runs=runs, sagas=some(sagas), group=group
            ):
                figure.tell()
        if kind == "instant" and replicas == 1:
            for figure in await throughput(
                where, given, in_flight=500, runs=runs, sagas=some(3000), group=group, fail=True
            ):
                figure.tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--replicas", nargs="*", type=int, default=(1, 2))
    given = parser.parse_args()
    quiet()
    look_seldom_for_cycles()  # as every service does
    for kind in given.kinds:
        for replicas in given.replicas:
            with place(["saga_coordinator", *SCHEMAS[kind]], subscriptions=subscriptions(kind)) as where:
                asyncio.run(measure(where, kind, replicas, given.runs, given.scale))
    leave(0)


if __name__ == "__main__":
    main()
