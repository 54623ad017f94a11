"""Starts one build tool under limits: `launcher.py '{"private_bytes": …}' tool argument …`.

Runs as a script of its own, since between fork and exec of a threaded process nothing may be done that takes a lock.
Only the standard library, imported as little as possible: it is on the way of every command.
"""

import json
import os
import resource
import sys

_CPU_GRACE_S = 5
"""Processor seconds between SIGXCPU, which names the limit, and SIGKILL, which does not."""


def main() -> None:
    """Lower the limits, then become the tool; exit code 127 if it cannot be started, as a shell has it."""
    limits = json.loads(sys.argv[1])
    for name, value in (
        (resource.RLIMIT_DATA, limits["private_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["tasks"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _lower(name, value)
    _lower(resource.RLIMIT_CPU, limits["cpu_s"], grace=_CPU_GRACE_S)
    os.umask(0o022)
    _be_killed_first()
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - this is what the script is for; no shell
    except OSError as error:
        sys.stderr.write(f"{sys.argv[2]} cannot be started: {error.strerror}\n")
        sys.exit(127)


def _lower(name: int, value: int | None, *, grace: int = 0) -> None:
    hard = resource.getrlimit(name)[1]
    if value is None or (hard != resource.RLIM_INFINITY and hard <= value):
        return
    most = value + grace
    resource.setrlimit(name, (value, most if hard == resource.RLIM_INFINITY else min(most, hard)))


def _be_killed_first() -> None:
    """Where the machine's memory runs out, Linux shall take the build and not the platform."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs 5 ms
            file.write("800")
    except OSError:
        return  # not Linux, or not allowed: the limits above still hold


main()
