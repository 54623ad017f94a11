"""Does what the plan says: kills, pauses, takes away, gives back; and writes down how long it took to be well again.

Each act waits for its pushes, strikes, and returns when all replicas are ready again. Pushes go on all the time.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from seedwork.testing.servers import Container
from tests.chaos.plans import Act
from tests.chaos.pushing import Pusher
from tests.chaos.replicated import Replica, Replicated
from tests.stack.faulty_proxy import Fault

RESTART_ENGINE = "systemctl restart docker"
"""What restarts the engine, unless CHAOS_RESTART_DOCKER says something else."""
_MANY = 10_000
"""Requests: more than there are while a fault lasts."""
FAULTS = {
    "500": Fault(how="answer", status=500, times=_MANY),
    "refuse": Fault(how="refuse", times=_MANY),
    "cut-upload": Fault(how="cut-request", path="/blobs/uploads/", times=_MANY, after_bytes=1000),
    "cut-download": Fault(how="cut-answer", path="/blobs/sha256:", method="GET", times=_MANY, after_bytes=100),
}


@dataclass(slots=True)
class Done:
    """An act, and what it took."""

    act: Act
    at: float
    well_after_s: float = 0.0
    """From the end of the fault until every replica was ready."""
    hits: int = 0
    """Processes killed or paused, requests spoiled, servers taken away."""


@dataclass
class Actor:
    """Performs acts on a platform."""

    knarr: Replicated
    pusher: Pusher
    done: list[Done] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What the platform did wrong at once: a stop that did not end with 0."""

    def perform(self, act: Act) -> Done:
        """One act, when its pushes have come; the platform is ready afterwards."""
        self.pusher.wait_for_more(act.after_pushes)
        time.sleep(act.moment_s)
        done = Done(act, time.time())
        self.done.append(done)
        how: dict[str, Callable[[Act, Done], None]] = {
            "kills": self._kill,
            "pauses": self._pause,
            "mysql": lambda act, done: self._take_away([self.knarr.servers.mysql], act, done),
            "pulsar": lambda act, done: self._take_away([self.knarr.servers.pulsar], act, done),
            "registry": self._spoil,
            "api": self._close_api,
            "rolling": self._roll,
            "docker": self._restart_engine,
        }
        how[act.phase](act, done)
        back = time.monotonic()
        self.knarr.loop.run(self.knarr.servers.answer())
        self.knarr.await_ready(self.knarr.replicas)
        done.well_after_s = time.monotonic() - back
        return done

    def _kill(self, act: Act, done: Done) -> None:
        victims = self.knarr.of(act.target)
        done.hits = len(victims)
        for each in victims:
            each.send(signal.SIGKILL)
        for each in victims:
            assert each.process is not None
            each.process.wait(30)
        time.sleep(act.lasts_s)
        for each in victims:
            each.start()

    def _pause(self, act: Act, done: Done) -> None:
        victims = self.knarr.of(act.target)
        done.hits = len(victims)
        for each in victims:
            each.send(signal.SIGSTOP)
        time.sleep(act.lasts_s)
        for each in victims:
            each.send(signal.SIGCONT)

    def _take_away(self, servers: Sequence[Container], act: Act, done: Done) -> None:
        done.hits = len(servers)
        for each in servers:
            self.knarr.loop.run(each.kill())
        time.sleep(act.lasts_s)
        for each in servers:
            self.knarr.loop.run(each.restart())

    def _spoil(self, act: Act, done: Done) -> None:
        fault = replace(FAULTS[act.target])
        self.knarr.registry.faults = [fault]
        time.sleep(act.lasts_s)
        self.knarr.registry.faults = []
        done.hits = _MANY - fault.times

    def _close_api(self, act: Act, done: Done) -> None:
        done.hits = 1
        self.knarr.loop.run(self.knarr.cluster.close())
        time.sleep(act.lasts_s)
        self.knarr.loop.run(self.knarr.cluster.open())

    def _roll(self, _act: Act, done: Done) -> None:
        for each in self.knarr.replicas:
            done.hits += 1
            self._restart(each)
            self.knarr.await_ready([each])

    def _restart(self, replica: Replica) -> None:
        """As a Deployment does: it is asked to end, and the other one of its service goes on."""
        try:
            code = replica.end(signal.SIGTERM, within_s=60)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{replica.name} did not stop within 60 s of SIGTERM")
            replica.end(signal.SIGKILL)
        else:
            if code != 0:
                self.faults.append(f"{replica.name} ended with {code} on SIGTERM")
        replica.start()

    def _restart_engine(self, _act: Act, done: Done) -> None:
        done.hits = 1
        command = os.environ.get("CHAOS_RESTART_DOCKER", RESTART_ENGINE)
        subprocess.run(["/bin/sh", "-c", command], check=True, stdout=sys.stderr)
        for each in self.knarr.servers.containers:  # those that were killed before do not come back by themselves
            self.knarr.loop.run(each.restart())
