"""`python -m services.<name>`: one service in one process.

if __name__ == "__main__":
    serve(create_app, "builder")
"""

import gc
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fastapi import FastAPI
from pydantic import ValidationError

from seedwork.chassis.logging import configure_logging
from seedwork.chassis.server import Server, listen
from seedwork.chassis.settings import ServiceSettings, misconfigured
from seedwork.errors import KnarrError
from seedwork.leaving import leave

_YOUNG = 20_000
"""Objects made since the last look for cycles before there is another one. Python's own number, 700, is reached with
every few messages."""


def serve(create_app: Callable[[], FastAPI], name: str) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way and leave with 0; with 1 if it cannot start."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # before the server has its own, and after it has stopped on the same signal
    try:
        settings = ServiceSettings()
        configure_logging(settings)
        app = create_app()
        listening = listen(name, settings.host, settings.port(name))
    except ValidationError as error:
        sys.exit(f"{name}: {misconfigured(error).message}")
    except KnarrError as error:
        sys.exit(f"{name}: {error.message}")
    look_seldom_for_cycles()
    server = Server(app)
    code: str | int | None = 0
    try:
        server.run(sockets=[listening])
    except SystemExit as error:  # the server hands on the signal that stopped it
        code = error.code
    leave(code if server.started else 1)


def look_seldom_for_cycles() -> None:
    """What is there now (modules, models, statements) stays for ever, and is not looked through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Being asked to stop is no error."""
    sys.exit(0)
