"""The whole environment of a service's migrations."""

from sqlalchemy import MetaData

from seedwork.chassis.migrate import run_env

run_env(MetaData())
