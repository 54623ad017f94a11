"""Who may have a connection: in all and for each client address, so that some cannot keep out all others.

A connection that waits for a request, or for the end of its header fields, may be closed for a new one: whoever sends
slowly loses it, and an honest client, which sends at once, hardly ever. One that has a request under way never is.
"""

import resource
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

_MINUTE_S = 60.0


class Connection(Protocol):
    """Something that can be closed to make room."""

    def evict(self) -> None:
        """Close it at once."""


class Proxies:
    """The proxies whose word about clients is believed.

    Args:
        networks: Their addresses; none: no word is believed.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ip_network(each) for each in networks)
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Return whether this is the address of a trusted proxy."""
        if not self._networks:
            return False
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= 4096:
                self._known.clear()
            known = self._known[address] = self._among(address)
        return known

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """Return the address of the client: the last one in the chain that is no trusted proxy.

        Args:
            peer: The address of the connection.
            forwarded: The members of `X-Forwarded-For`, in their order.
        """
        address = peer
        for each in reversed(list(forwarded)):
            if not self.trusts(address):
                break
            bare = bare_address(each)
            if bare is None:
                break
            address = bare
        return address

    def _among(self, address: str) -> bool:
        bare = bare_address(address)
        if bare is None:
            return False
        parsed = ip_address(bare)
        return any(parsed in network for network in self._networks)


def bare_address(text: str) -> str | None:
    """Return the IP address in `1.2.3.4`, `1.2.3.4:80`, `[::1]:80` or `::ffff:1.2.3.4`; None: there is none."""
    text = text.strip()[:64]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


class Connections:
    """The connections of one server.

    Args:
        of: The server, for the log.
        most: Connections in all.
        most_of_client: Connections of one client address.
        proxies: They have no limit of their own.
        settings: The names of the settings, for the log.
    """

    def __init__(
        self, of: str, *, most: int, most_of_client: int, proxies: Proxies | None = None, settings: str = ""
    ) -> None:
        self._most = most
        self._most_of_client = most_of_client
        self._proxies = proxies or Proxies()
        self._clients: dict[str, int] = {}
        self._all: dict[Connection, str] = {}
        self._waiting: dict[Connection, None] = {}
        self._full = Minutely("http.connections_refused", server=of, settings=settings)

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: Connection, client: str) -> bool:
        """Return whether it may stay; one that waits is closed for it where there are too many."""
        exempt = self._proxies.trusts(client)
        if not exempt and self._clients.get(client, 0) >= self._most_of_client:
            if not self._evict_one(client):
                self._full.warning(limit=self._most_of_client, client=client)
                return False
        elif len(self._all) >= self._most and not self._evict_one(None):
            self._full.warning(limit=self._most, client=client)
            return False
        self._all[connection] = client
        self._clients[client] = self._clients.get(client, 0) + 1
        self._waiting[connection] = None
        return True

    def waits(self, connection: Connection) -> None:
        """It has no request under way: it may be closed for another one."""
        if connection in self._all:
            self._waiting[connection] = None

    def works(self, connection: Connection) -> None:
        """It has a request under way."""
        self._waiting.pop(connection, None)

    def left(self, connection: Connection) -> None:
        """It was closed."""
        self._waiting.pop(connection, None)
        client = self._all.pop(connection, None)
        if client is None:
            return
        if self._clients[client] == 1:
            del self._clients[client]
        else:
            self._clients[client] -= 1

    def _evict_one(self, client: str | None) -> bool:
        for connection in self._waiting:
            if client is None or self._all[connection] == client:
                self.left(connection)
                connection.evict()
                return True
        return False


class Minutely:
    """A log line that many events share: the first one is written, then one a minute with how many there were.

    Args:
        event: The line's name.
        now_s: A clock in seconds.
        fields: Of every line.
    """

    def __init__(self, event: str, *, now_s: Callable[[], float] = time.monotonic, **fields: Any) -> None:
        self._event = event
        self._now_s = now_s
        self._fields = fields
        self._next_s = float("-inf")
        self._count = 0

    def warning(self, **fields: Any) -> None:
        """Count one; write the line if its minute has come."""
        self._count += 1
        now_s = self._now_s()
        if now_s < self._next_s:
            return
        log.warning(self._event, **self._fields, **fields, times=self._count)
        self._count = 0
        self._next_s = now_s + _MINUTE_S


def raise_open_files(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted`, at most to the hard limit; return what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        return target
    return target if soft == resource.RLIM_INFINITY else soft


def share_of_files(most: int, part: int) -> int:
    """Return how many of something one server may hold: `most`, and at most one `part`th of this process's files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(8, min(most, soft // part))
