"""Figures of one service for Prometheus, at `GET /metrics`.

Each service has a registry of its own, never the global one: six services may live in one process. What a request costs
is counted as it happens; what stands in the database (messages to publish, open jobs) is read when somebody asks.
"""

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seedwork.tables import KernelTables
from seedwork.unit_of_work import Database

OPEN_STATES = ("queued", "running")
"""States of jobs that still cost something; those that are done are history."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From a webhook (10 ms allowed) to a slow query."""


class Metrics:
    """The registry of one service and what the chassis counts in it; a service may add its own to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "knarr_http_requests", "Answered HTTP requests.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "knarr_http_request_seconds",
            "Seconds until an answer was complete.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._crashes = Counter(
            "knarr_background_crashes",
            "Background tasks that ended by an exception.",
            ("task",),
            registry=self.registry,
        )
        self._outbox = Gauge("knarr_outbox_messages", "Messages not yet published.", registry=self.registry)
        self._jobs = Gauge("knarr_jobs", "Open jobs.", ("work", "state"), registry=self.registry)

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def crashed(self, task: str) -> None:
        """Count the crash of a background task."""
        self._crashes.labels(task).inc()

    async def read_database(self, db: Database, tables: KernelTables) -> None:
        """Bring the figures that stand in the database up to date."""

        async def count(conn: AsyncConnection) -> None:
            outbox = await conn.execute(select(func.count()).select_from(tables.outbox))
            self._outbox.set(outbox.scalar_one())
            jobs = tables.jobs.c
            forward = jobs.state.in_(OPEN_STATES) & jobs.tombstone_ms.is_(None)  # what an undo has stopped is not open
            for work, column, is_open in (
                ("forward", jobs.state, forward),
                ("undo", jobs.undo_state, jobs.undo_state.in_(OPEN_STATES)),
            ):
                counted = await conn.execute(select(column, func.count()).where(is_open).group_by(column))
                found = {str(state): number for state, number in counted}
                for state in OPEN_STATES:
                    self._jobs.labels(work, state).set(found.get(state, 0))

        await db.read(count)


def router(metrics: Metrics, db: Database, tables: KernelTables) -> APIRouter:
    """`GET /metrics`."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/metrics", response_class=Response, summary="Figures for Prometheus")
    async def show() -> Response:
        await metrics.read_database(db, tables)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
