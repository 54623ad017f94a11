"""`make test-stack`: everything marked `stack`, against servers of the environment or started for this run.

    python -m tests.stack [ARGUMENTS OF PYTEST]

Ends as pytest does. Where no Docker engine is reachable nothing is started, and what wants a missing server is not run.
"""

import contextlib
import subprocess
import sys

from tests.stack.servers import SERVERS, STARTED, find_docker, started

HANGS_S = 1800
"""A test that takes longer is shown with its stack, and ended with its worker: it counts as failed."""


def main(arguments: list[str]) -> int:
    """Run the tests; how pytest ended."""
    can_start = find_docker()
    missing = [server.name for server in SERVERS[: len(STARTED)] if not server.is_named]
    if missing:
        sys.stderr.write(f"{'starting' if can_start else 'there is no Docker engine to start'} {', '.join(missing)}\n")
    bound = ["-o", f"faulthandler_timeout={HANGS_S}", "-o", "faulthandler_exit_on_timeout=true"]
    plugins = ["-p", "tests.stack.what_ran", "-p", "tests.groups"]
    pytest = [sys.executable, "-m", "pytest", *plugins, *bound, "-m", "stack", *arguments]
    with started() if can_start else contextlib.nullcontext():
        return subprocess.run(pytest, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
