import asyncio
import re
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from seedwork.chassis.service import Service
from seedwork.chassis.tracing import Tracing, current_traceparent, span
from seedwork.errors import Misconfigured
from seedwork.testing.http import running

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def _trace_of(traceparent: str | None) -> str:
    assert traceparent is not None
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[01]", traceparent)
    assert match is not None
    return match[1]


def test_a_span_begins_a_trace_and_inner_ones_stay_in_it() -> None:
    """Each has an id of its own."""
    assert current_traceparent() is None
    with span("outer"):
        outer = current_traceparent()
        with span("inner"):
            inner = current_traceparent()
        assert current_traceparent() == outer
    assert current_traceparent() is None
    assert _trace_of(outer) == _trace_of(inner)
    assert outer != inner


def test_what_came_in_is_carried_on() -> None:
    """Trace id and the decision to sample."""
    with span("inner", traceparent=PARENT):
        assert _trace_of(current_traceparent()) == "ab" * 16
        assert str(current_traceparent()).endswith("-01")


@pytest.mark.parametrize("nonsense", ["", "x", "00-0-0-00", f"00-{'0' * 32}-{'cd' * 8}-01", "ff" + PARENT[2:]])
def test_nonsense_from_outside_begins_a_new_trace(nonsense: str) -> None:
    """Nobody outside can break our traces."""
    with span("x", traceparent=nonsense):
        assert _trace_of(current_traceparent()) not in {"ab" * 16, "0" * 32}


async def test_tasks_inherit_the_span() -> None:
    """Nobody hands it around."""

    async def inner() -> str | None:
        return current_traceparent()

    with span("outer"):
        assert await asyncio.create_task(inner()) == current_traceparent()


async def test_a_request_is_a_span_in_the_callers_trace(service: Service) -> None:
    """In over HTTP."""

    @service.app.get("/trace")
    async def trace() -> str | None:
        return current_traceparent()

    async with running(service.app) as client:
        carried = (await client.get("/trace", headers={"traceparent": PARENT})).json()
        assert _trace_of(carried) == "ab" * 16
        assert carried != PARENT
        assert _trace_of((await client.get("/trace")).json()) != "ab" * 16


def test_without_a_collector_nothing_heavy_is_made() -> None:
    """No provider, no threads."""
    assert Tracing("builder", None)._provider is None


def test_a_collector_without_the_exporter_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not traces that silently go nowhere."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Misconfigured, match=r"KNARR_OTLP_ENDPOINT.*knarr\[otlp\]"):
        Tracing("builder", "http://localhost:4318/v1/traces")


async def test_with_a_collector_spans_are_recorded() -> None:
    """With parent, name and fault."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing("builder", None, provider=provider)

    async def work() -> None:
        tracing.bind()
        with span("outer", traceparent=PARENT), pytest.raises(ZeroDivisionError), span("inner"):
            raise ZeroDivisionError

    await asyncio.create_task(work())
    inner, outer = exporter.get_finished_spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert outer.context.trace_id == int("ab" * 16, 16)
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert not inner.status.is_ok
    await tracing.close()
