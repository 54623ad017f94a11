"""A push as GitHub sends it."""

import hashlib
import hmac
import json
import subprocess
from pathlib import Path

import pytest

from knarr.push import NO_COMMIT, push_of
from seedwork.errors import InvalidInput, NotFound

AUTHOR = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", tmp_path], check=True)
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        subprocess.run(["git", "-C", tmp_path, "add", "a"], check=True)
        subprocess.run(["git", "-C", tmp_path, *AUTHOR, "commit", "--quiet", "-m", text], check=True)
    return tmp_path


def commit(repository: Path, name: str) -> str:
    return subprocess.run(
        ["git", "-C", repository, "rev-parse", name], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_payload_tells_the_branch_and_its_commits(repository: Path) -> None:
    """Before, after, and the tip's author and message."""
    push = push_of(repository, full_name="acme/shop", secret="s")
    payload = json.loads(push.body)
    assert payload["ref"] == "refs/heads/main"
    assert payload["after"] == commit(repository, "HEAD") == push.commit
    assert payload["before"] == commit(repository, "HEAD~1")
    assert payload["repository"]["full_name"] == "acme/shop"
    assert payload["head_commit"]["message"] == "two"
    assert payload["head_commit"]["author"]["email"] == "ann@example.com"


def test_the_first_push_of_a_branch_comes_from_nothing(repository: Path) -> None:
    """GitHub writes forty zeros."""
    subprocess.run(["git", "-C", repository, "branch", "old", "HEAD~1"], check=True)
    payload = json.loads(push_of(repository, full_name="acme/shop", secret="s", ref="refs/heads/old").body)
    assert payload["before"] == NO_COMMIT
    assert payload["created"] is True


def test_the_signature_is_over_the_raw_body(repository: Path) -> None:
    """HMAC-SHA256 with the secret, as `X-Hub-Signature-256`."""
    push = push_of(repository, full_name="acme/shop", secret="s3cret")
    expected = hmac.new(b"s3cret", push.body, hashlib.sha256).hexdigest()
    assert push.headers["X-Hub-Signature-256"] == f"sha256={expected}"
    assert push.headers["X-GitHub-Event"] == "push"
    assert push.headers["X-GitHub-Delivery"] == push.delivery_id


@pytest.mark.parametrize("ref", ["refs/heads/nowhere", "--output=/tmp/x"])
def test_a_branch_that_is_not_there_is_said(repository: Path, ref: str) -> None:
    """Also where its name looks like an option."""
    with pytest.raises(NotFound, match="Cannot read the branch"):
        push_of(repository, full_name="acme/shop", secret="s", ref=ref)


def test_a_name_without_an_owner_is_refused(repository: Path) -> None:
    """The app is found by `owner/name`."""
    with pytest.raises(InvalidInput, match="owner/name"):
        push_of(repository, full_name="shop", secret="s")


def test_the_configuration_of_the_repository_starts_no_program(repository: Path) -> None:
    """A cloned folder may have been made to harm: neither a signature is checked nor a missing object is fetched."""
    ran = repository.parent / "ran"
    program = repository.parent / "evil"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    signed = "-----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----"
    text = subprocess.run(
        ["git", "-C", repository, "cat-file", "commit", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    head, _, message = text.partition("\n\n")
    made = subprocess.run(
        ["git", "-C", repository, "hash-object", "-t", "commit", "-w", "--stdin"],
        input=f"{head}\ngpgsig {signed}\n\n{message}",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run(["git", "-C", repository, "update-ref", "refs/heads/main", made], check=True)
    for name, value in {
        "log.showSignature": "true",
        "gpg.program": str(program),
        "core.fsmonitor": str(program),
        "protocol.ext.allow": "always",
        "remote.origin.url": f"ext::{program}",
        "remote.origin.promisor": "true",
        "extensions.partialClone": "origin",
        "core.repositoryFormatVersion": "1",
    }.items():
        subprocess.run(["git", "-C", repository, "config", name, value], check=True)
    assert push_of(repository, full_name="acme/shop", secret="s").commit == made
    with pytest.raises(NotFound):
        push_of(repository, full_name="acme/shop", secret="s", ref="1" * 40)
    assert not ran.exists()
