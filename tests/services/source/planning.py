"""Plans of apps that are written down as a few files."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from services.source.contract import AppDescription, BuildSettings
from services.source.errors import AppInvalid
from services.source.plan import Capabilities, Tree, plan

Files = Mapping[str, bytes | str | dict[str, Any]]


def tree(files: Files, links: Mapping[str, str] | None = None) -> Tree:
    """The files as an app has them; an object is written as JSON."""
    return Tree.of({name: _bytes(content) for name, content in files.items()}, links=links)


def planned(
    files: Files,
    *,
    builder: Any = "layers",
    links: Mapping[str, str] | None = None,
    settings: BuildSettings | None = None,
) -> AppDescription:
    """The description of an app."""
    return plan(tree(files, links), settings=settings or BuildSettings(), capabilities=Capabilities(builder))


def refused(files: Files, *, builder: Any = "layers", links: Mapping[str, str] | None = None) -> str:
    """Why the app cannot be deployed."""
    with pytest.raises(AppInvalid) as caught:
        planned(files, builder=builder, links=links)
    return caught.value.message


def web(found: AppDescription) -> str:
    """The command line of `web`."""
    command = found.processes["web"]
    return command[2] if command[:2] == ("/bin/sh", "-c") else " ".join(command)


def said(found: AppDescription) -> str:
    """Everything that is said of the app."""
    return "\n".join((*found.detected, *found.notes))


def _bytes(content: bytes | str | dict[str, Any]) -> bytes:
    if isinstance(content, dict):
        return json.dumps(content).encode()
    return content.encode() if isinstance(content, str) else content
