"""Where the platform's logs go: JSON lines in a file that is turned over, and to the terminal what matters.

What matters is a warning or worse, in one line, without a traceback: that is in the file.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import cast

from knarr.terminal import Terminal, escape
from seedwork.chassis.logging import configure_logging
from seedwork.chassis.settings import ServiceSettings
from seedwork.errors import Misconfigured

_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)+")
"""Name of an event, not a sentence: `instance.ended`."""
MAX_BYTES = 20_000_000
"""Of one file; three older ones are kept beside it."""


@contextmanager
def log_to_file(path: Path, terminal: Terminal, *, home: Path | None = None, of_sagas: bool = True) -> Iterator[None]:
    """All logs of this process into the file, warnings also to the terminal.

    Args:
        path: The file.
        terminal: Where warnings are shown.
        home: Whose settings count; None: the default home's.
        of_sagas: Also those that belong to a saga; false where the terminal shows the sagas themselves.

    Raises:
        Misconfigured: The file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _LogFile(path, terminal)
    except OSError as error:
        raise Misconfigured(
            f"Cannot write the log {path}", why=str(error.strerror), todo="Name another: --log-file"
        ) from error
    settings = ServiceSettings(log_format="json", home=home) if home else ServiceSettings(log_format="json")
    configure_logging(settings, stream=file.stream)
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

    def _open(self) -> TextIOWrapper:
        """Open the file; a new one is for its user only from the first byte."""
        return cast("TextIOWrapper", open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private))

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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


_SUBJECTS = ("app", "process", "addon", "volume", "release", "container", "repository", "task", "kind", "path")
"""Fields that say what an event is about, in the order in which they are shown."""
_REASONS = ("why", "what", "error", "reason")


class _Short(logging.Handler):
    """One line an event: time, service, what happened to what, and why."""

    def __init__(self, terminal: Terminal, *, of_sagas: bool) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self._of_sagas = of_sagas

    def emit(self, record: logging.LogRecord) -> None:
        line = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        if ("saga_id" in line and not self._of_sagas) or _is_of_the_server(record, str(line.get("event", ""))):
            return
        service = line.get("service", record.name.split(".")[-1])
        style = "bad" if record.levelno >= logging.ERROR else "undo"
        text = escape(_in_one_line(line))
        self._terminal.say(f"[quiet]{time.strftime('%H:%M:%S')}[/]  [{style}]{escape(str(service)):<16}[/] {text}")


def _in_one_line(line: Mapping[str, object]) -> str:
    """`instance ended: shop web.1: it ended with status 3, next start in 2 s`."""
    event = str(line.get("event", ""))
    parts = [event.replace(".", " ").replace("_", " ") if _NAME.fullmatch(event) else event]
    parts.append(" ".join(str(line[name]) for name in _SUBJECTS if line.get(name)))
    parts.append(next((str(line[name]) for name in _REASONS if line.get(name)), ""))
    text = ": ".join(part for part in parts if part)
    if line.get("next_start_s"):
        text += f", next start in {line['next_start_s']:g} s"
    return " ".join(text.split())


def _is_of_the_server(record: logging.LogRecord, event: str) -> bool:
    """What uvicorn adds to a start that failed: the service has named the reason, the file has the traceback."""
    return record.name.startswith("uvicorn") and event.startswith(("Traceback", "Application startup failed"))
