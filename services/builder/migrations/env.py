"""Alembic's entry: run by `seedwork.chassis.migrate`."""

from seedwork.chassis.migrate import run_env
from services.builder.models import metadata

run_env(metadata)
