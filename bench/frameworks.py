"""Apps of real frameworks, deployed and built by hand in the same run: from nothing, and after a change of one line.

FastAPI is installed by uv, Next.js by npm, both from the package registries that this machine's clients are set up for.
So cold figures hold the network, and only differences between the two ways in one run say something. By hand means:
a copy of the folder, the install, the build, the start, and requests until the page has the new text. A warm build by
hand keeps `node_modules` and `.next/cache`, as a developer does.

    python -m bench.frameworks      not part of `make bench` without a name: `make bench BENCH=frameworks`
"""

import argparse
import contextlib
import os
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


def fastapi(venv: Path) -> App:
    """FastAPI with uvicorn in a virtual environment."""
    return App(
        name="fastapi",
        changed="main.py",
        before="hello from fastapi",
        install=(
            uv.find_uv_bin(),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(venv / "bin" / "python"),
            "-r",
            "requirements.txt",
        ),
        start=(str(venv / "bin" / "uvicorn"), "main:app", "--port", "{port}"),
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
        self._env = environment(**app.env)
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


def measure(app: App, place: Path, *, warm_runs: int) -> None:
    """One app both ways: cold once, then pairs of changes."""
    source = place / "source" / app.name
    shutil.copytree(CATALOG / app.name, source, ignore=shutil.ignore_patterns("expect.toml"))
    hand = ByHand(app, source, place / "hand")
    with knarr_up(place / f"knarr-{app.name}", KNARR_OBSERVE_S="0") as knarr:
        cold = deploy_s(knarr, app, source, "text 0", "")
        hand_cold = hand.cold_s("text 0")
        url = knarr.api.get("deployer", f"/apps/{app.name}")["url"]
        pairs = []
        for number in range(1, warm_runs + 1):
            by_hand, build = hand.warm_s(f"text {number}")
            pairs.append((deploy_s(knarr, app, source, f"text {number}", url), by_hand, build))
    group = f"{app.name}: from a folder to the answer"
    Figure(group=group, name="first deployment", values=[cold], unit="s").tell()
    Figure(group=group, name="first install, build and start by hand", values=[hand_cold], unit="s").tell()
    warm = [each[0] for each in pairs]
    if app.build:
        Figure(group=group, name="changed line", values=warm, unit="s").tell()
        Figure(group=group, name="its own build by hand, warm", values=[each[2] for each in pairs], unit="s").tell()
        more = [deployed - build for deployed, _, build in pairs]
        Figure(group=group, name="changed line without its own build", values=more, unit="s", target="<= 2").tell()
    else:
        Figure(group=group, name="changed line", values=warm, unit="s", target="<= 1").tell()
    ratio = [deployed / by_hand for deployed, by_hand, _ in pairs]
    Figure(group=group, name="changed line, ratio to build and start by hand", values=ratio, unit="").tell()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm-runs", type=int, default=3)
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    with folder() as place:
        venv = place / "venv"
        subprocess.run([uv.find_uv_bin(), "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
        for app in (fastapi(venv), NEXT):
            measure(app, place, warm_runs=given.warm_runs)


if __name__ == "__main__":
    main()
