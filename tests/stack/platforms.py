"""A platform in containers, as a test meets it: by HTTP, by `git push`, and by its log when something is wrong."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from knarr.client import Platform
from knarr.push import push_of
from seedwork.errors import NotFound, RetryableError

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE_S = 900.0
"""For an image that is built, or a platform that starts, on a busy machine."""
FOLDER = "/srv/repositories"
"""Where the repositories are that the platform may fetch from."""
SECRET = "a webhook secret of the tests"
ENDED = ("SUCCEEDED", "COMPENSATED", "STUCK")
_GIT = {
    f"GIT_{role}_{name}": value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in (("NAME", "Test"), ("EMAIL", "test@knarr.invalid"))
} | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "ext"}

WEB = """\
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = "{version}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""
_ASKS_REDIS = """\
import os
import socket
from urllib.parse import urlsplit


def ask(command):
    url = urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((url.hostname, url.port), 5) as redis, redis.makefile("rwb") as stream:
        stream.write(f"AUTH {url.password}\\r\\n{command}\\r\\n".encode())
        stream.flush()
        stream.readline()
        return stream.readline().strip()


"""
KEEPS = _ASKS_REDIS + WEB.replace(
    '"{version}".encode()', 'ask("SET word kept" if self.path == "/keep" else "EXISTS word")'
)
"""Answers whether its add-on `redis` has a word, which `/keep` writes there."""
WITH_REDIS = {".cupaas.yml": "services: [redis]\n"}
CRASHES = 'import sys\n\nsys.exit("the tests want it so")\n'


def run(*argv: str, **environment: str) -> str:
    """Run a program to its end, where the repository is; what it printed. Its errors are the test's."""
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, check=False, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def eventually(what: str, look: Callable[[], T | None]) -> T:
    """Wait until `look` gives something true; faults of what is just starting count as not yet."""
    until = time.monotonic() + PATIENCE_S
    last: object = None
    while time.monotonic() < until:
        try:
            found = look()
        except (RetryableError, NotFound, httpx2.HTTPError) as error:
            last = error
        else:
            if found:
                return found
            last = found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {PATIENCE_S:g} s; at last: {last!r}")


@dataclass
class Running:
    """A platform and its way in."""

    platform: Platform
    into: Sequence[str]
    """A command that runs another one where the repositories are, with its standard input and output."""
    folder: Path
    apps: dict[str, Path] = field(default_factory=dict)

    def create(self, name: str, program: str) -> None:
        """An app, and its repository with a first commit, which is not pushed."""
        repository = self.apps[name] = self.folder / name
        repository.mkdir()
        self._git(repository, "init", "--quiet", "--initial-branch=main")
        self.commit(name, {"Procfile": "web: python app.py\n", "requirements.txt": "", "app.py": program})
        run(*self.into, "git", "init", "--quiet", "--bare", "--initial-branch=main", f"{FOLDER}/{name}.git")
        body = {
            "name": name,
            "repository": f"tests/{name}",
            "clone_url": f"file://{FOLDER}/{name}.git",
            "ref": "refs/heads/main",
            "webhook_secret": SECRET,
        }
        eventually(f"the app {name}", lambda: self.platform.post("webhook", "/apps", body))

    def commit(self, name: str, files: Mapping[str, str]) -> str:
        """Commit these; the commit."""
        repository = self.apps[name]
        for path, text in files.items():
            (repository / path).write_text(text)
        self._git(repository, "add", "--all")
        self._git(repository, "commit", "--quiet", "--message", "change")
        return self._git(repository, "rev-parse", "HEAD").strip()

    def push(self, name: str) -> str:
        """`git push`, and the webhook that tells of it, as GitHub signs it; the deployment's id."""
        repository = self.apps[name]
        url = f"ext::{' '.join(self.into)} %S {FOLDER}/{name}.git"
        self._git(repository, "push", "--quiet", url, "+HEAD:refs/heads/main")
        push = push_of(repository, full_name=f"tests/{name}", secret=SECRET, clone_url=f"file://{FOLDER}/{name}.git")
        answer = self.platform.request(
            "POST", "webhook", "/github-webhook", content=push.body, headers=dict(push.headers)
        )
        (saga_id,) = answer["deployments"]
        return str(saga_id)

    def ended(self, saga_id: str) -> dict[str, Any]:
        """The saga, when it is over."""

        def look() -> dict[str, Any] | None:
            saga: dict[str, Any] = self.platform.get("saga_coordinator", f"/sagas/{saga_id}")
            return saga if saga["state"] in ENDED else None

        return eventually(f"the end of saga {saga_id}", look)

    def log_of(self, saga_id: str) -> str:
        """What happened, for whoever reads a failure."""
        items = self.platform.pages("saga_coordinator", f"/sagas/{saga_id}/log", limit=1000)
        return "\n".join(f"{each['at']} {each['direction']} {each['type']} {each['payload']}" for each in items)

    def _git(self, repository: Path, *arguments: str) -> str:
        return run("git", "-C", str(repository), *arguments, **_GIT)


def answers(url: str, text: str) -> bool:
    """Whether somebody answers there with that."""
    with httpx2.Client(timeout=5, trust_env=False) as client:
        return client.get(url).text == text
