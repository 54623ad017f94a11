"""The whole environment of a service's migrations."""

from seedwork.chassis.migrate import run_env
from tests.seedwork.chassis.dummy.models import metadata

run_env(metadata)
