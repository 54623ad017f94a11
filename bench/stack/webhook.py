"""The webhook under 200 requests a second on MySQL and Pulsar: each a signed push of its own, stored before its answer.

The traffic is that of `bench.webhook`: requests are sent when their time has come, and what waits for others is
counted. The pushes start no deployments: their messages go to Pulsar, where nobody of this measurement listens. With
two replicas each has half of the connections, as behind a load balancer.
"""

import argparse
import asyncio
from collections.abc import Sequence

import psutil

from bench.figures import Figure, percentile
from bench.orchestra import quiet
from bench.stack.place import PORTS, TOKEN, Place, Processors, place, running
from bench.webhook import RATE, Sender, make_apps, push, traffic
from seedwork.leaving import leave


async def measure(where: Place, services: Sequence[psutil.Popen], runs: int, seconds: int) -> list[Figure]:
    """Some seconds of traffic, several times."""
    ports = [where.port_base + PORTS * number + 1 for number in range(len(services))]
    make_apps(ports[0], TOKEN)
    sender = Sender(*ports)
    await sender.open()
    count = RATE * seconds
    halves, tails = [], []
    costs: dict[str, list[float]] = {}
    processors = Processors({"the service": services})
    await traffic(sender, [push(number, ports[0]) for number in range(1, RATE)])
    for run in range(1, runs + 1):
        requests = [push(number, ports[0]) for number in range(run * count, (run + 1) * count)]
        sender.taken_ms.clear()
        processors.begin()
        await traffic(sender, requests)
        halves.append(percentile(sender.taken_ms, 0.5))
        tails.append(percentile(sender.taken_ms, 0.99))
        for who, spent_s in processors.spent_s().items():
            costs.setdefault(who, []).append(spent_s * 1000 / count)
    await sender.close()
    many = "" if len(services) == 1 else f", {len(services)} replicas"
    group = f"Webhook on MySQL and Pulsar: {RATE} pushes/s, stored{many}"
    return [
        Figure(group=group, name="p50", values=halves, unit="ms"),
        Figure(group=group, name="p99", values=tails, unit="ms", target="<= 10"),
        *(Figure(group=group, name=f"CPU of {who}", values=each, unit="ms/push") for who, each in costs.items()),
    ]


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--replicas", nargs="*", type=int, default=(1, 2))
    given = parser.parse_args()
    quiet()
    for replicas in given.replicas:
        with place(["webhook"]) as where, running(where, ["webhook"], replicas=replicas) as services:
            for figure in asyncio.run(measure(where, services, given.runs, given.seconds)):
                figure.tell()
    leave(0)


if __name__ == "__main__":
    main()
