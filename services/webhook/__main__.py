"""`python -m services.webhook`: the intake in a process of its own."""

from seedwork.chassis.run import serve
from services.webhook.app import create_app

if __name__ == "__main__":
    serve(create_app, "webhook")
