"""Real repositories on this machine, made with git as a person would make them."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_WHO = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


class GitOrigin:
    """A repository with a working copy; its bare twin is what others clone from."""

    def __init__(self, folder: Path) -> None:
        """Make it in a folder that is not there yet."""
        self.work = folder / "work"
        self.bare = folder / "origin.git"
        self.work.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self._run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        self.url = f"file://{self.bare}"

    def git(self, *args: str) -> str:
        """Run git in the working copy."""
        return self._run("git", *args)

    def _run(self, *command: str) -> str:
        env = {**os.environ, **_WHO}
        return subprocess.run(
            command, cwd=self.work, env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, files: Mapping[str, bytes], *, ref: str = "refs/heads/main") -> str:
        """A commit of exactly these files on top of the ref, pushed."""
        if subprocess.run(
            ["git", "rev-parse", "-q", "--verify", ref], cwd=self.work, capture_output=True, check=False
        ).returncode:
            self.git("symbolic-ref", "HEAD", ref)
        else:
            self.git("checkout", "--quiet", "--force", ref.removeprefix("refs/heads/"))
        self.git("rm", "-rfq", "--cached", "--ignore-unmatch", ".")
        self.git("clean", "-fdxq")
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.commit_all(ref)

    def commit_all(self, ref: str = "refs/heads/main") -> str:
        """A commit of what stands in the working copy, pushed."""
        self.git("add", "--all", "--force", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")
        commit = self.git("rev-parse", "HEAD")
        self.move(ref, commit)
        return commit

    def move(self, ref: str, commit: str) -> None:
        """A force push."""
        self.git("push", "--quiet", "--force", str(self.bare), f"{commit}:{ref}")

    def remove(self, ref: str) -> None:
        """A branch is deleted."""
        self.git("push", "--quiet", str(self.bare), f":{ref}")
