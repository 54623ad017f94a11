"""`python -m services.<name>`: one service in one process.

if __name__ == "__main__":
    serve(create_app, "builder")
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from seedwork.chassis.logging import configure_logging
from seedwork.chassis.settings import ServiceSettings, misconfigured
from seedwork.errors import KnarrError, Misconfigured

_BACKLOG = 2048
"""Connections that wait to be accepted: uvicorn's own number."""


def serve(create_app: Callable[[], FastAPI], name: str) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way and leave with 0; with 1 if it cannot start."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # before the server has its own, and after it has stopped on the same signal
    try:
        settings = ServiceSettings()
        configure_logging(settings)
        app = create_app()
        listening = listen(settings.host, settings.port(name))
    except ValidationError as error:
        sys.exit(f"{name}: {misconfigured(error).message}")
    except KnarrError as error:
        sys.exit(f"{name}: {error.message}")
    config = uvicorn.Config(
        app,
        log_config=None,  # ours stays
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(settings.stop_grace_s),
    )
    server = uvicorn.Server(config)
    code: str | int | None = 0
    try:
        server.run(sockets=[listening])
    except SystemExit as error:  # the server hands on the signal that stopped it
        code = error.code
    _end(code if server.started else 1)


def listen(host: str, port: int) -> socket.socket:
    """Take the port, before anything else is started.

    Raises:
        Misconfigured: Another process has it, or the address is not one of this machine.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
        taken.bind((host, port))
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise Misconfigured(
            f"Port {port} on {host} cannot be used",
            why=error.strerror or str(error),
            todo="Stop what listens there, or choose other ports with KNARR_PORT_BASE.",
        ) from error
    return taken


def _end(code: str | int | None) -> NoReturn:
    """Everything is closed by now. Threads of Pulsar's client would abort an interpreter that goes down (ADR 12)."""
    if "_pulsar" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
    sys.exit(code)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Being asked to stop is no error."""
    sys.exit(0)
