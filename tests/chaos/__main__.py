"""`make chaos-stack`: the platform, two of each service, on real servers, under pushes, while all of it is broken.

    python -m tests.chaos [--seed N] [--only kills,mysql] [--apps N] [--every SECONDS] [--lease SECONDS]

Prints its seed, each act as it comes, and a table at the end; ends with 1 if anything is not as it must be, with 2 if
a server is missing. The seed fixes what is hit, in which order and after how many pushes.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.acting import Actor
from tests.chaos.asking import facts_of, open_sagas
from tests.chaos.figures import table
from tests.chaos.judging import Facts, violations_of
from tests.chaos.plans import PHASES, UNASKED, Phase, plan_of
from tests.chaos.pushing import Pusher
from tests.chaos.replicated import Replicated, replicated
from tests.chaos.watching import Watcher
from tests.e2e.harness import remove
from tests.stack.servers import find_docker

LEASE_S = 10.0
SETTLE_S = 900.0
"""For the last sagas to end, retries and all."""
CLEAR_S = 300.0
"""Then, until nothing is on its way any more: sweepers come each minute, or ten leases after a lost one."""
ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit code."""
    options = _options(arguments)
    if not (os.environ.get("KUBECONFIG") and find_docker()):
        say("not run: it needs a Kubernetes cluster on this machine (KUBECONFIG), and a Docker engine (DOCKER_HOST)")
        return 2
    phases: Sequence[Phase] = options.only
    again = f"--seed {options.seed} --only {','.join(phases)} --apps {options.apps}"
    say(f"seed {options.seed}; to run it again: make chaos-stack ARGS='{again}'")
    for number in (signal.SIGINT, signal.SIGTERM):  # also in a shell's background: what was started has to go
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="knarr-chaos-"))
    try:
        with replicated(folder, lease_s=options.lease) as knarr:
            say("two of each service are ready")
            return _run(knarr, options, phases)
    finally:
        logs = ROOT / "build" / "chaos" / str(options.seed)
        shutil.copytree(folder / "logs", logs, dirs_exist_ok=True)
        say(f"logs: {logs.relative_to(ROOT)}")
        remove(folder)


def _run(knarr: Replicated, options: argparse.Namespace, phases: Sequence[Phase]) -> int:
    began = time.monotonic()
    apps = [f"app-{number}" for number in range(1, options.apps + 1)]
    pusher = Pusher(knarr, apps, options.seed, options.every)
    for first in [pusher.push(app) for app in apps]:
        saga = knarr.ended(first.sagas[0])
        assert saga["state"] == "SUCCEEDED", saga
    say(f"{time.monotonic() - began:6.0f} s  {len(apps)} apps are live")
    watcher = Watcher({app: knarr.app(app)["url"] for app in apps})
    actor = Actor(knarr, pusher)
    with watcher:
        with pusher:
            for act in plan_of(options.seed, phases, lease_s=options.lease):
                done = actor.perform(act)
                say(f"{time.monotonic() - began:6.0f} s  {act}: hit {done.hits}, ready after {done.well_after_s:.1f} s")
            pusher.wait_for_more(2)
        held = _settle(knarr)
        facts, violations = _judged(knarr, pusher, watcher)
    violations += pusher.faults + actor.faults
    if "docker" not in phases:  # else the engine may have taken the pods with it
        violations += [f"{app} did not answer {each.failed} times" for app, each in watcher.apps.items() if each.failed]
    say("")
    for line in table(knarr, facts, actor, pusher, watcher, held=held, seconds=time.monotonic() - began):
        say(line)
    for each in violations:
        say(f"VIOLATED  {each}")
    say(f"seed {options.seed}: {len(violations)} violations")
    return int(bool(violations))


def _settle(knarr: Replicated) -> list[str]:
    """Until each saga has ended. A person presses `retry` on those that wait for one; what they said."""
    held: dict[str, str] = {}
    until = time.monotonic() + SETTLE_S
    while (left := open_sagas(knarr)) and time.monotonic() < until:
        for saga in left:
            if (saga.held or saga.state == "STUCK") and saga.id not in held:
                held[saga.id] = f"{saga.app}: {saga.state}, {saga.why}"
                knarr.api.post("saga_coordinator", f"/sagas/{saga.id}/retry", {"reason": "all is well again"})
        time.sleep(1)
    return list(held.values())


def _judged(knarr: Replicated, pusher: Pusher, watcher: Watcher) -> tuple[Facts, list[str]]:
    """The facts, as soon as nothing is wrong with them; or what still is when patience ends."""
    until = time.monotonic() + CLEAR_S
    while True:
        facts = facts_of(knarr, pusher.pushed, watcher)
        violations = violations_of(facts)
        say(f"         {len(violations)} things are not as they must be yet")
        if not violations or time.monotonic() > until:
            return facts, violations
        time.sleep(5)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--only", type=_phases, default=UNASKED, help=f"some of {','.join(PHASES)}")
    parser.add_argument("--apps", type=int, default=4)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two pushes, on average")
    parser.add_argument("--lease", type=float, default=LEASE_S, help="seconds, KNARR_LEASE_S of all services")
    return parser.parse_args(arguments)


def _phases(names: str) -> tuple[Phase, ...]:
    chosen = tuple(each for each in PHASES if each in names.split(","))
    if len(chosen) != len(names.split(",")):
        raise argparse.ArgumentTypeError(f"phases are {', '.join(PHASES)}")
    return chosen


def say(line: str) -> None:
    """To whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
