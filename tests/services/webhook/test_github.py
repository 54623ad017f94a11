"""GitHub's webhooks as pure functions."""

import contextlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedwork.errors import InvalidInput
from services.webhook import github
from services.webhook.github import Notice, Push
from tests.services.webhook.github_payloads import COMMIT, DELETED, Webhook, ping, push

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def test_githubs_own_example_verifies() -> None:
    """The values of GitHub's page 'Validating webhook deliveries'."""
    secret, body = b"It's a Secret to Everybody", b"Hello, World!"
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert github.sign(secret, body) == f"sha256={digest}"
    assert github.signature(f"sha256={digest.upper()}") == digest
    assert github.signers([secret, b"another"], body, digest) == {secret}


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(min_size=1, max_size=40), st.data())
def test_any_other_body_or_secret_does_not_verify(body: bytes, secret: bytes, data: st.DataObject) -> None:
    """One changed bit is enough."""
    digest = github.sign(secret, body).removeprefix("sha256=")
    assert github.signs(secret, body, digest)
    longer = body + b"\0"
    at, bit = data.draw(st.integers(0, len(longer) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(longer)
    changed[at] ^= 1 << bit
    assert not github.signs(secret, bytes(changed), digest)
    assert not github.signs(secret + b"x", body, digest)


@pytest.mark.parametrize("form", [False, True])
def test_a_push_is_read_in_both_encodings(form: bool) -> None:
    """What knarr needs of it."""
    webhook = Webhook(push(pushed_at=1779800000), form=form)
    read = github.read_event("push", webhook.body, FORM if form else JSON)
    assert read == Push("acme/shop", "refs/heads/main", COMMIT, 1779800000, "ada")
    assert github.mentioned_repositories(webhook.body, FORM if form else JSON) == ("acme/shop",)


def test_a_deleted_branch_has_no_commit() -> None:
    """By its zeros, and by what GitHub says."""
    for payload in (push(after=DELETED), {**push(), "deleted": True}):
        read = github.read_event("push", orjson.dumps(payload), JSON)
        assert isinstance(read, Push)
        assert read.commit is None


def test_other_events_are_read_as_far_as_their_repository() -> None:
    """Also those that have none."""
    assert github.read_event("ping", orjson.dumps(ping()), JSON) == Notice("acme/shop")
    assert github.read_event("ping", orjson.dumps(ping(None)), JSON) == Notice(None)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", set()),
        (b'{"full_name": "Acme/Shop"}', {"acme/shop"}),
        (b'{"full_name"\n:\t"a/b","x":{"full_name":"c\\/d"}}', {"a/b", "c/d"}),
        (b'{"full_name": "no-slash"}', set()),
        (b'{"full_name": 7, "name": "a/b"}', set()),
        (b"\xff" * 100 + b'"full_name":"a/b"', {"a/b"}),
        (b" " * 2_000_000 + b'"full_name":"a/b"', set()),
    ],
)
def test_an_unverified_body_is_only_searched(body: bytes, found: set[str]) -> None:
    """Whatever it holds, for a bounded way."""
    assert set(github.mentioned_repositories(body, JSON)) == found


@settings(deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([JSON, FORM, "", "text/plain"]), st.sampled_from(["push", "ping", ""]))
def test_whatever_arrives_is_read_or_refused(body: bytes, content_type: str, event: str) -> None:
    """No other error than the one that is answered with 400."""
    github.mentioned_repositories(body, content_type)
    with contextlib.suppress(InvalidInput):
        assert isinstance(github.read_event(event, body, content_type), Push | Notice)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(["ref", "after", "repository", "pusher", "deleted", "head_commit"]), JSON_VALUES)
def test_a_push_with_any_value_in_any_field_is_read_or_refused(name: str, value: object) -> None:
    """The shape is checked before it is used."""
    body = orjson.dumps({**push(), name: value})
    try:
        read = github.read_event("push", body, JSON)
    except InvalidInput:
        return
    assert isinstance(read, Push)
    assert read.ref.startswith("refs/")


def test_a_pusher_is_shown_only_if_it_is_a_name() -> None:
    """It ends up in lists and logs."""
    for pusher, shown in (
        ({"name": "ada"}, "ada"),
        ({"name": "a\x1b[2J"}, ""),
        ({"name": "a" * 500}, "a" * 100),
        (7, ""),
    ):
        read = github.read_event("push", orjson.dumps({**push(), "pusher": pusher}), JSON)
        assert isinstance(read, Push)
        assert read.pusher == shown
