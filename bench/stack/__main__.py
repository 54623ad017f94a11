"""`make bench-stack`: the measurements on MySQL, Pulsar, Docker, a registry and Kubernetes, one after the other.

python -m bench.stack                      all of them
python -m bench.stack --only steps,floor   some (`make bench-stack BENCH=steps,floor`)
python -m bench.stack --write              and puts each one's table into bench/STACK.md
python -m bench.stack --quick              each with one small run, to see that all of it works

The servers are those that the environment names (MYSQL_URL, PULSAR_URL, REGISTRY, DOCKER_HOST, KUBECONFIG); where a
Docker engine answers, those of MySQL, Pulsar and the registry that are wanted and not named are started for the run. A
measurement whose servers are missing is not run. Each table tells which servers were there: idle ones take time, too.
"""

import argparse
import contextlib
import ctypes.util
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.__main__ import chosen, machine, run, show, versions, write_down
from bench.figures import table
from tests.stack.servers import SERVERS, find_docker, started

NEEDS: Mapping[str, Sequence[str]] = {
    "floor": ("MYSQL_URL", "PULSAR_URL"),
    "steps": ("MYSQL_URL", "PULSAR_URL"),
    "webhook": ("MYSQL_URL", "PULSAR_URL"),
    "deploys": ("MYSQL_URL", "PULSAR_URL", "REGISTRY", "DOCKER_HOST", "KUBECONFIG"),
}
"""Modules of this package in the order of the table, and which servers they want."""
QUICK: Mapping[str, Sequence[str]] = {
    "floor": ("--runs=1", "--rounds=48"),
    "steps": ("--runs=1", "--scale=0.2"),
    "webhook": ("--runs=1", "--seconds=2"),
    "deploys": ("--runs=1", "--warm-runs=2"),
}
"""With how little each of them can do."""
LIMIT_S = 3600
PAGE = Path(__file__).parent.parent / "STACK.md"
LIBRARIES = ("knarr", "SQLAlchemy", "asyncmy", "pulsar-client", "fastavro", "fastapi", "uvicorn")


def durability() -> str:
    """What stands between an acknowledged message and a power cut, as far as the broker's container tells."""
    port = os.environ.get("PULSAR_URL", "").rpartition(":")[2]
    found = _said("docker", "ps", "--quiet", "--filter", f"publish={port}").split()
    settings = ("journalSyncData", "managedLedgerNewEntriesCheckDelayInMillis")
    lines = _said("docker", "exec", found[0], "cat", "conf/standalone.conf").splitlines() if found else ()
    known = [line for line in lines if line.partition("=")[0] in settings]
    return f"- Pulsar: {', '.join(known) or 'its settings are not known: it is in no container of this engine'}"


def allocator() -> str:
    """Let every process that is started from now on have the allocator of the image (ADR 23); what it is."""
    found = ctypes.util.find_library("jemalloc")
    if found is None:
        return "- allocator: that of the C library, where the image has jemalloc (Debian: libjemalloc2)"
    os.environ["LD_PRELOAD"] = found
    return f"- allocator: {found}, as in the image"


def _said(*command: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return ""


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.stack", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"a list of: {', '.join(NEEDS)}")
    parser.add_argument("--write", action="store_true", help="put the tables into bench/STACK.md")
    parser.add_argument("--quick", action="store_true", help="one small run of each")
    given = parser.parse_args()
    names = chosen(given.only, list(NEEDS))
    wanted = {variable for name in names for variable in NEEDS[name]}
    with started(wanted) if find_docker() else contextlib.nullcontext():
        measure(names, write=given.write, quick=given.quick)


def measure(names: Sequence[str], *, write: bool, quick: bool) -> None:
    """Against the servers that are there now."""
    servers = [f"- {each.name}: {each.says()}" for each in SERVERS if each.is_named]
    for name in names:
        missing = [each for each in NEEDS[name] if not os.environ.get(each)]
        if missing:
            show(f"- {name}: not run, for want of {', '.join(missing)}")
            continue
        show(f"{name} …")
        began, about = time.monotonic(), [*machine(), *servers, durability(), versions(LIBRARIES), allocator()]
        figures = run(f"stack.{name}", *(QUICK[name] if quick else ()), limit_s=LIMIT_S)
        took = f"- {'a small run' if quick else 'it'} took {(time.monotonic() - began) / 60:.0f} minutes"
        text = "\n".join([*about, took, "", table(figures)]) + "\n"
        show(f"\n{text}")
        if write:
            write_down(text, PAGE, name)


if __name__ == "__main__":
    main()
