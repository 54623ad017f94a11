"""Alembic's entry: the service's tables, on the connection that the chassis brings."""

from seedwork.chassis.migrate import run_env
from services.saga_coordinator.models import metadata

run_env(metadata)
