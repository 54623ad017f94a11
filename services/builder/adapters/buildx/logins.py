"""Which registries a build may log in to: the docker configuration of one build.

An app's own Dockerfile decides what the engine pulls (`FROM`, `COPY --from`). With the platform's logins it would get
the images of every other app and every private image of the platform's user. It gets the logins that a setting names.
"""

import base64
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

_HUB = "docker.io"
_HUB_KEYS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELD = ("auths", "credHelpers", "credsStore")


def docker_config(
    platform: Path,
    *,
    registry: str,
    user: str | None,
    password: SecretStr | None,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return a docker configuration with the logins of the platform's user, and knarr's own for its registry.

    Args:
        platform: Docker's configuration folder of the platform's user. Plugins are found there.
        registry: `host[:port][/prefix]` of the image store.
        user: Of the image store; None: no login.
        password: Of the image store.
        only: Hosts whose logins it holds; None: all of them.
    """
    theirs = _read(platform / "config.json")
    held = {name: theirs[name] for name in _HELD if name in theirs}
    if user is not None and password is not None:
        host = registry.partition("/")[0]
        login = base64.b64encode(f"{user}:{password.get_secret_value()}".encode()).decode()
        held["auths"] = {**held.get("auths", {}), host: {"auth": login}}
        held["credHelpers"] = {name: each for name, each in held.get("credHelpers", {}).items() if name != host}
    if only is not None:
        held = _narrowed(held, {_host(each) for each in only})
    plugins = [str(platform / "cli-plugins"), *(theirs.get("cliPluginsExtraDirs") or ())]
    return {**held, "cliPluginsExtraDirs": plugins}


def _narrowed(held: Mapping[str, Any], hosts: Collection[str]) -> dict[str, Any]:
    """The logins of these hosts. A store for all of them becomes a helper for each of these."""
    helpers = {name: each for name, each in held.get("credHelpers", {}).items() if _host(name) in hosts}
    if store := held.get("credsStore"):
        keys = {"https://index.docker.io/v1/" if host == _HUB else host for host in hosts}
        helpers = {**dict.fromkeys(keys, store), **helpers}
    auths = {name: each for name, each in held.get("auths", {}).items() if _host(name) in hosts}
    return {"auths": auths, "credHelpers": helpers}


def _host(name: str) -> str:
    """The host of a key such as `https://index.docker.io/v1/`, `ghcr.io` or `localhost:5000/apps`."""
    host = name.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()
    return _HUB if host in _HUB_KEYS else host


def _read(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, PermissionError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
