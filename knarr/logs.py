"""Where the platform's logs go: JSON lines in a file that is turned over, and to the terminal what matters.

What matters is a warning or worse, in one line, without a traceback: that is in the file.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from knarr.terminal import Terminal, escape
from seedwork.chassis.logging import configure_logging
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Misconfigured

MAX_BYTES = 20_000_000
"""Of one file; three older ones are kept beside it."""


@contextmanager
def log_to_file(path: Path, terminal: Terminal, *, of_sagas: bool = True) -> Iterator[None]:
    """All logs of this process into the file, warnings also to the terminal.

    Args:
        path: The file.
        terminal: Where warnings are shown.
        of_sagas: Also those that belong to a saga; false where the terminal shows the sagas themselves.

    Raises:
        Misconfigured: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _LogFile(path, terminal)
    except OSError as error:
        raise Misconfigured(
            f"Cannot write the log {path}", why=str(error.strerror), todo="Name another: --log-file"
        ) from error
    configure_logging(ServiceSettings(log_format="json"), stream=file.stream)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # six servers that start and stop are no news
    root = logging.getLogger()
    file.setFormatter(root.handlers[0].formatter)
    root.handlers = [file, _Short(terminal, of_sagas=of_sagas)]
    try:
        yield
    finally:
        root.handlers = []
        file.close()


class _LogFile(RotatingFileHandler):
    """A log that cannot be written is said once, not once a line with a traceback; it goes on when there is room."""

    def __init__(self, path: Path, terminal: Terminal) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=3, encoding="utf-8")
        self._terminal = terminal
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._lost
        super().emit(record)
        if lost and lost == self._lost:
            self._lost = 0
            self._terminal.say(f"[quiet]The log is written again; some of {lost} lines may be missing.[/]")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._lost += 1
        if self._lost == 1:
            path = escape(self.baseFilename)
            self._terminal.say(f"[bad]The log {path} cannot be written:[/] {escape(str(error.strerror))}. Make room.")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the last lines, and no room for them
            super().close()


class _Short(logging.Handler):
    """One line a warning: time, service, what."""

    def __init__(self, terminal: Terminal, *, of_sagas: bool) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self._of_sagas = of_sagas

    def emit(self, record: logging.LogRecord) -> None:
        line = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        if "saga_id" in line and not self._of_sagas:
            return
        service = line.get("service", record.name.split(".")[-1])
        style = "bad" if record.levelno >= logging.ERROR else "undo"
        told = line.get("error") or line.get("reason")
        what = f"{line.get('event', '')}: {told}" if told else str(line.get("event", ""))
        self._terminal.say(
            f"[quiet]{time.strftime('%H:%M:%S')}[/]  [{style}]{escape(str(service)):<16}[/] {escape(what)}"
        )
