"""Becomes an app's process: `launcher.py <pid of knarr> <program> <argument>…`, run by the interpreter with `-I -S`.

On Linux the kernel then kills the app when knarr dies, however that happens. It is a program of its own because code
between fork and exec is not safe in a process with threads. It imports nothing of knarr: it has to be quick.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127
_NOT_RUNNABLE = 126


def main() -> None:
    """Tie this process to its parent, then become the program."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            sys.exit(0)
    try:
        os.execvp(command[0], command)  # noqa: S606  an argument list, no shell
    except FileNotFoundError:
        print(f"knarr: cannot start {command[0]!r}: there is no such program on the app's PATH", file=sys.stderr)  # noqa: T201
        sys.exit(_NOT_FOUND)
    except OSError as error:
        print(f"knarr: cannot start {command[0]!r}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(_NOT_RUNNABLE)


if __name__ == "__main__":
    main()
