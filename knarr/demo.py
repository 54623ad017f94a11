"""`make run`: a real push through the real platform, and one that cannot work, undone while the app goes on answering.

The repository lives in `<home>/demo/hello-python`; the app is made through the API, the push is signed and posted as
GitHub does it. A second run finds what the first one left, and only serves.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import httpx2

from knarr.client import Platform
from knarr.command import Session
from knarr.home import Address, holder
from knarr.push import push_of
from knarr.terminal import escape, short
from knarr.up import Options, next_steps, program, serve
from knarr.watch import Saga, watch
from seedwork.errors import InvalidInput, KnarrError, Misconfigured, NotFound, Unavailable

APP = "hello-python"
FULL_NAME = "demo/hello-python"
EXAMPLES = Path(__file__).parent.parent / "examples"

BROKEN = """\
import sys

sys.exit("this commit cannot work: it wants a database, and there is none")
"""
"""What the second commit puts at the top of `app.py`."""

_AUTHOR = {
    "GIT_AUTHOR_NAME": "Demo",
    "GIT_AUTHOR_EMAIL": "demo@knarr.invalid",
    "GIT_COMMITTER_NAME": "Demo",
    "GIT_COMMITTER_EMAIL": "demo@knarr.invalid",
}


def run(session: Session, *, host: str, port_base: int) -> None:
    """Serve, and tell the story beside it; where a platform has the home already, only tell the story."""
    if not (EXAMPLES / APP).is_dir():
        raise NotFound(
            f"There is no example at {EXAMPLES / APP}", todo="Run it in a clone of the repository: make run."
        )
    session.home.make()
    session.home.demo.mkdir(mode=0o700, exist_ok=True)
    if holder(session.home) is not None:
        session.terminal.say("[quiet]The platform runs already.[/]\n")
        Story(session, session.platform).tell()
        return
    began = time.monotonic()
    session.terminal.say("[quiet]Starting six services …[/]")

    def ready(address: Address) -> None:
        took = time.monotonic() - began
        session.terminal.say(f"[good]knarr is ready[/] [quiet]after {took:.1f} s, home {session.home.path}[/]\n")
        platform = Platform(address, session.home.token())
        threading.Thread(target=_tell, args=(session, platform), name="story", daemon=True).start()

    options = Options(home=session.home, host=host, port_base=port_base, activity=False)
    serve(options, session.terminal, ready=ready)


def _tell(session: Session, platform: Platform) -> None:
    """The story in its thread: an error in it is shown, and the platform goes on serving."""
    try:
        Story(session, platform).tell()
    except KnarrError as error:
        session.terminal.error(error)
        session.terminal.say("\n[quiet]The platform goes on serving. Ctrl-C stops.[/]")


class Origin(Protocol):
    """Where the platform fetches the sample app from, when it does not see our folders."""

    @property
    def clone_url(self) -> str:
        """Of the repository, as the platform knows it."""

    def publish(self, repository: Path) -> None:
        """Bring the branch `main` there."""


@dataclass
class Story:
    """Three acts; each finds out by itself whether it has been played."""

    session: Session
    platform: Platform
    origin: Origin | None = None
    """None: the repository in the home."""

    def __post_init__(self) -> None:
        """Name the repository and the file with the secret."""
        self.repository = self.session.home.demo / APP
        self.clone_url = self.origin.clone_url if self.origin else self.repository.as_uri()
        self.secret_file = self.session.home.demo / "webhook-secret"
        self.say = self.session.terminal.say

    def tell(self) -> None:
        """Play what has not been played, then say what to type next."""
        self._app()
        running = self._running()
        if running is None:
            running = self._first_push()
        else:
            self.say(f"[name]{APP}[/] runs, release {running['release']}, as the last run left it.")
        self._ask(running["url"])
        if not self._sagas(state="COMPENSATED"):
            self._second_push(running)
        self._what_next(running["url"])

    def _app(self) -> None:
        secret = self.session.home.keep_secret(self.secret_file)
        if not (self.repository / ".git").is_dir():
            _make_repository(EXAMPLES / APP, self.repository)
        self._publish()
        body = {
            "name": APP,
            "repository": FULL_NAME,
            "clone_url": self.clone_url,
            "ref": "refs/heads/main",
            "webhook_secret": secret,
        }
        try:
            self.platform.get("webhook", f"/apps/{APP}")
        except NotFound:
            self.platform.post("webhook", "/apps", body)

    def _running(self) -> Mapping[str, Any] | None:
        """What the deployer says of the app, once it answers; none: nothing was deployed yet."""
        try:
            found: Mapping[str, Any] = self.platform.get("deployer", f"/apps/{APP}")
        except NotFound:
            return None
        return found if found.get("release") else None

    def _first_push(self) -> Mapping[str, Any]:
        commit = _git(self.repository, "rev-parse", "HEAD").strip()
        self.say(f"[name]1. A push that works[/]   [quiet]git push of {short(commit)} to {FULL_NAME}, signed[/]")
        saga = self._push()
        if saga["state"] != "SUCCEEDED":
            raise InvalidInput(
                f"The first push ended {saga['state']}",
                why="the example should work everywhere",
                todo=f"See why: {program()} sagas log {saga['id']}",
            )
        running = self._running()
        if running is None:
            raise Unavailable("The app was deployed, and the deployer does not know it")
        return running

    def _second_push(self, before: Mapping[str, Any]) -> None:
        app = self.repository / "app.py"
        if not app.read_text().startswith(BROKEN):
            app.write_text(BROKEN + app.read_text())
            _git(self.repository, "commit", "--quiet", "--all", "--message", "Use a database that is not there")
        commit = _git(self.repository, "rev-parse", "HEAD").strip()
        self.say(f"\n[name]2. A push that cannot work[/]   [quiet]{short(commit)} exits as it starts[/]")
        with _Asking(before["url"]) as asking:
            saga = self._push()
        if saga["state"] != "COMPENSATED":
            raise InvalidInput(
                f"The second push ended {saga['state']}", todo=f"See why: {program()} sagas log {saga['id']}"
            )
        self.say(f"  The push was undone. Meanwhile {APP} was asked {asking.asked} times: {asking.failed} errors.")
        self._ask(before["url"])

    def _push(self) -> Saga:
        """Send the tip as GitHub would, and show what becomes of it."""
        self._publish()
        secret = self.session.home.keep_secret(self.secret_file)
        push = push_of(self.repository, full_name=FULL_NAME, secret=secret, clone_url=self.clone_url)
        answer = self.platform.request(
            "POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers)
        )
        started = answer.get("deployments") or [saga["id"] for saga in self._sagas(commit=push.commit)]
        if not started:
            raise InvalidInput(
                f"The push was {answer.get('status')}",
                todo=f"See why: {program()} webhook deliveries",
            )
        return watch(self.platform, self.session.terminal, started[0])

    def _publish(self) -> None:
        if self.origin:
            self.origin.publish(self.repository)

    def _sagas(self, **filters: str) -> list[Any]:
        return self.platform.pages("saga_coordinator", "/sagas", limit=1, app=APP, **filters)

    def _ask(self, url: str) -> None:
        """Fetch the app's address, and show what it answered."""
        answer = _fetch(f"{url.rstrip('/')}/json")
        self.say(f"\n  [quiet]$ curl {url.rstrip('/')}/json[/]\n  {escape(answer.text.strip())}")

    def _what_next(self, url: str) -> None:
        knarr = program()
        steps = [
            (f"{knarr} apps show {APP}", "what runs"),
            (f"{knarr} deployments", "what was deployed, and what was undone"),
            (f"{knarr} logs {APP}", "what the app prints"),
            (f'{knarr} config set {APP} GREETING="Hei"', "a new release with another greeting"),
            (f"{knarr} deploy examples/hello-static", "a folder of your own"),
            (f"{knarr} doctor", "is everything well?"),
        ]
        self.say(f"\n[good]{APP} is served at[/] [address]{url}[/]\n")
        self.say(f"Next, in another terminal:\n{next_steps(self.session.home, steps)}")
        stops, again = ("`make stack-down`", "make demo-stack") if self.origin else ("Ctrl-C", "make run")
        self.say(f"\n[quiet]{stops} stops; the next `{again}` goes on from here.[/]")


class _Asking:
    """Asks the app every 50 ms as long as it is entered, and counts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)
        self.asked = 0
        self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        with httpx2.Client(timeout=5, trust_env=False) as client:
            while not self._left.wait(0.05):
                self.asked += 1
                try:
                    self.failed += client.get(self._url).status_code != 200
                except httpx2.HTTPError:
                    self.failed += 1


def _fetch(url: str) -> httpx2.Response:
    """The answer; an app that is just being started again after a restart of the platform gets a few seconds."""
    until = time.monotonic() + 10
    while True:
        try:
            answer = httpx2.get(url, timeout=5, trust_env=False)
        except httpx2.HTTPError as error:
            if time.monotonic() > until:
                raise Unavailable(f"{APP} does not answer at {url}", why=type(error).__name__) from error
        else:
            if answer.status_code == 200 or time.monotonic() > until:
                return answer
        time.sleep(0.1)


def _make_repository(example: Path, repository: Path) -> None:
    """The example as a git repository with one commit; whole or not at all."""
    half = repository.with_name(f".{repository.name}.new")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(example, half, ignore=shutil.ignore_patterns("__pycache__"))
    _git(half, "init", "--quiet", "--initial-branch", "main")
    _git(half, "add", "--all")
    _git(half, "commit", "--quiet", "--message", "A small web app")
    half.rename(repository)


def _git(repository: Path, *arguments: str) -> str:
    """Run git there, whatever the user's own configuration says (a signing key, hooks)."""
    environment = {**os.environ, **_AUTHOR, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, check=False, text=True, env=environment
        )
    except FileNotFoundError as error:
        raise Misconfigured(
            "git is not installed", why="the sample app is a git repository", todo="Install git."
        ) from error
    if done.returncode != 0:
        raise Misconfigured(f"git {arguments[0]} did not work in {repository}", why=done.stderr.strip())
    return done.stdout
