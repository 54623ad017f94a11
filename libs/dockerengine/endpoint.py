"""Find the Docker engine of this user, in the order of the `docker` command line.

`KNARR_DOCKER_HOST`, then `DOCKER_HOST`, then the context (`DOCKER_CONTEXT`, or that of `docker context use`), then the
usual sockets, that of a rootless engine included. Nothing is connected here.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seedwork.errors import Misconfigured

_USUAL = (Path("/var/run/docker.sock"),)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The address of an engine."""

    url: str
    """`unix:///path`, `tcp://host:port` or `ssh://user@host`."""
    source: str
    """What named it: `DOCKER_HOST`, `the Docker context colima`, `the socket /var/run/docker.sock`."""

    @property
    def socket(self) -> str | None:
        """The path of the Unix socket; None: it is reached over the network."""
        parts = urlsplit(self.url)
        return parts.path if parts.scheme == "unix" else None

    @property
    def is_local(self) -> bool:
        """Whether the engine's ports on 127.0.0.1 are those of this machine."""
        return self.socket is not None or urlsplit(self.url).hostname in _LOOPBACK


def find_endpoint(environ: Mapping[str, str] | None = None) -> Endpoint | None:
    """Return the engine's address, or None where nothing names one.

    Args:
        environ: The environment; None: that of this process.

    Raises:
        Misconfigured: The chosen context does not exist or cannot be read.
    """
    environ = os.environ if environ is None else environ
    for name in ("KNARR_DOCKER_HOST", "DOCKER_HOST"):
        if url := environ.get(name):
            return Endpoint(url=url, source=name)
    if found := _of_context(environ):
        return found
    return next(
        (Endpoint(url=f"unix://{path}", source=f"the socket {path}") for path in _sockets(environ) if path.is_socket()),
        None,
    )


def _sockets(environ: Mapping[str, str]) -> Iterator[Path]:
    yield from _USUAL
    home = Path(environ.get("HOME", "/"))
    yield home / ".docker" / "run" / "docker.sock"
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "docker.sock"
    yield Path(f"/run/user/{os.getuid()}/docker.sock")


def _of_context(environ: Mapping[str, str]) -> Endpoint | None:
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/")) / ".docker")
    name = environ.get("DOCKER_CONTEXT") or str(_read(folder / "config.json").get("currentContext") or "default")
    if name == "default":
        return None
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    url = ((_read(meta).get("Endpoints") or {}).get("docker") or {}).get("Host")
    if not url:
        raise Misconfigured(
            f"The Docker context {name!r} names no engine",
            why=f"{meta} is missing or has no endpoint",
            todo="Run `docker context ls`, then `docker context use NAME`.",
        )
    return Endpoint(url=str(url), source=f"the Docker context {name}")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
