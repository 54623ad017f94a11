"""`make demo-stack`: the story of `make run`, told to the platform that `docker compose` has started.

The repository is made in the stack's home on this machine and pushed to the compose project's volume `repositories`,
as a developer pushes to a Git host; everything else goes over HTTP. Run it where `docker-compose.yml` is.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from knarr.client import Platform
from knarr.command import Session, with_errors_as_sentences
from knarr.demo import APP, Story
from knarr.home import Home
from knarr.terminal import Terminal
from seedwork.errors import Misconfigured, NotFound, Unavailable

HOME = Path(".knarr-stack")
"""Where `make stack-up` writes the token and the address."""
_FOLDER = "/srv/repositories"
_INTO = "docker compose run --rm --no-deps -T repositories"


@dataclass(frozen=True)
class Volume:
    """An `Origin` in the volume that the services see."""

    name: str

    @property
    def clone_url(self) -> str:
        """See `Origin.clone_url`."""
        return f"file://{_FOLDER}/{self.name}.git"

    def publish(self, repository: Path) -> None:
        """See `Origin.publish`: git speaks with the git in a container, by its transport `ext`."""
        folder = f"{_FOLDER}/{self.name}.git"
        _run([*_INTO.split(), "git", "init", "--quiet", "--bare", "--initial-branch=main", folder])
        into = ["git", "-C", str(repository), "push", "--quiet", f"ext::{_INTO} %S {folder}", "+HEAD:refs/heads/main"]
        _run(into, GIT_ALLOW_PROTOCOL="ext")


def _run(argv: list[str], **environment: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, check=False, text=True, env={**os.environ, **environment})
    except FileNotFoundError as error:
        raise Misconfigured(f"{argv[0]} is not installed", todo="The demo needs docker and git.") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise Unavailable(f"`{' '.join(argv)}` did not work", why="; ".join(lines[-3:]))


def main() -> None:
    """Tell the story."""
    session = Session(Home(HOME.absolute()), Terminal())

    def tell() -> None:
        if session.home.address() is None:
            raise NotFound(f"There is no stack in {HOME}", todo="Start it with `make stack-up`.")
        session.home.demo.mkdir(mode=0o700, exist_ok=True)
        Story(session, Platform.of(session.home), Volume(APP)).tell()

    try:
        with_errors_as_sentences(session.terminal, tell)
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main()
