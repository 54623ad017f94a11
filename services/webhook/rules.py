"""What an app's fields may be: checked once, when people give them, so that nobody has to ask again.

Each function returns the value as it is kept, or raises `InvalidInput` that names the field and what is allowed.
"""

import re
import secrets
from typing import Any, TypeGuard

from seedwork.errors import InvalidInput
from seedwork.git import COMMIT, GitUrl, check_ref

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_])?", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,99}", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
_SHORTEST_SECRET = 16


def app_name(name: str) -> str:
    """A name that fits a DNS label, with room for what runtimes append to it."""
    if not _NAME.fullmatch(name) or "--" in name or _UUID.fullmatch(name):
        raise InvalidInput(
            f"name: {name[:60]!r} is no app name",
            why="it is part of host names",
            todo="Use 1 to 40 lower-case letters, digits and single dashes; a letter first, no dash at the end.",
        )
    return name


def repository(full_name: str) -> str:
    """`owner/name` as GitHub writes it, without `.git`."""
    owner, slash, name = full_name.partition("/")
    name = name.removesuffix(".git")
    if not (slash and _OWNER.fullmatch(owner) and _REPOSITORY.fullmatch(name) and name.strip(".")):
        raise InvalidInput(f"repository: {full_name[:100]!r} is no repository", todo="Give owner/name, as acme/shop.")
    return f"{owner}/{name}"


def clone_url(url: str) -> str:
    """An address that git can clone from, without credentials. Whether the operator allows it is asked elsewhere."""
    try:
        GitUrl.parse(url)
    except InvalidInput as error:
        raise InvalidInput(f"clone_url: {error.what}", why=error.why, todo=error.todo) from error
    return url


def default_clone_url(full_name: str) -> str:
    """Where GitHub serves a repository."""
    return f"https://github.com/{full_name}.git"


def branch(ref: str) -> str:
    """A branch's full name, `refs/heads/main`."""
    _ref(ref)
    if not ref.startswith("refs/heads/"):
        raise InvalidInput(
            f"ref: {ref!r} is no branch",
            why="an app follows a branch",
            todo="Give refs/heads/ and its name, as refs/heads/main.",
        )
    return ref


def branch_or_tag(ref: str) -> str:
    """A full ref name below `refs/heads/` or `refs/tags/`."""
    _ref(ref)
    if not ref.startswith(("refs/heads/", "refs/tags/")):
        raise InvalidInput(f"ref: {ref!r} is no branch and no tag", todo="Give refs/heads/… or refs/tags/….")
    return ref


def short_ref(name: str) -> str:
    """The name of a branch or a tag without `refs/heads/` or `refs/tags/`."""
    _ref(f"refs/heads/{name}")
    return name


def _ref(ref: str) -> None:
    try:
        check_ref(ref)
    except InvalidInput as error:
        raise InvalidInput(f"ref: {error.what}", why=error.why, todo=error.todo) from error


def commit(text: str) -> str:
    """All 40 hex digits: a shorter one may mean another commit tomorrow."""
    if not COMMIT.fullmatch(text.lower()):
        raise InvalidInput(
            f"commit: {text[:60]!r} is no commit",
            why="the whole id is needed, 40 hex digits",
            todo="git rev-parse HEAD prints it.",
        )
    return text.lower()


def root(folder: str) -> str:
    """A folder inside the repository: relative, with `/`, `.` for the repository itself."""
    parts = [each for each in folder.split("/") if each not in ("", ".")]
    if folder.startswith("/") or ".." in parts or "\\" in folder or not folder.isprintable() or len(folder) > 500:
        raise InvalidInput(
            f"root: {folder[:100]!r} is no folder inside the repository",
            why="it must be relative and must not climb with '..'",
            todo="Use '.', or a folder such as services/shop.",
        )
    return "/".join(parts) or "."


def webhook_secret(secret: str) -> str:
    """A secret that cannot be guessed, as GitHub takes it."""
    if not _SHORTEST_SECRET <= len(secret) <= 200 or not secret.isprintable():
        raise InvalidInput(
            "webhook_secret: this is no good secret",
            why=f"it needs {_SHORTEST_SECRET} to 200 printable characters",
            todo="Leave it out, and knarr makes one; or use: openssl rand -hex 32.",
        )
    return secret


def new_secret() -> str:
    """32 random bytes, URL-safe."""
    return secrets.token_urlsafe(32)


def idempotency_key(key: str) -> str:
    """What a client may send as `Idempotency-Key`."""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key: this is no key", todo="Use 1 to 200 visible ASCII characters, as a UUID.")
    return key


def is_app_id(text: str) -> bool:
    """Whether this is an app's id; no app is called so."""
    return _UUID.fullmatch(text) is not None


def is_commit(value: Any) -> TypeGuard[str]:
    """Whether this is a full commit id."""
    return isinstance(value, str) and COMMIT.fullmatch(value) is not None
