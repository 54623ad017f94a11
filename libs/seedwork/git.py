"""git as a subprocess, as safely as it can be run: arguments in, its output or one of our errors out.

Guaranteed: no shell, no prompt, no configuration of the user or the machine, no hook, no submodule, no redirect, only
the protocols named here, an end to time and output, and no process left behind. Not guaranteed: that a URL is one that
the operator allows; `GitUrlPolicy.check` says so, and it comes before the first command that names the URL.
An argument from outside stands behind `--end-of-options` or is a checked ref or commit.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from seedwork.errors import (
    FinalError,
    InvalidInput,
    KnarrError,
    Misconfigured,
    NotAllowed,
    NotFound,
    RetryableError,
    StorageFull,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

PROTOCOLS = ("https", "ssh", "file")
"""What git may speak; `http`, `git`, `ext` and every other helper stay off."""

COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
"""A full commit id (SHA-1), to be used with `fullmatch`."""

_CONFIG = (
    "protocol.allow=never",
    *(f"protocol.{name}.allow=always" for name in PROTOCOLS),
    "http.followRedirects=false",
    # A connection that carries less than 1 kB/s for 30 s is dead: the caller's own limit may be many minutes.
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "credential.helper=",
    "core.askPass=",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    # A background `git gc` would outlive the command and its limits.
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
)

_KEPT = (
    "PATH",
    "HOME",  # ~/.netrc and ~/.ssh are where the operator keeps credentials
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    *(each for name in ("https_proxy", "all_proxy", "no_proxy") for each in (name, name.upper())),
)

_SCP = re.compile(r"(?:(?P<user>[A-Za-z0-9._-]+)@)?(?P<host>[A-Za-z0-9._-]+):(?P<path>[^/:].*)", re.ASCII)
_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/]*)(?P<path>/.*)?", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_MAX_URL_CHARS = 1000
_STDERR_KEPT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class GitUrl:
    """An address that git can clone from, taken apart; spellings of one place are equal in host and segments."""

    scheme: str
    user: str | None
    host: str
    """With its port, in lower case; empty for `file`."""
    segments: tuple[str, ...]
    """The path, percent-decoded; none is empty, `.` or `..`."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `https://host/path`, `ssh://user@host/path`, `user@host:path` or `file:///path`.

        Raises:
            InvalidInput: Another form, an option in disguise, credentials inside, or a path that climbs.
        """
        if url.startswith("-") or len(url) > _MAX_URL_CHARS or not url.isprintable() or re.search(r"[\s\\?#]", url):
            raise _no_url(url, "it begins with a dash, is too long, or has blanks, backslashes, '?' or '#' in it")
        if match := _URL.fullmatch(url):
            scheme, authority, path = match["scheme"], match["authority"], match["path"] or ""
        elif match := _SCP.fullmatch(url):
            user = f"{match['user']}@" if match["user"] else ""
            scheme, authority, path = "ssh", user + match["host"], "/" + match["path"]
        else:
            raise _no_url(url, "it is no address of a known form")
        if scheme not in PROTOCOLS:
            raise _no_url(url, f"{scheme!r} is not one of {', '.join(PROTOCOLS)}")
        userinfo, at, host = authority.rpartition("@")
        if at and (scheme != "ssh" or ":" in userinfo):
            raise InvalidInput(
                "The clone URL has credentials in it",
                why="it is shown in lists, events and logs, where no secret may stand",
                todo="Leave them out of the URL: a token belongs in KNARR_SOURCE_CREDENTIALS"
                " (https://github.com/acme/=TOKEN), a key in ~/.ssh of the user that runs knarr.",
            )
        if userinfo and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", userinfo, re.ASCII):
            raise _no_url(url, "the user's name has signs in it that no user's name has")
        if scheme == "file" and host:
            raise _no_url(url, "a file URL has three slashes: file:///path")
        if scheme != "file" and not _HOST.fullmatch(host):
            raise _no_url(url, "its host is not a name or an address")
        return cls(scheme, userinfo or None, host.lower(), _segments(url, path))

    def inside(self, prefix: Self) -> bool:
        """Whether this is the prefix or lies below it: whole segments count, not characters."""
        return (
            self.scheme == prefix.scheme
            and self.host == prefix.host
            and prefix.user in (None, self.user)
            and self.segments[: len(prefix.segments)] == prefix.segments
        )


def resolved_url(parent: str, url: str) -> str:
    """Return the address of a submodule: one that begins with `./` or `../` is relative to its parent's.

    Rule: https://git-scm.com/docs/gitmodules, `submodule.<name>.url`. An absolute path is one on the machine of a
    parent that is a `file` URL. The result is not checked.
    """
    if url.startswith("/") and parent.startswith("file://"):
        return f"file://{url}"
    if not url.startswith(("./", "../")):
        return url
    base = parent.rstrip("/")
    while url.startswith(("./", "../")):
        climbs = url.startswith("../")
        url = url.partition("/")[2]
        if climbs:
            at = max(base.rfind("/"), base.rfind(":") if "://" not in base else -1)
            base = base[: max(at, 0)] if base[at : at + 1] == "/" else base[: at + 1]
    return f"{base}{'' if base.endswith(':') else '/'}{url}"


def https_form(url: str) -> str | None:
    """Return the https address of the same host and path for an ssh, git or http address; None: it has another form."""
    if match := re.fullmatch(r"(?:ssh|git|http)://(?:[^/@]*@)?([^/:@]+)(?::[0-9]+)?(/.*)", url, re.ASCII):
        return f"https://{match[1]}{match[2]}"
    if match := _SCP.fullmatch(url):
        return f"https://{match['host']}/{match['path']}"
    return None


def _segments(url: str, path: str) -> tuple[str, ...]:
    decoded = unquote(path)
    inner = decoded.removeprefix("/").removesuffix("/")
    segments = tuple(inner.split("/")) if inner else ()
    if "\\" in decoded or not decoded.isprintable() or any(each in ("", ".", "..") for each in segments):
        raise _no_url(url, "its path climbs or has empty parts")
    if segments and segments[0].startswith("-"):
        raise _no_url(url, "its path begins with a dash")
    return segments


def _no_url(url: str, why: str) -> InvalidInput:
    shown = re.sub(r"[^/@]*@", "…@", url[:100])  # what stands before an @ may be a secret
    return InvalidInput(
        f"{shown!r} is no URL to clone from",
        why=why,
        todo="Use https://host/owner/name.git, ssh://git@host/owner/name.git, git@host:owner/name.git or file:///path.",
    )


class GitUrlPolicy:
    """The allow-list of `KNARR_SOURCE_ALLOW`: which repositories knarr talks to at all."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        """Take URL prefixes such as `https://github.com/acme/`; a prefix without a user allows every user.

        Raises:
            Misconfigured: A prefix is no URL.
        """
        self.prefixes = tuple(each.strip() for each in prefixes if each.strip())
        try:
            self._allowed = tuple(GitUrl.parse(each) for each in self.prefixes)
        except InvalidInput as error:
            raise Misconfigured(
                "KNARR_SOURCE_ALLOW cannot be read",
                why=error.message,
                todo="It is a list of URL prefixes with commas between them, https://github.com/,file:///srv/git/.",
            ) from error

    @classmethod
    def from_setting(cls, text: str) -> Self:
        """From the setting's text, with commas between the prefixes."""
        return cls(text.split(","))

    def check(self, url: str) -> None:
        """Return if knarr may talk to this repository.

        Raises:
            InvalidInput: It is no URL to clone from.
            NotAllowed: It is outside every prefix; the text names them.
        """
        parsed = GitUrl.parse(url)
        if not parsed.segments or not any(parsed.inside(prefix) for prefix in self._allowed):
            raise NotAllowed(
                f"The repository {url} is not allowed here",
                why=f"KNARR_SOURCE_ALLOW lets knarr talk to {', '.join(self.prefixes) or 'no repository'} only",
                todo="Use a repository below one of these, or add its prefix to KNARR_SOURCE_ALLOW and restart knarr.",
            )

    def allowed(self, url: str) -> str:
        """Return this address if knarr may talk to it, else its https form.

        Raises:
            InvalidInput: It is no URL to clone from.
            NotAllowed: Both are outside every prefix; the text names them.
        """
        try:
            self.check(url)
        except (InvalidInput, NotAllowed):
            other = https_form(url)
            if other is None:
                raise
            self.check(other)
            return other
        return url


def check_ref(ref: str) -> None:
    """Return if this is a full ref name, `refs/heads/main`: the rules of `git check-ref-format`, and printable.

    Raises:
        InvalidInput: It is not; the text says which rule it breaks.
    """
    parts = ref.split("/")
    if len(parts) < 3 or parts[0] != "refs":
        why = "it does not begin with refs/heads/ or refs/tags/"
    elif len(ref) > 255:
        why = "it is longer than 255 characters"
    elif not ref.isprintable() or re.search(r"[ ~^:?*\[\\\x7f]", ref):
        why = "a blank, a control character or one of ~ ^ : ? * [ \\ is in it"
    elif any(each == "" or each.startswith((".", "-")) or each.endswith(".lock") for each in parts):
        why = "a part of it is empty, begins with '.' or '-', or ends with .lock"
    elif ".." in ref or "@{" in ref or ref.endswith("."):
        why = "'..' or '@{' is in it, or it ends with '.'"
    else:
        return
    raise InvalidInput(f"{ref[:100]!r} is no ref", why=why, todo="Give a full name such as refs/heads/main.")


def safe_git_env() -> dict[str, str]:
    """The whole environment of a git command: nothing in it asks, configures, or came from the caller unseen."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return env | {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "SSH_ASKPASS_REQUIRE": "never",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=15 -oControlMaster=no -oForwardAgent=no",
        "GIT_SSH_VARIANT": "ssh",
    }


def git_command(args: Sequence[str]) -> list[str]:
    """The argument list of `git <args>` under the rules of this module; run it with `safe_git_env()` and no shell."""
    return ["git", *(part for setting in _CONFIG for part in ("-c", setting)), *args]


def folder_command(folder: Path, args: Sequence[str]) -> list[str]:
    """The argument list of `git <args>` in a folder of the user, whose own configuration starts no program.

    The user's configuration counts (what is ignored, which owners are trusted); run it with `folder_env()`.
    """
    return [*git_command(["-c", "log.showSignature=false", "-C", os.fspath(folder)]), *args]


def folder_env() -> dict[str, str]:
    """The environment of a command in a folder of the user: no prompt, and no fetch of what the folder lacks."""
    return {
        **os.environ,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
    }


async def run_git(
    args: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float,
    max_output_bytes: int,
    what: str = "",
) -> bytes:
    """Run `git <args>` to its end and return what it printed.

    Whatever ends the wait (the limit, too much output, a cancelled caller), the whole process group is killed.

    Args:
        args: The subcommand and its arguments; those from outside stand behind `--end-of-options`.
        cwd: Where it runs.
        env: Added to the environment: `GitCredentials.env_for(url)`.
        timeout_s: After so many seconds it is killed.
        max_output_bytes: More than this on standard output is too much.
        what: What errors call this, "reading refs/heads/main of https://…"; `git <subcommand>` if not given.

    Raises:
        RetryableError: The network, the other side, this machine's resources, or the time limit (`Unavailable`);
            a full disk (`StorageFull`).
        NotFound: No such repository, ref or commit.
        Unauthenticated: The other side wants credentials, or other ones, or its ssh key is not known here.
        TooLarge: More output than allowed.
        Misconfigured: There is no git on this machine.
        FinalError: Any other failure, with git's own words.
    """
    what = what or f"git {args[0]}"
    process = await _start(args, cwd, env or {})
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    assert process.stderr is not None  # noqa: S101 - likewise
    complaint = asyncio.create_task(_tail(process.stderr))
    try:
        async with asyncio.timeout(timeout_s):
            output = await _all_of(process.stdout, max_output_bytes, what)
            stderr = await complaint
            status = await process.wait()
    except TimeoutError as error:
        raise Unavailable(
            f"{what} did not finish within {timeout_s:g} s",
            why="the other side is slow or does not answer",
            todo="Try again; look whether this machine reaches the Git host.",
            code="git_timed_out",
        ) from error
    finally:
        complaint.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await complaint
        await _end(process)
    if status != 0:
        raise git_error(what, status, stderr)
    return output


async def _start(args: Sequence[str], cwd: Path | None, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *git_command(args),
            cwd=cwd,
            env=safe_git_env() | dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if cwd is not None and str(error.filename) == str(cwd):
            raise NotFound(f"The folder {cwd} is not there") from error
        raise Misconfigured(
            "git cannot be started", why="there is no git on PATH", todo="Install git (apt install git) and try again."
        ) from error
    except OSError as error:
        raise RetryableError("git cannot be started", why=str(error)) from error


async def _all_of(stream: asyncio.StreamReader, limit_bytes: int, what: str) -> bytes:
    chunks = bytearray()
    while chunk := await stream.read(64 * 1024):
        chunks += chunk
        if len(chunks) > limit_bytes:
            raise TooLarge(f"{what} printed more than {limit_bytes} bytes")
    return bytes(chunks)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(8 * 1024):
        kept = (kept + chunk)[-_STDERR_KEPT_BYTES:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs of the group, and read the pipes empty: only then does asyncio let go of them."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()


_FAULTS: tuple[tuple[str, type[KnarrError], str, str], ...] = (
    ("no space left on device|disk quota exceeded", StorageFull, "storage_full", "Make room on the disk."),
    (
        (
            "could not resolve|couldn't resolve|temporary failure in name resolution"
            "|connection (?:refused|reset|timed out)|failed to connect"
            "|operation timed out|operation too slow|network is unreachable|no route to host"
            "|returned error: (?:429|5\\d\\d)|early eof|rpc failed|unexpected disconnect|hung up unexpectedly"
            "|connection closed by|gnutls|ssl_|ssl connect|tls (?:handshake|connection)|broken pipe"
            "|cannot allocate memory|unable to create thread"
        ),
        Unavailable,
        "git_unavailable",
        "Try again; look whether this machine reaches the Git host.",
    ),
    (
        "host key verification failed",
        Unauthenticated,
        "git_host_key",
        "Add the host's key to ~/.ssh/known_hosts of the user that runs knarr (ssh-keyscan HOST).",
    ),
    (
        (
            "authentication failed|could not read (?:username|password)|terminal prompts disabled|permission denied"
            "|returned error: 40[13]|access denied|support for password authentication was removed"
        ),
        Unauthenticated,
        "git_auth",
        (
            "The repository does not exist or is private: check the URL, or put a token into KNARR_SOURCE_CREDENTIALS"
            " or a key into ~/.ssh of the user that runs knarr."
        ),
    ),
    (
        (
            "couldn't find remote ref|could not find remote branch|not our ref|unadvertised object|unknown revision"
            "|bad object|invalid object name|not a valid object name|did not match any|not a tree object"
        ),
        NotFound,
        "ref_not_found",
        "Check the ref and the commit; a force push may have removed it.",
    ),
    (
        (
            "not found|does not exist|does not appear to be a git repository|not a git repository|no such file"
            "|returned error: 404"
        ),
        NotFound,
        "repository_not_found",
        "Check the repository's URL.",
    ),
    (
        "unable to update url base from redirection|redirect|returned error: 30\\d",
        FinalError,
        "git_redirect",
        "The repository moved and knarr follows no redirects: give the app its new clone_url.",
    ),
    ("transport '.*' not allowed", NotAllowed, "not_allowed", f"Use one of {', '.join(PROTOCOLS)}."),
)


def git_error(what: str, status: int, stderr: bytes) -> KnarrError:
    """Git's words as one of our types; a failure that nobody recognises is final."""
    lines = _printable_lines(stderr)
    why = next((each for each in lines if each.startswith(("fatal:", "error:"))), lines[-1] if lines else "")
    why = why or (f"signal {-status}" if status < 0 else f"exit code {status}")
    text = re.sub(r"'[^'\n]*'", "''", "\n".join(lines))  # a URL or a path in quotes may hold any word
    for pattern, error, code, todo in _FAULTS:
        if re.search(pattern, text, re.IGNORECASE):
            return error(f"{what} failed", why=why, todo=todo, code=code, log_tail=lines)
    kind: type[KnarrError] = Unavailable if status < 0 else FinalError
    return kind(f"{what} failed", why=why, code="git_failed", log_tail=lines)


def _printable_lines(stderr: bytes) -> tuple[str, ...]:
    """The last 20 lines; what the other side printed may hold terminal controls, which go no further."""
    text = stderr.decode("utf-8", "replace")
    lines = ("".join(char for char in line if char.isprintable()).strip()[:500] for line in text.splitlines())
    return tuple(each for each in lines if each)[-20:]


__all__ = [
    "COMMIT",
    "PROTOCOLS",
    "GitUrl",
    "GitUrlPolicy",
    "check_ref",
    "folder_command",
    "folder_env",
    "git_command",
    "git_error",
    "https_form",
    "resolved_url",
    "run_git",
    "safe_git_env",
]
