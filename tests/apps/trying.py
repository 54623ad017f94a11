"""Deploy folders and git repositories on a platform of their own, and report what became of each.

In: sources (`FOLDER`, `URL`, each with `@REF` and `#ROOT`). Out: one `Outcome` a source: how it ended, the first
answer, the seconds of a first deployment and of one after a change of one line, and the reason in words.
Everything is read from outside: the command line, the HTTP API, and the app's own address.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import httpx2

from seedwork.testing.ports import block_of_ports
from tests.e2e.harness import Laptop, remove

Verdict = Literal["live", "no web", "no answer", "refused", "undone", "waits"]

ANSWER_S = 20.0
"""Time limit of one request to an app that was declared live, in seconds."""
DEPLOY_S = 1200.0
"""Time limit of one `knarr deploy`, in seconds: a cold build of a large front end included."""
_NAME = re.compile(r"[^a-z0-9]+")
_CHANGED = ".try-apps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is deployed."""

    name: str
    place: str
    """A folder, or the URL of a git repository."""
    ref: str | None = None
    root: str = "."

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read `[NAME=]PLACE[@REF][#ROOT]`.

        Raises:
            ValueError: The line is empty.
        """
        text, _, root = line.strip().partition("#")
        name, equals, place = text.partition("=")
        if not equals:
            name, place = "", text
        head, at, ref = place.rpartition("@")
        if at and (Path(head).exists() or (":" in head and "/" not in ref)):
            place = head
        else:
            ref = ""
        if not place:
            raise ValueError(f"no folder and no repository in {line!r}")
        shown = name or _shown(place) + (f"-{root}" if root else "") + (f"-{ref}" if ref else "")
        return cls(
            name=_NAME.sub("-", shown.lower()).strip("-")[-40:].strip("-"),
            place=place,
            ref=ref or None,
            root=root or ".",
        )

    def fetch(self, to: Path) -> Path:
        """Copy the folder, or clone the repository; return the app's root.

        Raises:
            subprocess.CalledProcessError: git failed.
        """
        if Path(self.place).is_dir() and not self.ref and not (Path(self.place) / "HEAD").is_file():
            shutil.copytree(self.place, to, symlinks=True, ignore=shutil.ignore_patterns("node_modules", ".git"))
        else:
            branch = ["--branch", self.ref] if self.ref else []
            _run("git", "clone", "--quiet", "--depth", "1", *branch, "--", _url(self.place), str(to))
        return to / self.root


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a source."""

    source: Source
    verdict: Verdict
    plan: str = ""
    """What was detected."""
    status: int | None = None
    """Status of the first answer."""
    body: str = field(default="", repr=False)
    """Text of the first answer, at most 64 kB of it."""
    cold_s: float | None = None
    warm_s: float | None = None
    reason: str = ""
    saga: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class _Platform(Laptop):
    """A platform whose `up` has more arguments."""

    more: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def arguments(self) -> list[str]:
        """Arguments of `knarr`."""
        return [*super().arguments, *self.more]


@contextlib.contextmanager
def platform(folder: Path, *, up: Sequence[str] = (), **settings: str) -> Iterator[Laptop]:
    """Run `knarr up` on a home of its own; `up` holds more arguments of that command."""
    with block_of_ports() as ports:
        laptop = _Platform(folder, ports, settings=settings, more=tuple(up))
        try:
            yield laptop.start()
        finally:
            laptop.stop()
            remove(folder / "home")


def try_source(knarr: Laptop, source: Source, *, path: str = "/", warm: bool = True, keep: bool = False) -> Outcome:
    """Deploy a source, ask it, change one file and deploy it again, and remove the app."""
    with tempfile.TemporaryDirectory(prefix="try-apps-") as scratch:
        try:
            folder = source.fetch(Path(scratch) / "source")
        except subprocess.CalledProcessError as error:
            return Outcome(source=source, verdict="refused", reason=f"git: {error.stderr.strip()[-300:]}")
        return _tried(knarr, source, folder, path=path, warm=warm, keep=keep)


def _tried(knarr: Laptop, source: Source, folder: Path, *, path: str, warm: bool, keep: bool) -> Outcome:
    saga, cold_s, said = deploy(knarr, source.name, folder)
    try:
        verdict, reason = _verdict(saga, said)
        plan = _plan(saga)
        if verdict != "live":
            return Outcome(source=source, verdict=verdict, plan=plan, cold_s=cold_s, reason=reason, saga=saga)
        status, body, fault = _ask(knarr, source.name, path)
        if status is None:
            answered: Verdict = "no web" if fault == "" else "no answer"
            return Outcome(source=source, verdict=answered, plan=plan, cold_s=cold_s, reason=fault, saga=saga)
        warm_s = None
        if warm:
            (folder / _CHANGED).write_text(f"{time.time_ns()}\n")
            again, warm_s, said = deploy(knarr, source.name, folder)
            if again.get("state") != "SUCCEEDED":
                reason = f"the second deployment: {_verdict(again, said)[1]}"
        return Outcome(
            source=source,
            verdict="live",
            plan=plan,
            status=status,
            body=body,
            cold_s=cold_s,
            warm_s=warm_s,
            reason=reason,
            saga=saga,
        )
    finally:
        if not keep:
            cli(knarr, "apps", "remove", source.name, "--yes")


def deploy(knarr: Laptop, app: str, folder: Path) -> tuple[dict[str, Any], float, str]:
    """Deploy a folder: the saga (empty where none began), the seconds it took, and what the command printed."""
    began = time.monotonic()
    done = cli(knarr, "deploy", str(folder), "--app", app, "--json")
    took_s = time.monotonic() - began
    try:
        saga = json.loads(done.stdout)
    except ValueError:
        saga = {}
    return saga if isinstance(saga, dict) else {}, took_s, done.stderr


def cli(knarr: Laptop, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `knarr` as its user does."""
    return subprocess.run(
        [sys.executable, "-m", "knarr", *arguments],
        env=knarr.environment(KNARR_HOME=str(knarr.home)),
        capture_output=True,
        text=True,
        timeout=DEPLOY_S,
        check=False,
        cwd=knarr.folder,
    )


def _verdict(saga: Mapping[str, Any], said: str) -> tuple[Verdict, str]:
    if not saga:
        return "refused", " ".join(said.split())[-400:]
    if saga["state"] == "SUCCEEDED":
        return "live", ""
    failed = next((each for each in saga["steps"] if each.get("error")), None)
    error = (failed or {}).get("error") or {}
    text = error.get("message", "") if isinstance(error, Mapping) else str(error)
    if isinstance(error, Mapping) and (tail := [line for line in error.get("log_tail") or () if line.strip()]):
        text = f"{text} Log: {tail[-1].strip()[-160:]}"
    if saga["state"] != "COMPENSATED":
        return "waits", text
    return ("refused" if failed and failed["name"] == "source" else "undone"), text


def _plan(saga: Mapping[str, Any]) -> str:
    for step in saga.get("steps", ()):
        description = (step.get("result") or {}).get("description") if step["name"] == "source" else None
        if description:
            return str(description.get("framework") or description["runtime"]["kind"])
    return ""


def _ask(knarr: Laptop, app: str, path: str) -> tuple[int | None, str, str]:
    """Status and text of the answer, or none and why; an app without an address gives none and no reason."""
    url = knarr.app(app).get("url")
    if not url:
        return None, "", ""
    try:
        answer = httpx2.get(url.rstrip("/") + path, timeout=ANSWER_S, trust_env=False)
    except httpx2.HTTPError as error:
        return None, "", f"{type(error).__name__}: {error}"
    if answer.status_code in {502, 503, 504}:
        return None, "", f"{answer.status_code} {answer.text[:120]!r}"
    return answer.status_code, answer.text[:65536], ""


def _shown(place: str) -> str:
    parts = [part for part in place.removesuffix("/").removesuffix(".git").removesuffix("/repo").split("/") if part]
    return parts[-1]


def _url(place: str) -> str:
    return Path(place).resolve().as_uri() if Path(place).exists() else place


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=DEPLOY_S)
