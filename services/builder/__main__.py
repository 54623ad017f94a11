"""`python -m services.builder`: this service in a process of its own."""

from seedwork.chassis.run import serve
from services.builder.app import create_app

if __name__ == "__main__":
    serve(create_app, "builder")
