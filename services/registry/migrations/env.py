"""Alembic's entry for the migrations of `registry`."""

from seedwork.chassis.migrate import run_env
from services.registry.models import metadata

run_env(metadata)
