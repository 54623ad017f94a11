"""git in a mirror: short answers, and long output read while git prints it; git is gone at the end in both cases."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from seedwork.archives import ArchiveLimits, BadArchive
from seedwork.errors import TimedOut
from seedwork.git import git_command, git_error, run_git, safe_git_env

_LOCAL_S = 60.0
"""For a question to the mirror; they take milliseconds."""
_ANSWER_BYTES = 64 * 1024
_POLL_MS = 200
"""How often a reader that waits for git looks whether it should stop."""


async def git(
    args: Sequence[str],
    *,
    what: str,
    mirror: Path | None = None,
    config: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = _LOCAL_S,
) -> str:
    """Run git to its end; what it printed, without the blanks around it. Bytes that are not UTF-8 are kept.

    Args:
        args: The subcommand and its arguments.
        what: What errors call this.
        mirror: Its `--git-dir`.
        config: Settings, `name=value`.
        env: Added to the environment.
        timeout_s: Time limit in seconds.
    """
    where = [] if mirror is None else [f"--git-dir={mirror}"]
    settings = [part for setting in config for part in ("-c", setting)]
    command = [*settings, *where, *args]
    output = await run_git(command, env=env, timeout_s=timeout_s, max_output_bytes=_ANSWER_BYTES, what=what)
    return output.decode(errors="surrogateescape").strip()


@contextlib.contextmanager
def output_of(mirror: Path, args: Sequence[str], limits: ArchiveLimits, stop: threading.Event) -> Iterator["Output"]:
    """What git prints, while it prints it; git is gone at the end, and its failure is the error that counts."""
    with tempfile.TemporaryFile() as complaint:
        process = subprocess.Popen(
            git_command([f"--git-dir={mirror}", *args]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaint,
            env=safe_git_env(),
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        output = Output(process.stdout.fileno(), limits.max_seconds, stop)
        try:
            yield output
            _raise_if_failed(process, complaint, args[0])
        except BadArchive:
            if output.ended:  # torn off in the middle: git's own words say why
                _raise_if_failed(process, complaint, args[0])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _raise_if_failed(
    process: "subprocess.Popen[bytes]", complaint: "tempfile._TemporaryFileWrapper[bytes] | BinaryIO", command: str
) -> None:
    status = process.wait()
    if status != 0:
        complaint.seek(0)
        raise git_error(f"git {command}", status, complaint.read(16 * 1024))


class Output:
    """A pipe whose reader can be told to stop while it waits."""

    def __init__(self, fd: int, max_seconds: float, stop: threading.Event) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._stop = stop
        self._ends_at = time.monotonic() + max_seconds
        self.ended = False

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end."""
        while not self._poll.poll(_POLL_MS):
            if self._stop.is_set() or time.monotonic() >= self._ends_at:
                raise TimedOut("git did not finish in time, or was stopped")
        data = os.read(self._fd, size)
        self.ended = not data
        return data
