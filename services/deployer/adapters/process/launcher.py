"""Runs an app's process: `launcher.py <pid of knarr> <fd> <cgroup> <program> <argument>…`, run with `python -I -S`.

`fd` is an open file with the app's environment, `NAME=value` with a zero byte after each. `cgroup` is the folder of a
control group that the app enters before it starts; empty: none. When memory is short the kernel ends the app before
knarr.

On Linux this process stays as the parent of the app and as its subreaper: whatever the app starts, also what leaves its
session, becomes a child of this process when its own parent ends. So everything can be ended:

- SIGTERM: forward it to the app's process group, then wait until everything has ended.
- SIGHUP: kill everything and exit. The kernel sends it when knarr dies.
- The app's main process ends by itself: kill everything that it started.

The exit status is the app's; a signal that ended the app ends this process too. Elsewhere than on Linux this process
becomes the app. It is a program of its own because code between fork and exec is not safe in a process with threads.
It imports nothing of knarr: it has to be quick and small.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE = 500
"""Added to `oom_score_adj`: as if the app used half of the machine's memory more than it does."""
_NOT_FOUND = 127
_NOT_RUNNABLE = 126
_PARENT_OF_STAT = 1
"""Field of `/proc/<pid>/stat` after the program's name, which may hold spaces and parentheses."""


def main() -> None:
    """Run the program, and end what it leaves behind."""
    parent, cgroup, command = int(sys.argv[1]), sys.argv[3], sys.argv[4:]
    env = environment(int(sys.argv[2]))
    if sys.platform != "linux":
        become(command, env)
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    signals = {signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # none is handled before there is a child to act on
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:  # it died before the kernel knew that we depend on it
        sys.exit(0)
    own = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != own:
            os._exit(0)
        end_before_knarr()
        if cgroup:
            enter(cgroup)
        become(command, env)
    del env
    for stream in (0, 1, 2):  # the reader of the output sees its end when the app has closed it
        os.close(stream)
    leave_as(Family(child, signals).wait())


def environment(fd: int) -> "dict[bytes, bytes]":
    """Read the app's environment, and close the file."""
    with os.fdopen(fd, "rb") as file:
        return {entry.partition(b"=")[0]: entry.partition(b"=")[2] for entry in file.read().split(b"\0") if entry}


def end_before_knarr() -> None:
    """Make this process, and what it starts, the kernel's choice when memory is short."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123  pathlib costs memory in every instance
            raised = min(1000, int(file.read()) + OOM_SCORE)
            file.seek(0)
            file.write(str(raised))
    except (OSError, ValueError) as error:  # the app runs all the same
        os.write(2, f"knarr: the app's oom_score_adj stays as it is: {error}\n".encode())


def enter(cgroup: str) -> None:
    """Move this process into a control group; an app does not start without its limits."""
    try:
        with open(f"{cgroup}/cgroup.procs", "w") as file:  # noqa: PTH123  pathlib costs memory in every instance
            file.write("0")
    except OSError as error:
        os.write(2, f"knarr: cannot enter the control group {cgroup}: {error.strerror}\n".encode())
        os._exit(_NOT_RUNNABLE)


def become(command: "list[str]", env: "dict[bytes, bytes]") -> None:
    """Replace this process by the program."""
    try:
        os.execvpe(command[0], command, env)  # noqa: S606  an argument list, no shell
    except FileNotFoundError:
        os.write(2, f"knarr: cannot start {command[0]!r}: there is no such program on the app's PATH\n".encode())
        os._exit(_NOT_FOUND)
    except OSError as error:
        os.write(2, f"knarr: cannot start {command[0]!r}: {error.strerror}\n".encode())
        os._exit(_NOT_RUNNABLE)


class Family:
    """The app's process and all its descendants.

    Args:
        child: The app's main process, leader of its own session.
        signals: SIGTERM and SIGHUP, which are blocked until now.
    """

    def __init__(self, child: int, signals: "set[signal.Signals]") -> None:
        self._child = child
        self._to_kill = False
        self._asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._kill)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    def wait(self) -> int:
        """Return the wait status of the main process when no descendant is left."""
        status = 0
        while True:
            try:
                pid, ended = os.waitpid(-1, 0)
            except ChildProcessError:
                return status
            if pid == self._child:
                status, self._child = ended, 0
            if self._to_kill or (not self._child and not self._asked_to_stop):
                kill_children()

    def _stop(self, *_: object) -> None:
        self._asked_to_stop = True
        if self._child:
            try:
                os.killpg(self._child, signal.SIGTERM)
            except (ProcessLookupError, PermissionError):
                os.kill(self._child, signal.SIGTERM)

    def _kill(self, *_: object) -> None:
        self._to_kill = True
        kill_children()


def kill_children() -> None:
    """Send SIGKILL to each child. Their own children become ours when they end, and follow."""
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208  pathlib costs memory in every instance
        if name.isdigit() and parent_of(name) == own:
            try:  # noqa: SIM105  contextlib costs memory in every instance
                os.kill(int(name), signal.SIGKILL)
            except ProcessLookupError:
                pass


def parent_of(pid: str) -> int:
    """Return the parent's process id; 0: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  pathlib costs memory in every instance
            return int(file.read().rpartition(b")")[2].split()[_PARENT_OF_STAT])
    except (OSError, ValueError, IndexError):
        return 0


def leave_as(status: int) -> None:
    """Exit as the app did."""
    if os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main()
