"""The container's health check: asks the service that runs here for a path; 0 when it says 200.

One image holds six services, and a container runs one of them: the check asks each of their ports, and the one where
somebody listens is meant. A container that runs a command instead is as healthy as that command.

Started every few seconds beside each service, so it loads next to nothing: `python -I -S ask.py /livez`.
"""
# ruff: noqa: INP001  a script, in no package

import os
import socket
import sys

SERVICES = 6
PATIENCE_S = 4


def status(port: int, path: str) -> int | None:
    """What the service on that port of this machine answers; None: nobody listens."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    except ConnectionRefusedError:
        return None
    with connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        first_line = connection.makefile("rb").readline().split()
    return int(first_line[1]) if len(first_line) > 1 else 0


def main() -> str | None:
    """What is wrong; None: nothing."""
    path = sys.argv[1]
    base = int(os.environ.get("KNARR_PORT_BASE", "8700"))
    try:
        answers = [status(base + number, path) for number in range(1, SERVICES + 1)]
    except OSError as error:
        return f"{path}: {error}"
    found = [answer for answer in answers if answer is not None]
    if not found:
        with open("/proc/1/cmdline", "rb") as command:  # noqa: PTH123  pathlib takes longer to load than all the rest
            return f"{path}: nobody listens" if b"services." in command.read() else None
    return None if found == [200] * len(found) else f"{path}: {found}"


if __name__ == "__main__":
    sys.exit(main())
