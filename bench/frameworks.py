"""Apps of real frameworks, deployed and built by hand in the same run: from nothing, and after a change of one line.

FastAPI and a project with `src` layout are installed by uv, Next.js by npm, all from the package registries that this
machine's clients are set up for. So cold figures hold the network, and only what one run says of both ways can be
compared: it is given as a ratio, too. By hand means: a copy of the folder, the install, the build, the start, and
requests until the page has the new text, with empty caches at first. A warm build by hand keeps the environment,
`node_modules` and `.next/cache`, as a developer does. The two ways take turns, and begin in turn, since a machine that
others use is not as fast at one minute as at the next.

    python -m bench.frameworks      not part of `make bench` without a name: `make bench BENCH=frameworks`
"""

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import uv

from bench.figures import Figure, folder
from bench.platform import Knarr, environment, free_ports, knarr_up, until

CATALOG = Path(__file__).parent.parent / "tests" / "apps" / "catalog"
_POLL_S = 0.05
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app of the catalog, and how it is built by hand."""

    name: str
    changed: str
    """The file in which one line changes."""
    before: str
    """The text in it that is replaced, and that the app answers."""
    install: tuple[str, ...]
    build: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    python: bool = False
    """Its warm target is one second. That of Next.js is its own build and two."""


def by_uv(venv: Path, *what: str) -> tuple[str, ...]:
    """The command that installs into a virtual environment."""
    return (uv.find_uv_bin(), "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), *what)


def fastapi(venv: Path) -> App:
    """FastAPI with uvicorn in a virtual environment."""
    return App(
        name="fastapi",
        changed="main.py",
        before="hello from fastapi",
        install=by_uv(venv, "-r", "requirements.txt"),
        start=(str(venv / "bin" / "uvicorn"), "main:app", "--port", "{port}"),
        python=True,
    )


def src_layout(venv: Path) -> App:
    """A package with `project.scripts`, which is built by its backend and installed."""
    return App(
        name="src-layout",
        changed="src/shop/server.py",
        before="hello from a package",
        install=by_uv(venv, "."),
        build=by_uv(venv, "--reinstall-package", "shop", "--no-deps", "."),
        start=("/bin/sh", "-c", f"PORT={{port}} exec {venv}/bin/shop"),
        python=True,
    )


NEXT = App(
    name="next",
    changed="app/page.js",
    before="hello from next",
    install=("npm", "install", "--no-audit", "--no-fund", "--loglevel", "error"),
    build=("npx", "next", "build"),
    start=("npx", "next", "start", "--port", "{port}"),
    env={"NEXT_TELEMETRY_DISABLED": "1"},
)


class ByHand:
    """The app in a folder of its own, without a platform."""

    def __init__(self, app: App, source: Path, place: Path) -> None:
        self._app = app
        self._place = place / app.name
        caches = {"UV_CACHE_DIR": str(place / "uv"), "npm_config_cache": str(place / "npm")}
        self._env = environment(**app.env, **caches)
        shutil.copytree(source, self._place)

    def cold_s(self, text: str) -> float:
        """Seconds of install, build and start; of these the build alone is in `build_s`."""
        began = time.perf_counter()
        self._run(self._app.install)
        return time.perf_counter() - began + self.warm_s(text)[0]

    def warm_s(self, text: str) -> tuple[float, float]:
        """Seconds of build and start after a change, and those of the build alone."""
        change(self._app, self._place, text)
        began = time.perf_counter()
        if self._app.build:
            self._run(self._app.build)
        built = time.perf_counter()
        with self._started() as url:
            until(f"{self._app.name} answers", lambda: answers(url, text), every_s=_POLL_S, patience_s=_PATIENCE_S)
            return time.perf_counter() - began, built - began

    def _run(self, argv: tuple[str, ...]) -> None:
        subprocess.run(argv, cwd=self._place, env=self._env, check=True, capture_output=True)

    @contextlib.contextmanager
    def _started(self) -> Iterator[str]:
        port = free_ports(2)
        argv = [part.format(port=port) for part in self._app.start]
        process = psutil.Popen(
            argv, cwd=self._place, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            for each in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            process.wait()


def change(app: App, place: Path, text: str) -> None:
    """Replace the line that the app answers."""
    original = (CATALOG / app.name / app.changed).read_text()
    (place / app.changed).write_text(original.replace(app.before, text))


def answers(url: str, text: str) -> bool:
    """Whether the page has that text now."""
    try:
        return text in httpx2.get(url, timeout=5, trust_env=False).text
    except httpx2.HTTPError:
        return False


def deploy_s(knarr: Knarr, app: App, source: Path, text: str, url: str) -> float:
    """Seconds from `knarr deploy` to the new text at the app's address (before the first deployment: to its end)."""
    change(app, source, text)
    argv = [sys.executable, "-m", "knarr", "deploy", str(source), "--app", app.name]
    began = time.perf_counter()
    process = psutil.Popen(
        argv, env=environment(KNARR_HOME=str(knarr.home)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        if url:
            until("the new text is there", lambda: answers(url, text), every_s=_POLL_S, patience_s=_PATIENCE_S)
            took = time.perf_counter() - began
        _, said = process.communicate(timeout=_PATIENCE_S)
    finally:
        if process.is_running() and process.poll() is None:
            process.kill()
    if process.returncode:
        raise RuntimeError(said.decode())
    return took if url else time.perf_counter() - began


def ended_cpu_s() -> float:
    """Processor seconds of processes of this one that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def platform_cpu_s(knarr: Knarr) -> float:
    """Processor seconds of the platform, and of build tools and instances that have ended."""
    return float(sum(knarr.process.cpu_times()[:4]))


@dataclass(slots=True)
class Pair:
    """One change of a line, deployed and built by hand."""

    deployed_s: float = 0.0
    deployed_cpu_s: float = 0.0
    by_hand_s: float = 0.0
    by_hand_cpu_s: float = 0.0
    build_s: float = 0.0


def change_both_ways(knarr: Knarr, app: App, source: Path, hand: ByHand, number: int) -> Pair:
    """Deploy and build one change; every other time by hand first."""
    pair, text = Pair(), f"text {number}"
    url = knarr.api.get("deployer", f"/apps/{app.name}")["url"]

    def deployed() -> None:
        before_s = platform_cpu_s(knarr) + ended_cpu_s()
        pair.deployed_s = deploy_s(knarr, app, source, text, url)
        pair.deployed_cpu_s = platform_cpu_s(knarr) + ended_cpu_s() - before_s

    def by_hand() -> None:
        before_s = ended_cpu_s()
        pair.by_hand_s, pair.build_s = hand.warm_s(text)
        pair.by_hand_cpu_s = ended_cpu_s() - before_s

    for way in (deployed, by_hand) if number % 2 else (by_hand, deployed):
        way()
    return pair


def measure(app: App, place: Path, *, warm_runs: int) -> None:
    """One app both ways: cold once, then pairs of changes."""
    source = place / "source" / app.name
    shutil.copytree(CATALOG / app.name, source, ignore=shutil.ignore_patterns("expect.toml"))
    hand = ByHand(app, source, place / "hand" / app.name)
    with knarr_up(place / f"knarr-{app.name}", KNARR_OBSERVE_S="0") as knarr:
        hand_cold = hand.cold_s("text 0")
        cold = deploy_s(knarr, app, source, "text 0", "")
        pairs = [change_both_ways(knarr, app, source, hand, number) for number in range(1, warm_runs + 1)]
    group = f"{app.name}: from a folder to the answer"
    Figure(group=group, name="first deployment", values=[cold], unit="s").tell()
    Figure(group=group, name="first install, build and start by hand", values=[hand_cold], unit="s").tell()
    Figure(group=group, name="first deployment, ratio to by hand", values=[cold / hand_cold], unit="x").tell()
    target = "<= 1" if app.python else ""
    warm: dict[str, tuple[list[float], str, str]] = {
        "changed line": ([each.deployed_s for each in pairs], "s", target),
        "changed line: CPU, the command included": ([each.deployed_cpu_s for each in pairs], "s", ""),
        "build and start by hand, warm": ([each.by_hand_s for each in pairs], "s", ""),
        "build and start by hand, warm: CPU": ([each.by_hand_cpu_s for each in pairs], "s", ""),
        "changed line, ratio to by hand": ([each.deployed_s / each.by_hand_s for each in pairs], "x", ""),
    }
    if not app.python:
        more = [each.deployed_s - each.build_s for each in pairs]
        warm["its own build by hand, warm"] = ([each.build_s for each in pairs], "s", "")
        warm["changed line without its own build"] = (more, "s", "<= 2")
    for name, (values, unit, bound) in warm.items():
        Figure(group=group, name=name, values=values, unit=unit, target=bound).tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm-runs", type=int, default=4)
    parser.add_argument("--only", choices=("fastapi", "src-layout", "next"), help="one of the apps")
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    with folder() as place:
        apps = []
        for name, make in (("fastapi", fastapi), ("src-layout", src_layout)):
            venv = place / f"venv-{name}"
            subprocess.run([uv.find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
            apps.append(make(venv))
        for app in (*apps, NEXT):
            if given.only in {None, app.name}:
                measure(app, place, warm_runs=given.warm_runs)


if __name__ == "__main__":
    main()
