"""A deployment from push to the app's answer, against the same git, install and start by hand in the same run.

The app depends on twelve packages of 40 modules each, which come from a folder of wheels on this disk, so that no
network is measured. A cold deployment begins with an empty home: no mirror, no cache, no layer. By hand: `git clone`,
`uv pip install` with an empty cache and bytecode, start, ask until it answers. A warm one changes one line of the app:
by hand `git fetch`, a checkout into a folder of its own, start, ask. Each pair is taken one right after the other.

By hand there is no image: nothing is compressed, digested, published or kept for a rollback. So the platform's share is
also taken from its own steps: the time from push to answer without the time that git, build, push and start took.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx2
import psutil
import uv

from bench.figures import Figure, folder
from bench.platform import Knarr, Repository, environment, free_ports, git, knarr_up, until

PACKAGES = 12
MODULES = 40
LOOK_S = 0.05
"""How often is looked whether a version answers, half of which is measured too many. Looking all the time took one of
two processors from what was measured: each look is a request to an app in Python."""
APP = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
{imports}

VERSION = b"{version}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(VERSION)))
        self.end_headers()
        self.wfile.write(VERSION)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("{host}", int(os.environ["PORT"])), Handler).serve_forever()
"""


def program(version: str, *, host: str) -> str:
    """The app, which imports from every package and answers with its version."""
    imports = "\n".join(f"import cargo{number}.part0" for number in range(PACKAGES))
    return APP.format(version=version, imports=imports, host=host)


def app(version: str) -> Mapping[str, str]:
    """The app's files; a new version is one line."""
    names = [f"cargo{number}" for number in range(PACKAGES)]
    return {
        "Procfile": "web: python app.py\n",
        "requirements.txt": "".join(f"{name}==1.0\n" for name in names),
        "app.py": program(version, host="127.0.0.1"),
    }


def make_wheels(into: Path) -> None:
    """Packages as an index would give them, some 12 KB a module."""
    into.mkdir()
    module = "".join(
        f'def load_{n}(crates):\n    """Loads."""\n    return [each * {n} for each in crates]\n\n\n' for n in range(140)
    )
    for number in range(PACKAGES):
        name, info = f"cargo{number}", f"cargo{number}-1.0.dist-info"
        files = {
            f"{name}/__init__.py": "",
            **{f"{name}/part{part}.py": module for part in range(MODULES)},
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
        with zipfile.ZipFile(into / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)


class ByHand:
    """The same without a platform."""

    def __init__(self, home: Path, repository: Repository, wheels: Path) -> None:
        self._home = home
        self._repository = repository
        self._wheels = wheels
        self._port = free_ports(2)

    def cold_s(self, version: str) -> float:
        """Clone, install, start."""
        shutil.rmtree(self._home, ignore_errors=True)
        began = time.perf_counter()
        git(
            self._repository.path,
            "clone",
            "--quiet",
            "--bare",
            self._repository.path.as_uri(),
            str(self._home / "mirror"),
        )
        self._checkout(version)
        install = (
            "pip",
            "install",
            "--quiet",
            "--no-config",
            "--compile-bytecode",
            "--target",
            str(self._home / "lib"),
        )
        from_here = ("--no-index", "--find-links", str(self._wheels), "--cache-dir", str(self._home / "cache"))
        needs = ("--python", sys.executable, "-r", str(self._home / version / "requirements.txt"))
        subprocess.run([uv.find_uv_bin(), *install, *from_here, *needs], env=environment(), check=True)
        self._start(version)
        return time.perf_counter() - began

    def warm_s(self, version: str) -> float:
        """Fetch, check out, start."""
        began = time.perf_counter()
        git(self._home / "mirror", "fetch", "--quiet", "origin", "main:main", "--force")
        self._checkout(version)
        self._start(version)
        return time.perf_counter() - began

    def _checkout(self, version: str) -> None:
        place = self._home / version
        place.mkdir(parents=True)
        git(self._home / "mirror", f"--work-tree={place}", "checkout", "--force", "main", "--", ".")

    def _start(self, version: str) -> None:
        own = environment(PORT=str(self._port), PYTHONPATH=str(self._home / "lib"))
        process = psutil.Popen([sys.executable, "app.py"], cwd=self._home / version, env=own)
        try:
            until("the app answers", lambda: answers(f"http://127.0.0.1:{self._port}/", version), every_s=LOOK_S)
        finally:
            process.kill()
            process.wait()


_CLIENT = httpx2.Client(timeout=0.5, trust_env=False)
"""One for all: to make one takes longer than a small app's start."""


def answers(url: str, version: str) -> bool:
    """Whether that version answers there now."""
    try:
        return _CLIENT.get(url, headers={"Connection": "close"}).text == version
    except httpx2.HTTPError:
        return False


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment both ways, in seconds."""

    hand_s: float
    live_s: float
    ended_s: float
    steps_s: Mapping[str, float]
    """From a step's first command to its answer, by the saga's own account."""


def by_knarr(knarr: Knarr, repository: Repository, version: str, hand_s: float, url: str = "") -> Deployed:
    """From the push to the app's answer at its address; to the deployment's end, as long as nobody knows it."""
    push = knarr.push_of(repository)
    began = time.perf_counter()
    saga_id = knarr.send(push)
    live_s = 0.0
    if url:
        until("the new version answers", lambda: answers(url, version), every_s=LOOK_S)
        live_s = time.perf_counter() - began
    saga = knarr.ended(saga_id)
    ended_s = time.perf_counter() - began
    return Deployed(hand_s, live_s or ended_s, ended_s, {each["name"]: _seconds(each) for each in saga["steps"]})


def _seconds(step: Mapping[str, str]) -> float:
    return (datetime.fromisoformat(step["ended_at"]) - datetime.fromisoformat(step["started_at"])).total_seconds()


def measure(runs: int, warm_runs: int) -> None:
    """Pairs, cold and warm."""
    cold: list[Deployed] = []
    warm: list[Deployed] = []
    for _ in range(runs):
        with folder() as place:
            make_wheels(place / "wheels")
            with knarr_up(place / "knarr", UV_FIND_LINKS=str(place / "wheels"), UV_NO_INDEX="1") as knarr:
                repository = knarr.app("shop")
                by_hand = ByHand(place / "hand", repository, place / "wheels")
                repository.commit(app("v0"))
                cold.append(by_knarr(knarr, repository, "v0", by_hand.cold_s("v0")))
                url = knarr.api.get("deployer", f"/apps/{repository.path.name}")["url"]
                for change in range(1, warm_runs + 1):
                    version = f"v{change}"
                    repository.commit(app(version))
                    warm.append(by_knarr(knarr, repository, version, by_hand.warm_s(version), url))
    tell("Cold deployment: empty home, 12 packages", cold, live="")
    tell("Redeployment: one line changed", warm, live="<= 1")


def tell(group: str, deployed: Sequence[Deployed], *, live: str) -> None:
    """By hand, with knarr, what its steps took, and what is left beyond 5 % of that."""
    Figure(
        group=group, name="git, install and start by hand", values=[each.hand_s for each in deployed], unit="s"
    ).tell()
    Figure(group=group, name="push to answer", values=[each.live_s for each in deployed], unit="s", target=live).tell()
    for step in deployed[0].steps_s:
        Figure(group=group, name=f"of which {step}", values=[each.steps_s[step] for each in deployed], unit="s").tell()
    more = [(each.ended_s - 1.05 * sum(each.steps_s.values())) * 1000 for each in deployed]
    Figure(group=group, name="more than its steps and 5 %", values=more, unit="ms", target="<= 100").tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--warm-runs", type=int, default=5)
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    measure(given.runs, given.warm_runs)


if __name__ == "__main__":
    main()
