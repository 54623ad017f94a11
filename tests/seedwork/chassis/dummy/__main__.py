"""The dummy service in a process of its own."""

from pathlib import Path

from fastapi import FastAPI

from seedwork.chassis.run import serve
from seedwork.chassis.service import Service
from seedwork.chassis.settings import ServiceSettings
from tests.seedwork.chassis.dummy import models


def create_app() -> FastAPI:
    """Nothing but the chassis."""
    service = Service(
        "builder", ServiceSettings(), metadata=models.metadata, migrations=Path(__file__).parent / "migrations"
    )
    return service.app


if __name__ == "__main__":
    serve(create_app, "builder")
