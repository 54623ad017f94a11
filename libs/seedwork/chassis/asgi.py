"""The outermost layer of a service: every request has a trace, a log context, a count, and an answer.

An exception that nobody foresaw is logged here with its traceback and becomes a 500 that says nothing about the inside;
if the answer has begun already, the connection is cut, so that nobody takes a part for the whole.
"""

import errno
import time

import structlog
from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedwork.chassis import problems
from seedwork.chassis.metrics import Metrics
from seedwork.chassis.tracing import Tracing, span

log = structlog.get_logger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Boundary:
    """ASGI middleware around everything else.

    Args:
        app: What it surrounds.
        service: The service's name, for logs.
        metrics: Where requests are counted.
        tracing: Whose spans these are.
    """

    def __init__(self, app: ASGIApp, *, service: str, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._tracing.bind()
        began = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method: str = scope["method"]
        with (
            structlog.contextvars.bound_contextvars(service=self._service),
            span(method, traceparent=_header(scope, b"traceparent"), kind=SpanKind.SERVER) as current,
        ):
            try:
                await self._app(scope, receive, watched)
            except Exception as error:
                if not status and isinstance(error, OSError) and error.errno in _NO_ROOM:
                    log.error("request.no_room", method=method, path=scope["path"], error=error.strerror)  # noqa: TRY400  the traceback says nothing
                    await problems.no_room()(scope, receive, watched)
                    return
                log.exception("unexpected error in a request", method=method, path=scope["path"])
                if status:
                    raise
                await problems.unexpected()(scope, receive, watched)
            finally:
                route = route_of(scope)
                seconds = time.perf_counter() - began
                self._metrics.answered(method=_known(method), route=route, status=status, seconds=seconds)
                current.update_name(f"{method} {route}")
                current.set_attribute("http.response.status_code", status)
            log.debug("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1))


def route_of(scope: Scope) -> str:
    """The route's template, so that ids in paths do not become metrics of their own."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _known(method: str) -> str:
    """A client can invent methods; a metric must not grow by that."""
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None
