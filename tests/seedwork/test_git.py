"""git as a subprocess: what may be asked, in which environment, and what its failures become."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedwork.errors import (
    FinalError,
    InvalidInput,
    KnarrError,
    Misconfigured,
    NotAllowed,
    NotFound,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from seedwork.git import GitUrl, GitUrlPolicy, check_ref, git_command, git_error, run_git, safe_git_env

POLICY = GitUrlPolicy.from_setting("https://github.com/, file:///srv/git/,git@host:acme/,https://example.com/team/")
LIMITS: dict[str, Any] = {"timeout_s": 20.0, "max_output_bytes": 10_000}


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme/shop.git",
        "https://GitHub.com/acme/shop",
        "https://example.com/team/deep/er.git",
        "file:///srv/git/shop",
        "file:///srv/git/a%20b",
        "git@host:acme/shop.git",
        "ssh://git@host/acme/shop",
    ],
)
def test_what_lies_below_a_prefix_is_allowed(url: str) -> None:
    """Hosts have no case; the two ssh forms mean the same."""
    POLICY.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com.evil/acme/shop",
        "https://github.com:8443/acme/shop",
        "https://github.com",
        "https://example.com/teams/x",
        "https://example.com/tea",
        "https://example.com/Team/x",
        "file:///srv/gitolite/x",
        "file:///srv",
        "ssh://host/acme/shop",
        "ssh://root@host/acme/shop",
        "ssh://git@github.com/acme/shop",
    ],
)
def test_what_lies_beside_every_prefix_is_not_allowed(url: str) -> None:
    """Whole hosts and whole path parts count, not characters; the text names the setting."""
    with pytest.raises(NotAllowed, match="KNARR_SOURCE_ALLOW"):
        POLICY.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "--upload-pack=touch /tmp/x",
        "/srv/git/shop",
        "shop",
        "ext::sh -c id",
        "http://github.com/acme/shop",
        "git://github.com/acme/shop",
        "https://github.com/acme/../../etc",
        "https://github.com/acme/%2e%2e/%2e%2e/etc",
        "https://github.com/acme%2f..%2fshop",
        "https://github.com//acme/shop",
        "https://github.com\\@evil/acme",
        "https://github.com/acme/shop?x=1",
        "https://github.com/acme/shop#x",
        "https://github.com/acme/shop\n",
        "file:///srv/git/../../etc",
        "file://evil/srv/git/shop",
        "ssh://-oProxyCommand=id/acme/shop",
        "-oProxyCommand=id@host:acme/shop",
        "git@host:-acme",
        "git@host:acme/../../etc",
        "https://github.com/" + "a" * 1000,
    ],
)
def test_what_is_no_url_to_clone_from_is_refused(url: str) -> None:
    """Options, other protocols, climbing paths, plain and percent-encoded."""
    with pytest.raises(InvalidInput):
        POLICY.check(url)


@pytest.mark.parametrize(
    "url", ["https://ada:hunter2@github.com/acme/shop", "https://hunter2@github.com/a/b", "ssh://git:hunter2@host/acme"]
)
def test_credentials_are_refused_with_the_place_where_they_go(url: str) -> None:
    """And the error does not repeat them."""
    with pytest.raises(InvalidInput, match="KNARR_SOURCE_CREDENTIALS") as caught:
        POLICY.check(url)
    assert "hunter2" not in caught.value.message


@settings(deadline=None)
@given(st.text(max_size=40))
def test_whatever_is_added_to_an_allowed_prefix_stays_below_it(tail: str) -> None:
    """A URL that passes has the prefix's host, and its path begins with the prefix's."""
    url = f"https://example.com/team{tail}"
    try:
        POLICY.check(url)
    except (InvalidInput, NotAllowed):
        return
    parsed = GitUrl.parse(url)
    assert (parsed.scheme, parsed.host, parsed.segments[0]) == ("https", "example.com", "team")
    assert ".." not in parsed.segments


def test_a_prefix_that_is_no_url_is_a_wrong_setting() -> None:
    """Said at the start, not at the first push."""
    with pytest.raises(Misconfigured, match="KNARR_SOURCE_ALLOW"):
        GitUrlPolicy.from_setting("https://github.com/,github.com")


def test_an_empty_list_allows_nothing() -> None:
    """It is a list of what is allowed."""
    with pytest.raises(NotAllowed, match="no repository only"):
        GitUrlPolicy.from_setting("").check("https://github.com/acme/shop")


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/feature/x-1", "refs/tags/v1.2", "refs/heads/größe"])
def test_full_ref_names_pass(ref: str) -> None:
    """Branches, tags, folders, other alphabets."""
    check_ref(ref)


BAD_REFS = [
    "",
    "main",
    "refs/heads",
    "refs/heads/",
    "heads/main/x",
    "refs/heads/-x",
    "refs/heads/.x",
    "refs/heads/x.lock",
    "refs/heads/x.lock/y",
    "refs/heads/a..b",
    "refs/heads/a//b",
    "refs/heads/a b",
    "refs/heads/a~1",
    "refs/heads/a^",
    "refs/heads/a:b",
    "refs/heads/a?",
    "refs/heads/*",
    "refs/heads/[a",
    "refs/heads/a\\b",
    "refs/heads/a\x7f",
    "refs/heads/a\n",
    "refs/heads/@{1}",
    "refs/heads/a.",
    "refs/heads/" + "a" * 300,
]


@pytest.mark.parametrize("ref", BAD_REFS, ids=ascii)
def test_other_names_are_refused(ref: str) -> None:
    """The text says which rule is broken."""
    with pytest.raises(InvalidInput, match="is no ref"):
        check_ref(ref)


def test_no_shell_no_prompt_no_configuration_and_few_protocols() -> None:
    """What stands in the way of surprises, in one place."""
    command = git_command(["status"])
    assert command[0] == "git"
    assert command[-1] == "status"
    for setting in ("protocol.allow=never", "http.followRedirects=false", "core.hooksPath=/dev/null"):
        assert command[command.index(setting) - 1] == "-c"
    env = safe_git_env()
    assert env["GIT_TERMINAL_PROMPT"] == "0"
    assert env["GIT_CONFIG_GLOBAL"] == env["GIT_CONFIG_SYSTEM"] == "/dev/null"


def test_the_callers_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither git's own variables nor secrets of knarr reach it; what the network needs does."""
    for name in ("GIT_DIR", "GIT_CONFIG_COUNT", "GIT_PROXY_COMMAND", "GIT_ALLOW_PROTOCOL", "KNARR_TOKEN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    env = safe_git_env()
    assert not {"GIT_DIR", "GIT_CONFIG_COUNT", "GIT_PROXY_COMMAND", "GIT_ALLOW_PROTOCOL", "KNARR_TOKEN"} & set(env)
    assert env["https_proxy"] == "http://proxy:3128"


async def test_the_users_configuration_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias, a rewritten URL or a hook of the user would change what a command does."""
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Eve\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FinalError):
        await run_git(["config", "--get", "user.name"], **LIMITS)


async def test_output_comes_back_as_bytes(tmp_path: Path) -> None:
    """A round trip with a real repository."""
    await run_git(["init", "--quiet", "--initial-branch=main", "."], cwd=tmp_path, **LIMITS)
    assert await run_git(["symbolic-ref", "HEAD"], cwd=tmp_path, **LIMITS) == b"refs/heads/main\n"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///does/not/exist", NotFound),
        ("https://127.0.0.1:9/acme/shop", Unavailable),
        ("http://127.0.0.1:9/acme/shop", NotAllowed),
        ("ext::sh -c id", NotAllowed),
    ],
)
async def test_real_failures_become_our_errors(url: str, error: type[KnarrError]) -> None:
    """Retryable or final is the type; git's words are in the text."""
    with pytest.raises(error, match="git ls-remote failed: fatal"):
        await run_git(["ls-remote", "--end-of-options", url], **LIMITS)


@pytest.mark.parametrize(
    ("stderr", "error", "code"),
    [
        ("fatal: unable to access 'https://x/': Could not resolve host: x", Unavailable, "git_unavailable"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 503", Unavailable, "git_unavailable"),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 429", Unavailable, "git_unavailable"),
        ("fatal: the remote end hung up unexpectedly\nfatal: early EOF", Unavailable, "git_unavailable"),
        (
            "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
            Unauthenticated,
            "git_auth",
        ),
        (
            "git@github.com: Permission denied (publickey).\nfatal: Could not read from remote",
            Unauthenticated,
            "git_auth",
        ),
        ("Host key verification failed.\nfatal: Could not read from remote", Unauthenticated, "git_host_key"),
        ("remote: Repository not found.\nfatal: repository 'https://x/' not found", NotFound, "repository_not_found"),
        ("fatal: repository 'https://x/tls-handshake/connection refused' not found", NotFound, "repository_not_found"),
        ("fatal: couldn't find remote ref refs/heads/x", NotFound, "ref_not_found"),
        ("error: Server does not allow request for unadvertised object 1234", NotFound, "ref_not_found"),
        ("fatal: unable to update url base from redirection:\n  asked for: x", FinalError, "git_redirect"),
        ("fatal: write error: No space left on device", StorageFull, "storage_full"),
        ("fatal: something new", FinalError, "git_failed"),
    ],
)
def test_gits_words_are_understood(stderr: str, error: type[KnarrError], code: str) -> None:
    """As git 2.39 to 2.51 and GitHub say them."""
    made = git_error("Asking", 128, stderr.encode())
    assert (type(made), made.reason_code) == (error, code)


def test_what_the_other_side_prints_cannot_drive_a_terminal() -> None:
    """Controls are taken out, and the text has an end."""
    made = git_error("Asking", 128, b"remote: \x1b[2J\x07gone\nfatal: " + b"x" * 100_000)
    assert "\x1b" not in "".join((made.message, *made.log_tail))
    assert len(made.message) < 1000


async def test_too_much_output_is_cut_off(tmp_path: Path) -> None:
    """A server that sends refs without end fills no memory."""
    await run_git(["init", "--quiet", "."], cwd=tmp_path, **LIMITS)
    with pytest.raises(TooLarge, match="100 bytes"):
        await run_git(["help", "--all"], cwd=tmp_path, timeout_s=20.0, max_output_bytes=100)


def _hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git that starts a child and hangs; the child's process id is in the file."""
    found = tmp_path / "child"
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {found}.draft; mv {found}.draft {found}\nsleep 300\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    return found


async def _appears(file: Path) -> int:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(file.exists):  # noqa: ASYNC110  another process tells no event
            await asyncio.sleep(0.01)
    return int(await asyncio.to_thread(file.read_text))


async def _ends(pid: int) -> None:
    async with asyncio.timeout(20):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.01)


async def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is retryable: the other side may answer next time."""
    child = _hanging(tmp_path, monkeypatch)
    with pytest.raises(Unavailable, match="did not finish within 2 s"):
        await run_git(["ls-remote"], timeout_s=2, max_output_bytes=10)
    await _ends(await _appears(child))


async def test_a_cancelled_command_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind when a service stops."""
    child = _hanging(tmp_path, monkeypatch)
    running = asyncio.create_task(run_git(["ls-remote"], timeout_s=300, max_output_bytes=10))
    pid = await _appears(child)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _ends(pid)


async def test_a_machine_without_git_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder that is not there is another thing."""
    with pytest.raises(NotFound, match="folder"):
        await run_git(["status"], cwd=tmp_path / "nowhere", **LIMITS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="Install git"):
        await run_git(["status"], **LIMITS)
