"""`knarr tokens …`: what is asked of the platform, and what is printed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from knarr.cli import app
from tests.knarr.test_app_commands import Fake, fake, said

__all__ = ["fake"]

CI: dict[str, Any] = {
    "id": "0192f0c1-2345-7abc-8def-0123456789ab",
    "name": "ci",
    "teams": ["shop"],
    "scopes": ["deploy", "read"],
    "created_at": "2026-12-01T04:00:00.000Z",
    "created_by": "local",
    "expires_at": "2020-12-01T04:00:00.000Z",
}


def test_a_new_token_is_printed_alone(fake: Fake) -> None:
    """A shell variable can take it; what it may do is progress, on standard error."""
    fake.answers["POST", "/tokens"] = {**CI, "token": "knarr_abc"}
    words = ["tokens", "create", "ci", "--team", "shop", "--scope", "read", "--scope", "deploy", "--expires", "30d"]
    answer = CliRunner().invoke(app, words)
    assert answer.stdout == "knarr_abc\n"
    assert "deploy, read for shop" in answer.stderr
    body = fake.asked[0][2]
    assert (body["name"], body["teams"], body["scopes"]) == ("ci", ["shop"], ["read", "deploy"])
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)


def test_a_token_that_never_ends_is_asked_for_by_name(fake: Fake) -> None:
    """Without the option it ends."""
    fake.answers["POST", "/tokens"] = {**CI, "token": "knarr_abc"}
    said("tokens", "create", "ci", "--expires", "never")
    said("tokens", "create", "ci")
    assert fake.asked[0][2]["expires_at"] is None
    assert fake.asked[1][2]["expires_at"] is not None


@pytest.mark.parametrize("words", [["create", "ci", "--expires", "soon"], ["revoke", "../apps/shop"]])
def test_words_that_cannot_be_meant_are_refused_before_anything_is_asked(fake: Fake, words: list[str]) -> None:
    """Exit code 2; a name never becomes another path."""
    assert CliRunner().invoke(app, ["tokens", *words]).exit_code == 2
    assert fake.asked == []


def test_the_list_says_which_tokens_have_expired(fake: Fake) -> None:
    """With teams and scopes."""
    fake.answers["GET", "/tokens"] = {"items": [CI, {**CI, "name": "boss", "expires_at": None}]}
    shown = said("tokens", "list")
    assert "(expired)" in shown
    assert "never" in shown
    assert "deploy, read" in shown


def test_a_token_is_revoked_by_its_name(fake: Fake) -> None:
    """One request, and a sentence."""
    fake.answers["DELETE", "/tokens/ci"] = None
    assert "ci is revoked" in said("tokens", "revoke", "ci")
    assert fake.asked == [("DELETE", "/tokens/ci", None)]
