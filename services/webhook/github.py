"""GitHub's webhooks as pure functions: a raw body and its headers in, who signed it and what it says out.

A body is not parsed before its signature is verified: to find the secrets to try, it is only searched for the names of
repositories. That search may name too many or (in an odd encoding) none; what the body really says is read afterwards.
Protocol: https://docs.github.com/en/webhooks/webhook-events-and-payloads and …/validating-webhook-deliveries.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

import orjson

from seedwork.errors import InvalidInput
from seedwork.git import check_ref
from services.webhook import rules

MAX_BODY_BYTES = 25 * 1000 * 1000
"""GitHub caps payloads at 25 MB and sends nothing larger."""

KEPT_HEADERS = (
    "content-type",
    "user-agent",
    "x-github-delivery",
    "x-github-event",
    "x-github-hook-id",
    "x-github-hook-installation-target-id",
    "x-github-hook-installation-target-type",
    "x-hub-signature-256",
)
"""What of a request is stored with it: enough to judge it again, and no credential."""

_DELETED = "0" * 40
_SIGNATURE = re.compile(r"sha256=([0-9a-fA-F]{64})", re.ASCII)
_FULL_NAME = re.compile(rb'"full_name"\s*:\s*"([A-Za-z0-9._-]{1,100}(?:/|\\/)[A-Za-z0-9._-]{1,100})"')
_FORM = "application/x-www-form-urlencoded"
_MOST_REPOSITORIES = 8
"""Of one body: a push names its own, a pull request two or three."""
_SEARCHED_BYTES = 1024 * 1024
"""How far an unverified body is searched: a push names its repository in its first kilobytes."""


@dataclass(frozen=True, slots=True)
class Push:
    """A push to a branch or a tag, as far as knarr needs it."""

    repository: str
    ref: str
    commit: str | None
    """The new tip; None: the ref was deleted."""
    pushed_s: int | None
    """When GitHub took it, seconds since 1970, where the payload says so."""
    pusher: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Any other event."""

    repository: str | None


def signature(header: str | None) -> str | None:
    """The hex digest of `X-Hub-Signature-256`; None if there is none of that form."""
    match = _SIGNATURE.fullmatch(header or "")
    return match[1].lower() if match else None


def signs(secret: bytes, body: bytes, digest: str) -> bool:
    """Whether this secret made that digest over the raw body; takes the same time whatever the answer."""
    return hmac.compare_digest(hmac.new(secret, body, hashlib.sha256).hexdigest(), digest)


def signers(secrets: Iterable[bytes], body: bytes, digest: str) -> frozenset[bytes]:
    """Those of the secrets that made the digest; each distinct one is tried once."""
    return frozenset(secret for secret in set(secrets) if signs(secret, body, digest))


def sign(secret: bytes, body: bytes) -> str:
    """The value of `X-Hub-Signature-256`."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def repository_key(full_name: str) -> str:
    """GitHub's names have no case."""
    return full_name.lower()


def mentioned_repositories(body: bytes, content_type: str) -> tuple[str, ...]:
    """Keys of the first repositories that an unverified body names, by a linear search."""
    text = body[:_SEARCHED_BYTES]
    if content_type.startswith(_FORM):
        text = unquote_to_bytes(text.replace(b"+", b" "))
    found: dict[str, None] = {}
    for match in _FULL_NAME.finditer(text):
        found[repository_key(match[1].replace(b"\\/", b"/").decode())] = None
        if len(found) == _MOST_REPOSITORIES:
            break
    return tuple(found)


def read_event(event: str | None, body: bytes, content_type: str) -> Push | Notice:
    """What a verified body says.

    Raises:
        InvalidInput: It is no JSON, or not of the shape that GitHub documents; the text names the field.
    """
    if not event:
        raise _wrong("the header X-GitHub-Event is missing")
    payload = _payload(body, content_type)
    return _push(payload) if event == "push" else Notice(_repository(payload))


def _payload(body: bytes, content_type: str) -> Mapping[str, Any]:
    try:
        if content_type.startswith(_FORM):
            fields = parse_qs(body.decode(), strict_parsing=True, max_num_fields=10)
            payload = orjson.loads(fields["payload"][0])
        else:
            payload = orjson.loads(body)
    except (ValueError, KeyError) as error:
        raise _wrong(f"it is no JSON: {error}") from error
    if not isinstance(payload, dict):
        raise _wrong("it is JSON, but no object")
    return payload


def _push(payload: Mapping[str, Any]) -> Push:
    repository = _repository(payload)
    if repository is None:
        raise _wrong("repository.full_name is missing")
    ref, after = payload.get("ref"), payload.get("after")
    if not isinstance(ref, str):
        raise _wrong("ref must be a string such as refs/heads/main")
    if not rules.is_commit(after):
        raise _wrong("after must be a commit, 40 hex digits")
    try:
        check_ref(ref)
    except InvalidInput as error:
        raise _wrong(f"ref: {error.why}") from error
    deleted = payload.get("deleted") is True or after == _DELETED
    return Push(repository, ref, None if deleted else after, _pushed_s(payload), _pusher(payload))


def _repository(payload: Mapping[str, Any]) -> str | None:
    repository = payload.get("repository")
    if repository is None:
        return None
    full_name = repository.get("full_name") if isinstance(repository, dict) else None
    if not isinstance(full_name, str):
        raise _wrong("repository.full_name must be a string such as acme/shop")
    try:
        return rules.repository(full_name)
    except InvalidInput as error:
        raise _wrong("repository.full_name must be owner/name") from error


def _pushed_s(payload: Mapping[str, Any]) -> int | None:
    """In a push event `repository.pushed_at` is a number, elsewhere a text."""
    pushed_at = payload["repository"].get("pushed_at")
    return pushed_at if isinstance(pushed_at, int) and not isinstance(pushed_at, bool) else None


def _pusher(payload: Mapping[str, Any]) -> str:
    pusher = payload.get("pusher")
    name = pusher.get("name") if isinstance(pusher, dict) else None
    return name[:100] if isinstance(name, str) and name.isprintable() else ""


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(
        "The delivery cannot be read",
        why=why,
        todo="knarr reads GitHub's webhooks with the content type application/json;"
        " see the hook's page 'Recent deliveries' for what was sent.",
    )
