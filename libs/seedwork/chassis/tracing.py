"""Trace context (W3C `traceparent`) in and out; spans are exported only where somebody collects them.

Without a collector a span is two random numbers: what comes in is passed on, so that the logs of all services of one
push carry the same trace id, and nothing heavy is imported. With one (`KNARR_OTLP_ENDPOINT`) OpenTelemetry's SDK
records and sends. The current span is a context variable: tasks inherit it, nobody hands it around.
"""

import asyncio
import contextlib
import importlib
import secrets
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from seedwork.errors import Misconfigured

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, str | int | float | bool]

_W3C = TraceContextTextMapPropagator()
_tracer: ContextVar[trace.Tracer | None] = ContextVar("knarr_tracer", default=None)


class Tracing:
    """The spans of one service.

    Args:
        service: Its name, in every span.
        otlp_endpoint: Where spans go; None: nowhere.
        provider: In place of the exporting one, for tests.

    Raises:
        Misconfigured: There is an endpoint, but the exporter is not installed.
    """

    def __init__(self, service: str, otlp_endpoint: str | None, *, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider or (_exporting(service, otlp_endpoint) if otlp_endpoint else None)
        self._tracer = self._provider.get_tracer("knarr") if self._provider else None

    def bind(self) -> None:
        """Spans of this task, and of tasks begun from it, belong to this service."""
        _tracer.set(self._tracer)

    async def close(self) -> None:
        """Send what is left."""
        if self._provider:
            await asyncio.to_thread(self._provider.shutdown)


@contextlib.contextmanager
def span(
    name: str,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
) -> Iterator[Span]:
    """A span around a block; an exception that leaves the block marks it as failed.

    Args:
        name: What happens, `POST /apps` or `BuildImage`.
        traceparent: The span this one follows from; the current one, if not given.
        kind: Server, client, producer, consumer or internal.
        attributes: More about it.
    """
    parent = _W3C.extract({"traceparent": traceparent}) if traceparent else None
    tracer = _tracer.get()
    if tracer is not None:
        with tracer.start_as_current_span(name, context=parent, kind=kind, attributes=dict(attributes or {})) as made:
            yield made
        return
    with trace.use_span(_not_recorded(parent), record_exception=False, set_status_on_exception=False) as made:
        yield made


def current_traceparent() -> str | None:
    """The current span as a `traceparent` header; None outside of any."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def _not_recorded(parent: Context | None) -> Span:
    """A new span id in the parent's trace; a new trace without one."""
    above = trace.get_current_span(parent).get_span_context()
    return NonRecordingSpan(
        SpanContext(
            trace_id=above.trace_id if above.is_valid else secrets.randbits(128) or 1,
            span_id=secrets.randbits(64) or 1,
            is_remote=False,
            trace_flags=above.trace_flags if above.is_valid else TraceFlags(TraceFlags.DEFAULT),
            trace_state=above.trace_state if above.is_valid else None,
        )
    )


def _exporting(service: str, endpoint: str) -> "TracerProvider":
    try:
        exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise Misconfigured(
            "KNARR_OTLP_ENDPOINT is set, but traces cannot be sent",
            why="the exporter is not installed",
            todo="Install it with `pip install 'knarr[otlp]'`, or unset KNARR_OTLP_ENDPOINT.",
        ) from error
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.namespace": "knarr"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=endpoint)))
    return provider
