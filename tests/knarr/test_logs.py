"""The platform's own log."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from rich.console import Console

from knarr.logs import log_to_file
from knarr.terminal import Terminal, theme


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """One whose text can be read; afterwards Python's logging is as it was."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    terminal = Terminal()
    terminal.err = Console(file=io.StringIO(), theme=theme(), width=200)
    yield terminal
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**before)


def said(terminal: Terminal) -> str:
    file = terminal.err.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_warnings_are_told_in_one_line_and_the_rest_is_in_the_file(terminal: Terminal, tmp_path: Path) -> None:
    """A person sees what matters; a program reads all of it."""
    with log_to_file(tmp_path / "logs" / "knarr.log", terminal):
        structlog.get_logger().info("all is well", service="source")
        structlog.get_logger().warning("it waits", service="source", error="no answer")
    assert "it waits: no answer" in said(terminal)
    assert "all is well" not in said(terminal)
    text = (tmp_path / "logs" / "knarr.log").read_text()
    assert '"event":"all is well"' in text
    assert '"event":"it waits"' in text


def test_an_event_names_the_app_and_the_reason_in_one_line(terminal: Terminal, tmp_path: Path) -> None:
    """It read "an instance ended", and nothing else."""
    with log_to_file(tmp_path / "knarr.log", terminal):
        log = structlog.get_logger()
        log.warning(
            "instance.ended",
            service="deployer",
            app="shop",
            process="web.1",
            why="it ended\nwith status 3",
            next_start_s=2.0,
        )
        log.warning("a repository cannot be asked", service="webhook", app="shop", error="no answer")
        logging.getLogger("uvicorn.error").error("Traceback (most recent call last):\n  File …")
        logging.getLogger("uvicorn.error").error("Application startup failed. Exiting.")
    first, second = said(terminal).splitlines()
    assert first.endswith("deployer         instance ended: shop web.1: it ended with status 3, next start in 2 s")
    assert second.endswith("webhook          a repository cannot be asked: shop: no answer")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_said_once_and_the_log_goes_on_when_there_is_room(
    terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for each line that is lost."""
    with log_to_file(Path("/dev/full"), terminal):
        for number in range(3):
            logging.getLogger().info("line %d", number)
        assert said(terminal).count("/dev/full cannot be written: No space left on device") == 1
        assert capsys.readouterr().err == ""
        with (tmp_path / "room").open("w") as room:
            handler = logging.getLogger().handlers[0]
            assert isinstance(handler, logging.StreamHandler)
            full, handler.stream = handler.stream, room
            logging.getLogger().info("there is room")
            logging.getLogger().info("and more")
            handler.stream = full
    assert said(terminal).count("The log is written again") == 1
    assert "there is room" in (tmp_path / "room").read_text()
