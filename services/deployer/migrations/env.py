"""Alembic's entry: the chassis brings the connection."""

from seedwork.chassis.migrate import run_env
from services.deployer.models import metadata

run_env(metadata)
