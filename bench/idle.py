"""What the platform takes when nothing happens, alone and as single services, and what a large image adds.

Memory is what the kernel counts as resident for the platform's own process; apps and build tools are processes of their
own. Each value is the largest of some that are taken one after the other.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil

from bench.figures import Figure, folder
from bench.platform import Knarr, environment, free_ports, knarr_up, until
from seedwork.chassis.settings import SERVICE_PORTS

MB = 1_000_000
PIECES = 5
"""Files of the large app: 100 MB each, of bytes that cannot be compressed."""
APP = """
import os
from http.server import HTTPServer, SimpleHTTPRequestHandler

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), SimpleHTTPRequestHandler).serve_forever()
"""


def highest_mb(look: Callable[[], int], seconds: float) -> float:
    """The largest value within that time."""
    last = time.monotonic() + seconds
    highest = look()
    while time.monotonic() < last:
        time.sleep(0.05)
        highest = max(highest, look())
    return highest / MB


def platform(seconds: float) -> None:
    """All six services in one process, and a deployment of 500 MB."""
    group = "Resident memory"
    with folder() as place, knarr_up(place / "knarr") as knarr:
        idle = highest_mb(knarr.rss_bytes, seconds)
        Figure(group=group, name="platform, idle", values=[idle], unit="MB", target="<= 200").tell()
        small = during_a_deployment_mb(knarr, "small", pieces=0)
        large = during_a_deployment_mb(knarr, "large", pieces=PIECES)
        image = sum(each["size_bytes"] for each in knarr.api.pages("registry", "/images", limit=10, app="large")) / MB
        Figure(group=group, name="most during a small deployment", values=[small], unit="MB").tell()
        Figure(group=group, name="size of the large image", values=[image], unit="MB").tell()
        Figure(group=group, name="large image: more than idle", values=[large - idle], unit="MB", target="<= 64").tell()


def during_a_deployment_mb(knarr: Knarr, name: str, *, pieces: int) -> float:
    """The most that the platform has while it deploys that."""
    repository = knarr.app(name)
    for piece in range(pieces):
        (repository.path / f"cargo{piece}.bin").write_bytes(os.urandom(100 * MB))
    repository.commit({"Procfile": "web: python app.py\n", "requirements.txt": "", "app.py": APP})
    saga_id = knarr.send(knarr.push_of(repository))
    highest = knarr.rss_bytes()

    def ended() -> bool:
        nonlocal highest
        highest = max(highest, knarr.rss_bytes())
        return knarr.has_ended(saga_id)

    until("the deployment's end", ended, every_s=0.01, patience_s=400)
    knarr.ended(saga_id)
    return highest / MB


def services(seconds: float) -> None:
    """Each in a process of its own."""
    for name in SERVICE_PORTS:
        with folder() as home:
            mb = alone_mb(name, home, seconds)
        Figure(group="Resident memory", name=f"{name} alone, idle", values=[mb], unit="MB", target="<= 120").tell()


def alone_mb(name: str, home: Path, seconds: float) -> float:
    """One service, started as its container does it."""
    base = free_ports(7)
    own = environment(KNARR_HOME=str(home), KNARR_PORT_BASE=str(base), KNARR_TOKEN="bench", KNARR_SERVICE_TOKEN="bench")  # noqa: S106  of a process that lives for seconds
    url = f"http://127.0.0.1:{base + 1 + SERVICE_PORTS.index(name)}/readyz"
    with (home / "service.log").open("wb") as log:
        process = psutil.Popen([sys.executable, "-m", f"services.{name}"], env=own, stdout=log, stderr=log, cwd=home)
    try:
        until(f"{name} is ready", lambda: process.poll() is not None or is_ready(url), every_s=0.05)
        if process.poll() is not None:
            raise RuntimeError((home / "service.log").read_text())
        return highest_mb(lambda: int(process.memory_info().rss), seconds)
    finally:
        process.terminate()
        process.wait(40)


def is_ready(url: str) -> bool:
    """Whether it answers."""
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    platform(given.seconds)
    services(given.seconds)


if __name__ == "__main__":
    main()
