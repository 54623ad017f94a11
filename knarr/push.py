"""A push as GitHub sends it: the payload of a local repository's tip, its headers, its signature.

Shapes after "Webhook events and payloads", event `push`, in GitHub's documentation; the signature after "Validating
webhook deliveries": HMAC-SHA256 over the raw body.
"""

import hashlib
import hmac
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from seedwork.errors import InvalidInput, Misconfigured, NotFound
from seedwork.git import folder_command, folder_env

NO_COMMIT = "0" * 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A request, complete."""

    body: bytes
    headers: Mapping[str, str]
    delivery_id: str
    commit: str


def push_of(
    repository: Path,
    *,
    full_name: str,
    secret: str,
    ref: str = "refs/heads/main",
    clone_url: str | None = None,
    delivery_id: str | None = None,
) -> Push:
    """The push of a repository's tip.

    Args:
        repository: A local working copy or bare repository.
        full_name: `owner/name`, as the app knows it.
        secret: What signs it.
        ref: The branch.
        clone_url: In the payload; the one on github.com, if not given.
        delivery_id: GitHub's id of the delivery; a new one, if not given.

    Raises:
        NotFound: No repository there, or no such branch.
        Misconfigured: git is not installed.
        InvalidInput: `full_name` is not `owner/name`.
    """
    if full_name.count("/") != 1:
        raise InvalidInput(f"{full_name!r} is no repository name", todo="Write owner/name, as the app has it.")
    body = orjson.dumps(_payload(repository, full_name, ref, clone_url))
    delivery_id = delivery_id or str(uuid.uuid4())
    return Push(
        body=body,
        headers=headers_of(body, event="push", secret=secret, delivery_id=delivery_id),
        delivery_id=delivery_id,
        commit=_git(repository, "rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}"),
    )


def headers_of(body: bytes, *, event: str, secret: str, delivery_id: str) -> dict[str, str]:
    """What GitHub sends beside a body."""
    return {
        "Accept": "*/*",
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": delivery_id,
        "X-GitHub-Event": event,
        "X-GitHub-Hook-ID": "292430182",
        "X-GitHub-Hook-Installation-Target-ID": "79929171",
        "X-GitHub-Hook-Installation-Target-Type": "repository",
        "X-Hub-Signature": "sha1=" + hmac.new(secret.encode(), body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


def _payload(repository: Path, full_name: str, ref: str, clone_url: str | None) -> dict[str, Any]:
    owner, name = full_name.split("/")
    tip = _commit(repository, ref, full_name)
    before = _parent(repository, ref)
    html_url = f"https://github.com/{full_name}"
    return {
        "ref": ref,
        "before": before,
        "after": tip["id"],
        "repository": {
            "id": int(hashlib.sha256(full_name.encode()).hexdigest()[:8], 16),
            "name": name,
            "full_name": full_name,
            "private": False,
            "owner": {"name": owner, "login": owner, "email": f"{owner}@users.noreply.github.com", "type": "User"},
            "html_url": html_url,
            "url": html_url,
            "clone_url": clone_url or f"{html_url}.git",
            "git_url": f"git://github.com/{full_name}.git",
            "ssh_url": f"git@github.com:{full_name}.git",
            "default_branch": "main",
            "master_branch": "main",
            "fork": False,
            "archived": False,
        },
        "pusher": {"name": owner, "email": f"{owner}@users.noreply.github.com"},
        "sender": {"login": owner, "type": "User", "html_url": f"https://github.com/{owner}"},
        "created": before == NO_COMMIT,
        "deleted": False,
        "forced": False,
        "base_ref": None,
        "compare": f"{html_url}/compare/{before[:12]}...{tip['id'][:12]}",
        "commits": [tip],
        "head_commit": tip,
    }


def _commit(repository: Path, ref: str, full_name: str) -> dict[str, Any]:
    line = _git(repository, "log", "-1", "--format=%H%x00%T%x00%cI%x00%an%x00%ae%x00%B", "--end-of-options", ref)
    commit, tree, at, author, email, message = line.split("\0", 5)
    person = {"name": author, "email": email, "username": author}
    return {
        "id": commit,
        "tree_id": tree,
        "distinct": True,
        "message": message.strip(),
        "timestamp": at,
        "url": f"https://github.com/{full_name}/commit/{commit}",
        "author": person,
        "committer": person,
        "added": [],
        "removed": [],
        "modified": [],
    }


def _parent(repository: Path, ref: str) -> str:
    parents = _git(repository, "rev-list", "--parents", "-n", "1", "--end-of-options", ref).split()
    return parents[1] if len(parents) > 1 else NO_COMMIT


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            folder_command(repository, arguments),
            capture_output=True,
            check=False,
            text=True,
            env=folder_env(),
        )
    except FileNotFoundError as error:
        raise Misconfigured(
            "git is not installed", why="a push is read from a repository", todo="Install git."
        ) from error
    if done.returncode != 0:
        raise NotFound(
            f"Cannot read the branch in {repository}",
            why=done.stderr.strip().removeprefix("fatal: "),
            todo="Name a git repository and a branch that has a commit: --ref main.",
        )
    return done.stdout.strip()
