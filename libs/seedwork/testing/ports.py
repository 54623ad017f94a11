"""Ports that tests running side by side do not take from each other, in this run or in another one on this machine.

A block is held by a locked file until it is given back or the process ends. A block with a port on which somebody
listens is passed over. All are below the range from which the system itself chooses.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

BLOCK = 50
"""Ports in a row: a platform's own and those of some apps."""
_FIRST, _LAST = 10_500, 32_000


@contextlib.contextmanager
def block_of_ports() -> Iterator[int]:
    """The first of `BLOCK` ports that are free and stay ours.

    Raises:
        AssertionError: Every block is taken.
    """
    folder = Path(tempfile.gettempdir()) / f"knarr-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for base in range(_FIRST, _LAST, BLOCK):
        lock = os.open(folder / str(base), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            if all(_is_free(port) for port in range(base, base + BLOCK)):
                yield base
                return
        finally:
            os.close(lock)
    raise AssertionError(f"no {BLOCK} free ports in a row between {_FIRST} and {_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
