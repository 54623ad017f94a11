"""Round trips and steps a second: deployments of five steps, by a real coordinator on SQLite, every step on disk.

A step is a command that was answered; with compensation a saga has eight, four of them undos. CPU time is of this
process with all its threads: on a busy machine it changes less than the clock on the wall.
"""

import argparse
import asyncio
import gc
import time

from bench.figures import Figure, folder, percentile
from bench.orchestra import Kind, orchestra, quiet, steps_of

WARM_UP = 50
KINDS: tuple[Kind, ...] = ("instant", "kernel")
WHO = {"instant": "coordinator", "kernel": "coordinator and participants"}


async def round_trip(kind: Kind, runs: int, sagas: int) -> list[Figure]:
    """One saga at a time: from a command's arrival to the next one's."""
    halves, tails = [], []
    with folder() as home:
        async with orchestra(home, kind) as all_of_it:
            await all_of_it.sagas(WARM_UP, 1)
            for _ in range(runs):
                all_of_it.trips.forget()
                await all_of_it.sagas(sagas, 1)
                halves.append(percentile(all_of_it.trips.taken_ms, 0.5))
                tails.append(percentile(all_of_it.trips.taken_ms, 0.99))
    group = f"Round trip, 1 in flight: {WHO[kind]}"
    return [
        Figure(group=group, name="p50", values=halves, unit="ms", target="<= 3"),
        Figure(group=group, name="p99", values=tails, unit="ms"),
    ]


async def throughput(kind: Kind, in_flight: int, runs: int, sagas: int, *, fail: bool = False) -> list[Figure]:
    """Many at a time."""
    steps = steps_of(sagas, fail=fail)
    rates, costs = [], []
    with folder() as home:
        async with orchestra(home, kind, fail=fail) as all_of_it:
            await all_of_it.sagas(WARM_UP, min(in_flight, WARM_UP))
            for _ in range(runs):
                gc.collect()
                began, began_cpu = time.perf_counter(), time.process_time()
                await all_of_it.sagas(sagas, in_flight)
                rates.append(steps / (time.perf_counter() - began))
                costs.append((time.process_time() - began_cpu) * 1000 / steps)
    group = f"Steps: {WHO[kind]}"
    name = f"{in_flight} in flight" + (", all undone" if fail else "")
    target = ">= 3000" if in_flight == 500 and not fail else ""
    return [
        Figure(group=group, name=name, values=rates, unit="steps/s", target=target),
        Figure(group=group, name=f"{name}: CPU", values=costs, unit="ms/step"),
    ]


async def measure(runs: int, scale: float) -> None:
    """All of it; `scale` 1: as in the table."""
    for kind in KINDS:
        for figure in await round_trip(kind, runs, max(2, int(100 * scale))):
            figure.tell()
        for in_flight, sagas in ((1, 200), (64, 1500), (500, 2500)):
            for figure in await throughput(kind, in_flight, runs, max(2, int(sagas * scale))):
                figure.tell()
        for figure in await throughput(kind, 500, runs, max(2, int(1500 * scale)), fail=True):
            figure.tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    quiet()
    asyncio.run(measure(given.runs, given.scale))


if __name__ == "__main__":
    main()
