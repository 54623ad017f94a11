"""The names under which a service answers: a page in a browser must not reach it by a name of its own (DNS rebinding).

Addresses and names without a dot are always right, since no public name server can give those to somebody else.
"""

import ipaddress
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from seedwork.chassis import problems


class HostCheck:
    """ASGI middleware: refuse requests for other names with 421.

    Args:
        app: What it surrounds.
        names: Names with dots that are right; `*.example.com` stands for all below it.
        open_paths: Paths that answer under every name; shared with the service, which adds to it.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at `Host`."""
        if scope["type"] == "http" and scope["path"] not in self._open_paths and not self._is_right(scope):
            answer = problems.problem(
                421,
                "wrong_host",
                "Wrong host name",
                "No service answers under that name here. Use its address, or add the name to KNARR_ALLOWED_HOSTS.",
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_right(self, scope: Scope) -> bool:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        name = name_of(host)
        if "." not in name or name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return any(f"*.{name.split('.', count)[-1]}" in self._names for count in range(1, name.count(".") + 1))
        return True


def name_of(host: str) -> str:
    """Return the name or address in a `Host` field, in lower case, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def names_of(urls: Iterable[str]) -> list[str]:
    """Return the host names of URLs."""
    return [name for url in urls if (name := urlsplit(url).hostname)]
