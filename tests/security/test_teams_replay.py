"""Attacks that worked on other platforms of this kind, tried on this one; docs/security.md lists the others."""

import asyncio
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from knarr.cli import app
from knarr.push import push_of
from seedwork.errors import FinalError, InvalidInput, KnarrError, NotAllowed
from seedwork.git import GitUrlPolicy, run_git
from services.deployer.configs import changed
from services.webhook import rules
from tests.security.house import House
from tests.security.victim import Victim

POLICY = GitUrlPolicy(("https://github.com/", "https://git.example.com/team/"))
together = pytest.mark.asyncio(loop_scope="session")
shared = pytest.mark.xdist_group("house")


# ── addresses of the inside ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",  # noqa: S104  nothing is bound
        "localhost",
        "localhost.localdomain",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "127.0.0.1.nip.io",
        "github.com.127.0.0.1.nip.io",
        "github.com.",
        "\uff47ithub.com",
        "github.com%00.example.org",
    ],
)
def test_no_form_of_an_inner_address_is_a_repository(host: str) -> None:
    """What may be fetched is a list of hosts by name: neither a number nor a name that leads inside is on it."""
    with pytest.raises((NotAllowed, InvalidInput)):
        POLICY.check(f"https://{host}/acme/shop")


@pytest.mark.parametrize("user", ["github.com@", "github.com%40", "github.com:443@", "github.com\\@"])
def test_the_allowed_host_in_front_of_another_one_does_not_count(user: str) -> None:
    """`https://github.com@10.0.0.1/` is a request to 10.0.0.1."""
    with pytest.raises((NotAllowed, InvalidInput)):
        POLICY.check(f"https://{user}10.0.0.1/acme/shop")


class _Redirects(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/inside{self.path}")  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _redirecting() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Redirects)
    server.asked = []  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_git_follows_no_redirect_to_the_inside() -> None:
    """An allowed host answers with another address: it is not asked. Here http is allowed, for this server."""
    with _redirecting() as server:
        url = f"http://127.0.0.1:{server.server_port}/acme/shop"
        with pytest.raises(KnarrError):
            await run_git(
                ["-c", "protocol.http.allow=always", "ls-remote", "--end-of-options", url],
                timeout_s=20,
                max_output_bytes=1000,
                env={"GIT_ALLOW_PROTOCOL": "http"},
            )
        assert not [path for path in server.asked if path.startswith("/inside")]  # type: ignore[attr-defined]


# ── commands, options and paths in names ─────────────────────────────────────────────────────────────────────────────

INJECTIONS = (
    "$(touch /tmp/x)",
    "`id`",
    "a;id",
    "a|id",
    "a&&id",
    "a\nid",
    "a\x00b",
    "--upload-pack=id",
    "-oProxyCommand=id",
    "../../etc/passwd",
    "..%2f..%2fetc",
    "/etc/passwd",
    "a/../b",
    "a b",
    "${IFS}id",
    "'; DROP TABLE apps; --",
    "<script>alert(1)</script>",
    "{{7*7}}",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_name_carries_a_command_an_option_or_a_path(text: str) -> None:
    """Names of apps, repositories, branches, folders: each is checked where it is given."""
    for check in (rules.app_name, rules.repository, rules.commit):
        with pytest.raises(InvalidInput):
            check(text)
    with pytest.raises(InvalidInput):
        rules.branch(f"refs/heads/{text}\x00")
    if ".." in text.split("/") or text.startswith("/") or "\x00" in text or "\n" in text:
        with pytest.raises(InvalidInput):
            rules.root(text)


@together
@shared
@pytest.mark.parametrize("text", INJECTIONS)
async def test_no_path_of_a_route_leads_anywhere_else(platform: House, victim: Victim, text: str) -> None:
    """Ids are looked up, never used as a path or in a statement: 400, 404 or 405, and the platform goes on."""
    for service, path in (
        ("webhook", "/apps/{}"),
        ("webhook", "/deliveries/{}"),
        ("builder", "/builds/{}/log"),
        ("deployer", "/apps/{}/logs"),
        ("saga_coordinator", "/sagas/{}/log"),
        ("registry", "/images?app={}"),
        ("source", "/docs/{}"),
    ):
        answer = await platform.ask(service, "GET", path.format(quote(text, safe="")), victim.token)
        assert answer.status_code in {200, 400, 404, 405}, (path, answer.status_code)
        if answer.status_code == 200:
            assert answer.json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("name", ["A=B", "A\x00B", "A\nB", "1A", "", "A B", "KNARR_TOKEN", "PORT", "A-B"])
def test_no_config_var_becomes_another_one(name: str) -> None:
    """A line break or `=` in a name would set a second variable."""
    with pytest.raises(FinalError):
        changed({}, {name: "x"})


@pytest.mark.parametrize("value", ["a\x00b", "x" * 70_000])
def test_no_value_of_a_config_var_breaks_the_environment(value: str) -> None:
    """NUL ends a variable for the kernel, and a value that is too long keeps the process from starting."""
    with pytest.raises(FinalError):
        changed({}, {"A": value})


# ── a folder that was made to harm ───────────────────────────────────────────────────────────────────────────────────

HOSTILE = (
    "core.fsmonitor",
    "core.sshCommand",
    "core.pager",
    "core.editor",
    "core.hooksPath",
    "core.askPass",
    "core.gitProxy",
    "core.alternateRefsCommand",
    "credential.helper",
    "diff.external",
    "diff.evil.command",
    "diff.evil.textconv",
    "filter.evil.clean",
    "filter.evil.smudge",
    "filter.evil.process",
    "gpg.program",
    "gpg.ssh.program",
    "merge.evil.driver",
    "pager.log",
    "pager.ls-files",
    "sequence.editor",
    "uploadpack.packObjectsHook",
)


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A repository whose configuration names a program everywhere, also by an included file; and what it leaves."""
    ran, program, folder = tmp_path / "ran", tmp_path / "evil", tmp_path / "cloned"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {shlex.quote(str(ran))}\nexit 1\n')
    program.chmod(0o755)
    folder.mkdir()

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgSign=false")
        subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)

    git("init", "--quiet", "--initial-branch=main")
    (folder / "app.py").write_text("print('hello')\n")
    (folder / "Procfile").write_text("web: python app.py\n")
    (folder / "requirements.txt").write_text("")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    (folder / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (folder / "new.txt").write_text("new\n")
    (folder / "app.py").write_text("print('changed')\n")
    included = folder / "included"
    for name in HOSTILE:
        value = str(folder.parent) if name == "core.hooksPath" else str(program)
        subprocess.run(["git", "config", "--file", included, name, value], check=True)
    subprocess.run(["git", "config", "--file", included, "log.showSignature", "true"], check=True)
    with (folder / ".git" / "config").open("a") as config:
        config.write(f"[include]\n\tpath = {included}\n[alias]\n\tlog = !{program}\n\tls-files = !{program}\n")
    for hook in ("post-index-change", "pre-commit", "reference-transaction"):
        (folder.parent / hook).write_text(program.read_text())
        (folder.parent / hook).chmod(0o755)
    return folder, ran


def test_no_command_line_starts_a_program_of_the_folder(
    hostile: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`knarr plan`, `knarr deploy` and `knarr webhook send` in a cloned repository."""
    folder, ran = hostile
    monkeypatch.setenv("KNARR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KNARR_TOKEN", "a-token")
    monkeypatch.setenv("KNARR_PORT_BASE", "1")  # nothing listens there: packing comes before that is seen
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(app, ["plan", str(folder)]).exit_code == 0
    CliRunner().invoke(app, ["deploy", str(folder), "--app", "shop"])
    push_of(folder, full_name="acme/shop", secret="s" * 20)
    assert not ran.exists(), ran.read_text()


async def test_the_watch_would_see_a_program(hostile: tuple[Path, Path]) -> None:
    """Plain git starts it: the test above is not blind."""
    folder, ran = hostile
    process = await asyncio.create_subprocess_exec("git", "-C", str(folder), "status", stdout=-3, stderr=-3)
    await process.wait()
    assert ran.exists()


# ── before authentication ────────────────────────────────────────────────────────────────────────────────────────────


@together
@shared
@pytest.mark.parametrize(
    ("service", "method", "path"),
    [
        ("webhook", "POST", "/apps/shop/deployments"),
        ("source", "PUT", "/sources/sha256:" + "a" * 64),
        ("deployer", "PUT", "/apps/shop/storage/data/content"),
    ],
)
async def test_nothing_of_an_upload_is_read_without_a_token(
    platform: House, service: str, method: str, path: str
) -> None:
    """Neither kept nor unpacked: the answer is there before the first megabyte is."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield bytes(1024 * 1024)

    headers = {"Content-Type": "application/gzip"}
    for token in (None, "wrong"):
        answer = await platform.ask(service, method, path, token, content=endless(), headers=headers)
        assert answer.status_code == 401
    assert sent <= 4
