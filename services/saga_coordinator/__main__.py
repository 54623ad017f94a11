"""`python -m services.saga_coordinator`: the coordinator in a process of its own."""

from seedwork.chassis.run import serve
from services.saga_coordinator.app import create_app

if __name__ == "__main__":
    serve(create_app, "saga_coordinator")
