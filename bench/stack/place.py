"""A place on the real servers, and services of knarr in it: made for one measurement, gone after it.

In: the servers that the environment names (`testbed env`, or those that `python -m bench.stack` has started). Out: a
schema `paas_bench_…` for each service, upgraded by `knarr db upgrade`, a namespace of Pulsar with all topics, and
services as processes of their own: `python -m services.<name>`, as in production, with as many replicas as wanted.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import psutil

from bench.figures import folder
from bench.platform import environment, free_ports, until
from knarr.buses import plan
from seedwork.adapters.pulsar_admin import set_up
from seedwork.adapters.pulsar_client import PulsarAddress
from seedwork.chassis.settings import SERVICE_PORTS
from seedwork.messages import Message, new_id
from seedwork.testing.servers import mysql_schema, pulsar_namespace

TENANT = "paas-bench"
TOKEN = "bench"  # noqa: S105  of services that live for a minute
PORTS = 10
"""Between the ports of one replica and those of the next."""
STARTS_S = 180.0

Subscriptions = Mapping[str, Sequence[type[Message]]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a measurement may write."""

    folder: Path
    database_url: str
    """With `{service}` in it."""
    pulsar: PulsarAddress
    port_base: int

    def settings(self, replica: int = 0) -> dict[str, str]:
        """The environment of a service; the addresses of the others are those of the same replica."""
        return environment(
            KNARR_HOME=str(self.folder / "home"),
            KNARR_PORT_BASE=str(self.port_base + PORTS * replica),
            KNARR_DATABASE_URL=self.database_url,
            KNARR_BUS="pulsar",
            KNARR_PULSAR_URL=self.pulsar.url,
            KNARR_PULSAR_ADMIN_URL=self.pulsar.admin_url,
            KNARR_PULSAR_TENANT=self.pulsar.tenant,
            KNARR_PULSAR_NAMESPACE=self.pulsar.namespace,
            KNARR_TOKEN=TOKEN,
            KNARR_SERVICE_TOKEN=TOKEN,
            KNARR_POLL_S="0",
            KNARR_LOG_LEVEL="warning",
        )

    def url_of(self, service: str, replica: int = 0) -> str:
        """Where a replica answers."""
        return f"http://127.0.0.1:{self.port_base + PORTS * replica + 1 + SERVICE_PORTS.index(service)}"


@contextlib.contextmanager
def place(
    services: Sequence[str], *, subscriptions: Subscriptions | None = None, partitions: int = 1
) -> Iterator[Place]:
    """Make it, and take it away.

    Args:
        services: Which of them get a schema; a name that is no service's gets an empty one.
        subscriptions: By name, where others than the six services listen; every topic is there in any case.
        partitions: Of each topic.
    """
    tag = new_id().replace("-", "")[-12:]
    with folder() as here, asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            for each in services:
                runner.run(stack.enter_async_context(mysql_schema(name=f"paas_bench_{tag}_{each}")))
            address = runner.run(stack.enter_async_context(pulsar_namespace(TENANT)))
            wanted = plan(partitions)
            if subscriptions is not None:
                wanted = replace(wanted, subscriptions=subscriptions)
            runner.run(set_up(address, wanted))
            url = os.environ["MYSQL_URL"].rpartition("/")[0] + f"/paas_bench_{tag}_{{service}}"
            made = Place(here, url, address, free_ports(100))
            (here / "home").mkdir(mode=0o700)
            upgrade(made, [each for each in services if each in SERVICE_PORTS])
            yield made
        finally:
            try:
                runner.run(stack.aclose())
            except httpx2.HTTPError as error:  # the broker was seen to fail over topics of its own; nothing is lost
                sys.stderr.write(f"something is left of {tag} in Pulsar's tenant {TENANT}: {error}\n")


def upgrade(where: Place, services: Sequence[str]) -> None:
    """As the job of a production does it."""
    for each in services:
        command = [sys.executable, "-m", "knarr", "db", "upgrade", "--service", each]
        subprocess.run(command, env=where.settings(), check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def running(
    where: Place, services: Sequence[str], *, replicas: int = 1, **settings: str
) -> Iterator[list[psutil.Popen]]:
    """These services, that many of each, ready; stopped at the end."""
    started: list[tuple[str, int, psutil.Popen]] = []
    try:
        for number in range(replicas):
            own = {**where.settings(number), **settings}
            for each in services:
                with (where.folder / f"{each}-{number}.log").open("ab") as log:
                    command = [sys.executable, "-m", f"services.{each}"]
                    process = psutil.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
                started.append((each, number, process))
        for each, number, process in started:
            wait_until_ready(where, each, number, process)
        yield [process for _, _, process in started]
    finally:
        end([process for _, _, process in started])


def wait_until_ready(where: Place, service: str, number: int, process: psutil.Popen) -> None:
    """It takes messages and requests.

    Raises:
        RuntimeError: It has ended; with its log.
    """

    def look() -> bool:
        if process.poll() is not None:
            raise RuntimeError((where.folder / f"{service}-{number}.log").read_text()[-4000:])
        try:
            url = f"{where.url_of(service, number)}/readyz"
            return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    until(f"{service} is ready", look, every_s=0.1, patience_s=STARTS_S)


def end(processes: Sequence[psutil.Popen], within_s: float = 40.0) -> None:
    """Ask them to stop; who does not is killed."""
    for each in processes:
        if each.poll() is None:
            each.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    for left in alive:
        left.kill()
        left.wait(10)


class Processors:
    """Processor time of what takes part, by who it is: on a machine with two processors it is what bounds the rest.

    Args:
        ours: Processes of knarr and of the measurement, by what they are called in the table.
    """

    SERVERS: Mapping[str, str] = {"MySQL": "MYSQL_URL", "Pulsar": "PULSAR_URL"}
    """What says where the servers are; they are counted if they are containers of this machine's engine."""

    def __init__(self, ours: Mapping[str, Sequence[psutil.Process]]) -> None:
        self._groups: dict[str, list[psutil.Process]] = {name: list(each) for name, each in ours.items()}
        for name, variable in self.SERVERS.items():
            if found := _in_container(os.environ.get(variable, "")):
                self._groups[name] = found
        self._before: dict[int, float] = {}
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._before = {each.pid: _spent_s(each) for group in self._groups.values() for each in group}

    def spent_s(self) -> dict[str, float]:
        """Seconds since then, by who; a server that is not on this machine is left out."""
        return {name: sum(map(self._since, group)) for name, group in self._groups.items()}

    def _since(self, process: psutil.Process) -> float:
        return _spent_s(process) - self._before[process.pid]


def _in_container(url: str) -> list[psutil.Process]:
    """The processes of the container that publishes the port of this URL; none, if there is no such container."""
    port = re.search(r":(\d+)(?:/|$)", url)
    if port is None:
        return []
    ids = _docker("ps", "--quiet", "--filter", f"publish={port[1]}").split()
    pid = _docker("inspect", "--format", "{{.State.Pid}}", ids[0]) if ids else ""
    if not pid.isdecimal() or not psutil.pid_exists(int(pid)):
        return []
    first = psutil.Process(int(pid))
    return [first, *first.children(recursive=True)]


def _docker(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _spent_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
