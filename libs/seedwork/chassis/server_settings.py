"""Limits of HTTP servers, those of the services and the one before the apps.

What strangers can use up, how long they may take, and whose word about clients is believed.
"""

from ipaddress import ip_network
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A setting with several values: `a,b` in the environment, a list in `knarr.yaml`."""


def _as_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(ip_network(value)) for value in values)


Networks = Annotated[CommaSeparated, AfterValidator(_as_networks)]
"""IP networks in CIDR form, such as `10.0.0.0/8,fd00::/8`; an address alone is a network of one."""


class ServerSettings(BaseSettings):
    """Limits that every HTTP server of this installation keeps."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="KNARR_", extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    trusted_proxies: Networks = ()
    """Addresses or networks of the proxies whose `X-Forwarded-*`, `X-Real-IP` and `Forwarded` are believed.

    None by default: these fields are removed from all other requests, since every client can send them. A proxy on the
    same machine is `127.0.0.1,::1`. Behind a port that Docker publishes the proxy has the address of the bridge.
    """

    allowed_hosts: CommaSeparated = ()
    """Host names under which a service answers, besides addresses, names without a dot and those of other services.

    Checked on loopback, or where it is set: a page in a browser must not reach a service by a name of its own (DNS
    rebinding). `*.example.com` stands for all names below it. `/github-webhook` answers under every name.
    """

    open_files: int = Field(default=65_536, ge=256)
    """Open files and connections of one process: the soft limit is raised to this at start, at most to the hard limit.

    A connection of an app takes two. Not more by default, since some programs close every possible file at start.
    """

    max_connections: int = Field(default=500, ge=1)
    """Connections of one service at the same time; never more than a 32nd of the open files.

    Over it the connection that has waited longest for a request is closed; if all are busy, the new one gets 503.
    """

    client_max_connections: int = Field(default=250, ge=1)
    """Connections of one client address to one service, or to all apps; trusted proxies have no such limit.

    A browser opens 6 a site, so that 40 people can share one address.
    """

    http_head_max_bytes: int = Field(default=64 * 1024, ge=1024)
    """Bytes of a request line and its header fields; more is answered 414 or 431. Cookies of 50 kB have been seen."""

    http_headers_max: int = Field(default=100, ge=10)
    """Header fields of one request; more is answered 431. Browsers send some 20, chains of proxies 40."""

    http_head_s: float = Field(default=15.0, gt=0)
    """Seconds from the first byte of a request to the end of its header fields; also until a new connection's first."""

    http_idle_s: float = Field(default=75.0, gt=0)
    """Seconds that a connection is kept between two requests, or while its client takes nothing of an answer.

    Browsers and pools of clients keep theirs for 60 or less, so that they close first.
    """

    http_body_stall_s: float = Field(default=30.0, gt=0)
    """Seconds that a request body may be behind `http_body_min_bytes_s` before it is answered 408."""

    http_body_min_bytes_s: int = Field(default=500, ge=0)
    """Bytes a second that a request body must have, as with Apache: a modem has ten times that. 0: any rate will do."""

    http_linger_bytes: int = Field(default=64 * MIB, ge=0)
    """Bytes of a refused body that are read and forgotten, so that its client can read the answer before a reset.

    The largest webhook of GitHub has 25 MB.
    """

    http_linger_s: float = Field(default=10.0, gt=0)
    """Seconds for which a refused body is read and forgotten."""
