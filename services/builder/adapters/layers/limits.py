"""The limits of one build, and which of them a tool ran into. Pure: exit status and last lines in, an error out.

A tool reports a limit in one of three ways: it dies of a signal, its parent (a shell, npm) passes 128 + signal on, or
it prints the text of an error number.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.builder.errors import BuildFailed, FileTooLarge, OutOfMemory, TooManyProcesses, TooMuchCpu

MIB = 1024**2
_NO_MEMORY = re.compile(
    rb"MemoryError|Cannot allocate memory|ENOMEM|heap out of memory|memory allocation of \d+ bytes|std::bad_alloc"
    rb"|runtime: out of memory|virtual memory exhausted|OutOfMemoryError"
)
_NO_ROOM = re.compile(rb"No space left on device|ENOSPC|Disk quota exceeded|EDQUOT")
_LARGE_FILE = re.compile(rb"File size limit exceeded|File too large|\bEFBIG\b|\bSIGXFSZ\b")
_CPU = re.compile(rb"CPU time limit exceeded|\bSIGXCPU\b")
_KILLED = re.compile(rb"\bSIGKILL\b")
_NO_PROCESS = re.compile(
    rb"fork: (retry: )?Resource temporarily unavailable|spawn \S+ EAGAIN|pthread_create.{0,40}Resource temporarily"
    rb"|can't start new thread|failed to create new OS thread"
)


_RESERVED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one build."""

    memory_bytes: int
    """Resident, of all its processes together."""
    processes: int
    file_bytes: int
    """Of any one file."""
    cpu_s: int
    """Of any one process."""


def private_bytes(memory_bytes: int) -> int:
    """Return the private memory in bytes that each process of a build may reserve.

    It is a multiple, since runtimes such as Node 24 and libraries with allocators of their own reserve far more than
    they use: a Nuxt app that is built with 0.8 GiB resident reserves more than 2. What is used is watched.
    """
    return _RESERVED * memory_bytes


def out_of_room(lines: Sequence[bytes]) -> bool:
    """Whether a tool found the disk full."""
    return _says(lines, _NO_ROOM)


def limit_error(exit_code: int, lines: Sequence[bytes], limits: Limits) -> BuildFailed | None:
    """Return the error for the limit that a tool ran into, or None.

    Args:
        exit_code: Exit status of the tool, not 0; negative: the signal that ended it.
        lines: The last lines that it printed.
        limits: What the build may take.
    """
    rules: tuple[tuple[int | None, re.Pattern[bytes], Callable[[Limits], BuildFailed]], ...] = (
        (None, _NO_MEMORY, out_of_memory),
        (signal.SIGXFSZ, _LARGE_FILE, file_too_large),
        (signal.SIGXCPU, _CPU, too_much_cpu),
        (None, _NO_PROCESS, lambda limits: too_many_processes(None, limits)),
        (signal.SIGKILL, _KILLED, killed),
    )
    return next(
        (
            error(limits)
            for number, pattern, error in rules
            if _says(lines, pattern) or (number is not None and exit_code in {-number, 128 + number})
        ),
        None,
    )


def out_of_memory(limits: Limits) -> OutOfMemory:
    """Return the error for too much memory."""
    return OutOfMemory(
        "The build ran out of memory",
        why=f"a build may take {limits.memory_bytes // MIB} MiB",
        todo="Make the build smaller, or raise KNARR_BUILD_MEMORY_BYTES.",
    )


def file_too_large(limits: Limits) -> FileTooLarge:
    """Return the error for a file above the limit."""
    return FileTooLarge(
        "The build wrote a file that is too large",
        why=f"a file may have {limits.file_bytes} bytes",
        todo="Write smaller files, or raise KNARR_BUILD_FILE_BYTES.",
    )


def too_much_cpu(limits: Limits) -> TooMuchCpu:
    """Return the error for a process above its processor time."""
    return TooMuchCpu(
        "A process of the build used too much processor time",
        why=f"each may use {limits.cpu_s} s: the build's time limit on every processor",
        todo="Make the build smaller, or raise KNARR_BUILD_TIMEOUT_S.",
    )


def too_many_processes(count: int | None, limits: Limits) -> TooManyProcesses:
    """Return the error for too many processes at a time; `count`: how many were seen, if they were counted."""
    return TooManyProcesses(
        f"The build has {count} processes at a time" if count else "The build could not start another process",
        why=f"a build may have {limits.processes}",
        todo="Lower its parallelism (`make -j`, MAKEFLAGS), or raise KNARR_BUILD_PROCESSES.",
    )


def killed(limits: Limits) -> OutOfMemory:
    """Return the error for a process that the system killed."""
    return OutOfMemory(
        "A process of the build was killed (SIGKILL)",
        why="the system does so when the machine, or the container of the platform, has no memory left; "
        f"a build may take {limits.memory_bytes // MIB} MiB",
        todo="Give the machine more memory, or lower KNARR_BUILD_MEMORY_BYTES and KNARR_BUILD_SLOTS.",
    )


def _says(lines: Sequence[bytes], pattern: re.Pattern[bytes]) -> bool:
    return any(pattern.search(line) for line in lines)
