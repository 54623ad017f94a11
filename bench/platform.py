"""`knarr up` as a person has it: a process of its own on free ports, an empty home, repositories on this disk."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import orjson
import psutil

from knarr.client import Platform
from knarr.home import Address
from knarr.push import Push, push_of
from seedwork.errors import NotFound

SECRET = "a secret of the measurements"  # noqa: S105  of a repository that lives for a minute
PATIENCE_S = 120.0
ENDED = ("SUCCEEDED", "COMPENSATED", "STUCK")
WAITS_FOR_A_PERSON = ("PAUSED", "STUCK")
SHOWS_S = 0.02
"""Between two looks for a saga that has just begun; it is there after a few of them."""


def until(what: str, look: Callable[[], Any], *, every_s: float = 0.002, patience_s: float = PATIENCE_S) -> Any:
    """The first thing that `look` finds.

    Raises:
        TimeoutError: It found nothing for that long.
    """
    last = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > last:
            raise TimeoutError(f"{what}: not within {patience_s:g} s")
        time.sleep(every_s)
    return found


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has now."""
    for first in range(21_000, 32_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


def environment(**more: str) -> dict[str, str]:
    """Ours without settings of the developer's own knarr."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("KNARR_")}, **more}


class Repository:
    """A git repository with one branch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.full_name = f"bench/{path.name}"
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--initial-branch", "main")

    def commit(self, files: Mapping[str, str]) -> str:
        """Write files and commit all; the commit."""
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        git(self.path, "add", "--all")
        git(self.path, "commit", "--quiet", "--message", "a change")
        return git(self.path, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    """Run git there, without the developer's configuration."""
    people = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Bench"), ("EMAIL", "bench@knarr.invalid"))
    }
    own = {**environment(), **people, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", "-C", folder, *arguments], env=own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Knarr:
    """A running platform."""

    def __init__(self, folder: Path, process: psutil.Popen, address: Address) -> None:
        self.repositories = folder / "repositories"
        self.home = folder / "home"
        self.process = process
        self.api = Platform(address, (self.home / "token").read_text().strip())

    def app(self, name: str) -> Repository:
        """A new app with a repository of its own."""
        made = Repository(self.repositories / name)
        body = {"name": name, "repository": made.full_name, "clone_url": made.path.as_uri(), "webhook_secret": SECRET}
        self.api.post("webhook", "/apps", body)
        return made

    def push_of(self, repository: Repository) -> Push:
        """A signed push of the tip, as GitHub makes it."""
        return push_of(
            repository.path, full_name=repository.full_name, secret=SECRET, clone_url=repository.path.as_uri()
        )

    def send(self, push: Push) -> str:
        """The id of the deployment that it starts."""
        answer = self.api.request("POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers))
        (saga_id,) = answer["deployments"]
        return str(saga_id)

    def saga(self, saga_id: str) -> Mapping[str, Any] | None:
        """As it stands; none: it shows after a few milliseconds."""
        try:
            found: Mapping[str, Any] = self.api.get("saga_coordinator", f"/sagas/{saga_id}")
        except NotFound:
            return None
        return found

    def has_ended(self, saga_id: str) -> bool:
        """Whether it is over, or needs a person."""
        saga = self.saga(saga_id)
        return saga is not None and (saga["state"] in ENDED or bool(saga["held"]))

    def ended(self, saga_id: str) -> Mapping[str, Any]:
        """Wait for its end, which the saga's stream tells: looks would take processor time from what is measured.

        Raises:
            RuntimeError: It did not succeed, or waits for a person.
        """
        until("the saga shows", lambda: self.saga(saga_id), every_s=SHOWS_S)
        headers = {"Accept": "text/event-stream"}
        with self.api.stream("saga_coordinator", f"/sagas/{saga_id}/stream", headers=headers) as answer:
            for event in httpx2.EventSource(answer):
                if event.event == "end" or orjson.loads(event.data)["state"] in WAITS_FOR_A_PERSON:
                    break
        saga = self.saga(saga_id)
        if saga is None or saga["state"] != "SUCCEEDED":
            raise RuntimeError(f"the deployment did not succeed: {saga}")
        return saga

    def rss_bytes(self) -> int:
        """What the platform's own process has in memory; apps and build tools are processes of their own."""
        return int(self.process.memory_info().rss)


@contextlib.contextmanager
def knarr_up(folder: Path, **settings: str) -> Iterator[Knarr]:
    """Start it in an empty folder, wait until it serves; at the end stop it and its apps."""
    base, home = free_ports(60), folder / "home"
    (folder / "repositories").mkdir(parents=True)
    home.mkdir(mode=0o700)
    own = environment(
        KNARR_APP_PORT_BASE=str(base + 10),
        KNARR_SOURCE_ALLOW=f"{(folder / 'repositories').as_uri()}/",
        KNARR_POLL_S="0",
        **({"KNARR_OBSERVE_S": "0"} | settings),
    )
    command = [sys.executable, "-m", "knarr", "up", "--home", str(home), "--port-base", str(base)]
    with (folder / "up.log").open("wb") as log:
        process = psutil.Popen(command, env=own, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        until("knarr is ready", lambda: (home / "platform.json").exists() or process.poll() is not None, every_s=0.02)
        if process.poll() is not None:
            raise RuntimeError((folder / "up.log").read_text())
        yield Knarr(folder, process, Address(host="127.0.0.1", port_base=base))
    finally:
        _end(process)
        _end_apps(home)


def _end(process: psutil.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(40)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(10)


def _end_apps(home: Path) -> None:
    """Apps outlive the platform that started them; each knows its home."""
    ids = {path.read_text().strip() for path in home.glob("*/home.id")}
    left = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.environ().get("KNARR_HOME_ID") in ids:
                each.kill()
                left.append(each)
    psutil.wait_procs(left, timeout=10)
