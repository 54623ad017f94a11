"""`python -m services.<name>`: one service in one process.

if __name__ == "__main__":
    serve(create_app, "builder")
"""

import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from seedwork.chassis.logging import configure_logging
from seedwork.chassis.settings import ServiceSettings, misconfigured
from seedwork.errors import KnarrError


def serve(create_app: Callable[[], FastAPI], name: str) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way and stop. Leaves with 1 when it cannot start."""
    try:
        settings = ServiceSettings()
        configure_logging(settings)
        app = create_app()
    except ValidationError as error:
        sys.exit(f"{name}: {misconfigured(error).message}")
    except KnarrError as error:
        sys.exit(f"{name}: {error.message}")
    server = make_server(app, settings, name)
    server.run()
    if not server.started:
        sys.exit(1)


def make_server(app: FastAPI, settings: ServiceSettings, name: str) -> uvicorn.Server:
    """The server of one service at its own port; logs go through ours."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port(name),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(settings.stop_grace_s),
    )
    return uvicorn.Server(config)
