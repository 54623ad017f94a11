"""The stable port of each app: HTTP/1.1 requests in, each one to whatever serves the app at that moment.

`listening` has the ports, `routes` who serves each, `connection` one client's requests, `peer` both sides of it,
`forwarding` the header fields, `pages` the answers of the router itself.
"""

from services.deployer.adapters.router.listening import Router
from services.deployer.adapters.router.routes import Backend, Route
from services.deployer.settings import DeployerSettings

__all__ = ["Backend", "Route", "Router", "make_router"]


def make_router(settings: DeployerSettings) -> Router:
    """Return the router that the settings describe; it has no port yet."""
    return Router(
        host=settings.app_host,
        port_base=settings.app_port_base,
        idle_s=settings.request_idle_s,
        limits=settings,
        app_max_connections=settings.app_max_connections,
        max_connections=settings.apps_max_connections,
    )
