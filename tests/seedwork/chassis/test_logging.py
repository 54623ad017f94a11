import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from seedwork.chassis.logging import configure_logging
from seedwork.chassis.settings import ServiceSettings
from seedwork.chassis.tracing import span

Format = Literal["auto", "json", "text"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Give pytest its handlers back."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers, root.level = before


def _configured(stream: io.StringIO, *, log_format: Format = "auto", log_level: str = "info") -> Any:
    configure_logging(ServiceSettings.model_validate({"log_format": log_format, "log_level": log_level}), stream=stream)
    return structlog.get_logger("test")


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_one_json_object_a_line() -> None:
    """With what is bound: service, saga, step, attempt."""
    stream = io.StringIO()
    log = _configured(stream)
    with structlog.contextvars.bound_contextvars(service="builder", saga_id="s1", step="build", attempt=2):
        log.info("built", digest="sha256:ab", size_bytes=7)
    (line,) = _lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "built",
        "level": "info",
        "service": "builder",
        "saga_id": "s1",
        "step": "build",
        "attempt": 2,
        "digest": "sha256:ab",
        "size_bytes": 7,
    }


def test_a_terminal_gets_lines_for_people() -> None:
    """No JSON, no trace ids."""
    stream = Terminal()
    log = _configured(stream)
    with span("x"):
        log.info("built", app="shop")
    assert "built" in stream.getvalue()
    assert "traceparent" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_the_format_can_be_chosen() -> None:
    """JSON on a terminal, text in a pipe."""
    stream = Terminal()
    _configured(stream, log_format="json").info("hello")
    assert _lines(stream)[0]["event"] == "hello"
    pipe = io.StringIO()
    _configured(pipe, log_format="text").info("hello")
    assert not pipe.getvalue().startswith("{")
    assert "\x1b" not in pipe.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_are_masked_at_any_depth(log_format: Format) -> None:
    """By the name of the key."""
    stream = io.StringIO()
    log = _configured(stream, log_format=log_format)
    log.info(
        "request",
        webhook_secret="s3cr3t-1",
        headers={"Authorization": "s3cr3t-2", "X-Hub-Signature-256": "s3cr3t-3", "Accept": "all"},
        config=[{"DB_PASSWORD": "s3cr3t-4", "API_KEY": "s3cr3t-5", "apikey": "s3cr3t-6"}],
        service_token="s3cr3t-7",
    )
    assert "s3cr3t" not in stream.getvalue()
    assert "all" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_shows_no_local_variables(log_format: Format) -> None:
    """A secret may be in one."""
    stream = io.StringIO()
    log = _configured(stream, log_format=log_format)

    def fail(password: str) -> None:
        raise ValueError(len(password))

    try:
        fail(f"hunter{1 + 1}")
    except ValueError:
        log.exception("failed")
    assert "ValueError: 7" in stream.getvalue()
    assert "in fail" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_libraries_log_the_same_way() -> None:
    """Uvicorn's lines have the same shape, and the service they belong to."""
    stream = io.StringIO()
    _configured(stream)
    with structlog.contextvars.bound_contextvars(service="builder"):
        logging.getLogger("uvicorn.error").warning("port %s is taken", 8703, extra={"token": "s3cr3t"})
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["service"]) == ("port 8703 is taken", "warning", "builder")
    assert "s3cr3t" not in stream.getvalue()


def test_less_important_lines_can_be_left_out() -> None:
    """Ours and those of libraries."""
    stream = io.StringIO()
    log = _configured(stream, log_level="warning")
    log.info("detail")
    logging.getLogger("uvicorn").info("detail")
    log.warning("trouble")
    assert [line["event"] for line in _lines(stream)] == ["trouble"]


def test_a_line_says_which_trace_it_belongs_to() -> None:
    """So that the logs of all services can be put together."""
    stream = io.StringIO()
    log = _configured(stream)
    with span("x", traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"):
        log.info("inside")
    log.info("outside")
    inside, outside = _lines(stream)
    assert inside["traceparent"].split("-")[1] == "ab" * 16
    assert "traceparent" not in outside
