"""Structured logs on standard error: JSON lines for a pipe, readable lines for a person on a terminal.

Each line carries what is bound in structlog's context variables: `service`, `saga_id`, `step`, `attempt`, and the trace
it belongs to. Values whose key sounds like a secret are masked. Lines of libraries that use Python's own logging
(uvicorn, SQLAlchemy …) take the same way. The process configures this once, where it starts.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from seedwork.chassis.settings import ServiceSettings
from seedwork.chassis.tracing import current_traceparent

MASK = "***"

_SECRET = re.compile(
    r"secret|token|passw|credential|authorization|cookie|api_?key|private_?key|signature", re.IGNORECASE
)


def configure_logging(settings: ServiceSettings, *, stream: TextIO | None = None) -> None:
    """Set up the logs of this process; a second call replaces the first.

    Args:
        settings: `log_level` and `log_format`.
        stream: Where to write, in place of standard error.
    """
    stream = stream or sys.stderr
    level = getattr(logging, settings.log_level.upper())
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        mask_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(as_json, stream)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    for name in ("httpx2", "httpcore2", "aiosqlite", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def mask_secrets(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Replace the values of keys that sound like a secret, at any depth."""
    for key, value in line.items():
        line[key] = _masked(key, value)
    return line


def _masked(key: str, value: Any) -> Any:
    if key.startswith("_"):  # structlog's own bookkeeping
        return value
    if value is not None and _SECRET.search(key):
        return MASK
    if isinstance(value, Mapping):
        return {name: _masked(str(name), each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", each) for each in value]
    return value


def _add_trace(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    if "traceparent" not in line and (traceparent := current_traceparent()):
        line["traceparent"] = traceparent
    return line


def _renderer(as_json: bool, stream: TextIO) -> list[Processor]:
    """Tracebacks never show local variables: a secret may be in one."""
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json_text)]
    return [
        _without_trace,
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
    ]


def _without_trace(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """A person on a terminal has no use for trace ids."""
    line.pop("traceparent", None)
    return line


def _json_text(line: EventDict, **_options: Any) -> str:
    return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
