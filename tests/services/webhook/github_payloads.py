"""Webhooks as GitHub sends them: bodies with the fields and the layout of real ones, signed, with their headers."""

import copy
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.webhook import github

SECRET = "correct-horse-battery-staple"
COMMIT = "9c1d3a4b5e6f708192a3b4c5d6e7f8091a2b3c4d"
BEFORE = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
DELETED = "0" * 40

_USER: dict[str, Any] = {
    "login": "octo-acme",
    "id": 21031067,
    "node_id": "MDQ6VXNlcjIxMDMxMDY3",
    "avatar_url": "https://avatars.githubusercontent.com/u/21031067?v=4",
    "gravatar_id": "",
    "url": "https://api.github.com/users/octo-acme",
    "html_url": "https://github.com/octo-acme",
    "type": "Organization",
    "site_admin": False,
}


def repository(full_name: str = "acme/shop") -> dict[str, Any]:
    """The repository as it stands in a push event (where `pushed_at` is a number)."""
    owner, _, name = full_name.partition("/")
    return {
        "id": 186853002,
        "node_id": "MDEwOlJlcG9zaXRvcnkxODY4NTMwMDI=",
        "name": name,
        "full_name": full_name,
        "private": False,
        "owner": {"name": owner, "email": f"{owner}@users.noreply.github.com", **_USER, "login": owner},
        "html_url": f"https://github.com/{full_name}",
        "description": None,
        "fork": False,
        "url": f"https://github.com/{full_name}",
        "archive_url": f"https://api.github.com/repos/{full_name}/{{archive_format}}{{/ref}}",
        "created_at": 1557933565,
        "updated_at": "2026-05-15T15:20:41Z",
        "pushed_at": 1779800000,
        "git_url": f"git://github.com/{full_name}.git",
        "ssh_url": f"git@github.com:{full_name}.git",
        "clone_url": f"https://github.com/{full_name}.git",
        "size": 108,
        "stargazers_count": 3,
        "language": "Python",
        "default_branch": "main",
        "master_branch": "main",
    }


def push(
    *,
    full_name: str = "acme/shop",
    ref: str = "refs/heads/main",
    after: str = COMMIT,
    before: str = BEFORE,
    pushed_at: int = 1779800000,
    message: str = "Sell coffee too",
) -> dict[str, Any]:
    """The body of a push event."""
    author = {"name": "Ada", "email": "ada@acme.example", "username": "ada"}
    commit = {
        "id": after,
        "tree_id": "f9d2a07e9488b91af2641b26b9407fe22a451433",
        "distinct": True,
        "message": message,
        "timestamp": "2026-05-26T12:53:20+02:00",
        "url": f"https://github.com/{full_name}/commit/{after}",
        "author": author,
        "committer": author,
        "added": [],
        "removed": [],
        "modified": ["app.py"],
    }
    deleted = after == DELETED
    return {
        "ref": ref,
        "before": before,
        "after": after,
        "repository": {**repository(full_name), "pushed_at": pushed_at},
        "pusher": {"name": "ada", "email": "ada@acme.example"},
        "sender": {**_USER, "login": "ada", "type": "User"},
        "created": False,
        "deleted": deleted,
        "forced": False,
        "base_ref": None,
        "compare": f"https://github.com/{full_name}/compare/{before[:12]}...{after[:12]}",
        "commits": [] if deleted else [commit],
        "head_commit": None if deleted else copy.deepcopy(commit),
    }


def ping(full_name: str | None = "acme/shop") -> dict[str, Any]:
    """The body that GitHub sends when a hook is made; a hook of an organization names no repository."""
    body: dict[str, Any] = {
        "zen": "Non-blocking is better than blocking.",
        "hook_id": 109948940,
        "hook": {"type": "Repository", "id": 109948940, "name": "web", "active": True, "events": ["push"]},
        "sender": _USER,
    }
    return body if full_name is None else {**body, "repository": repository(full_name)}


@dataclass(frozen=True)
class Webhook:
    """A request to `POST /github-webhook`."""

    payload: Any
    event: str | None = "push"
    secret: str = SECRET
    delivery_id: str | None = field(default_factory=lambda: str(uuid.uuid4()))
    form: bool = False

    @property
    def body(self) -> bytes:
        """The raw body; GitHub writes no blanks."""
        raw = self.payload if isinstance(self.payload, bytes) else orjson.dumps(self.payload)
        if self.form:
            from urllib.parse import urlencode

            return urlencode({"payload": raw.decode()}).encode()
        return raw

    @property
    def headers(self) -> dict[str, str]:
        """GitHub's headers, with the signature of the body."""
        headers = {
            "Accept": "*/*",
            "User-Agent": "GitHub-Hookshot/6b02022",
            "Content-Type": "application/x-www-form-urlencoded" if self.form else "application/json",
            "X-GitHub-Hook-ID": "109948940",
            "X-GitHub-Hook-Installation-Target-ID": "186853002",
            "X-GitHub-Hook-Installation-Target-Type": "repository",
            "X-Hub-Signature-256": github.sign(self.secret.encode(), self.body),
        }
        if self.event is not None:
            headers["X-GitHub-Event"] = self.event
        if self.delivery_id is not None:
            headers["X-GitHub-Delivery"] = self.delivery_id
        return headers
