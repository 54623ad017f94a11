"""`python -m services.deployer`: the service in a process of its own."""

from seedwork.chassis.run import serve
from services.deployer.app import create_app

if __name__ == "__main__":
    serve(create_app, "deployer")
