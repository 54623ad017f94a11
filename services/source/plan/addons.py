"""Add-ons by the names that `.cupaas.yml` and `app.json` use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from services.source.contract import AddOn
from services.source.errors import AppInvalid
from services.source.plan.findings import listed

AddOnKind = Literal["mongodb", "postgres", "mysql", "redis"]
KINDS: tuple[str, ...] = get_args(AddOnKind)
VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}", re.ASCII)
_NAMES: Mapping[str, str] = {
    **{kind: kind for kind in KINDS},
    "mongo": "mongodb",
    "mongolab": "mongodb",
    "postgresql": "postgres",
    "heroku-postgresql": "postgres",
    "heroku-redis": "redis",
    "heroku-data-for-redis": "redis",
    "rediscloud": "redis",
    "redistogo": "redis",
    "jawsdb": "mysql",
    "cleardb": "mysql",
    "dokku-postgres": "postgres",
    "dokku-redis": "redis",
    "dokku-mysql": "mysql",
    "dokku-mongo": "mongodb",
}
"""Names that are understood, with those of other platforms."""


@dataclass(frozen=True, slots=True)
class Provided:
    """What the runtime of the platform provides."""

    runtime: str
    """`process`, `docker`, `kubernetes`."""
    addons: frozenset[str]
    """Kinds of add-ons."""


def addon_of(where: str, name: str, version: str) -> AddOn | None:
    """Return the add-on of that name, or None where knarr does not know it.

    Raises:
        AppInvalid: The version is none.
    """
    kind = _NAMES.get(name)
    if kind is None:
        return None
    if version and not VERSION.fullmatch(version):
        raise AppInvalid(
            f"{where} asks for {name} in version {version[:80]!r}",
            todo="A version is digits and dots (`6.0.2`); leave it out for the platform's own.",
        )
    return AddOn(kind=cast("AddOnKind", kind), version=version or None)


def add(found: dict[str, AddOn], addon: AddOn, file: str) -> None:
    """Keep the add-on by its kind.

    Raises:
        AppInvalid: There is one of this kind.
    """
    if addon.kind in found:
        raise AppInvalid(f"{file} asks for {addon.kind} twice", todo="An app has at most one add-on of a kind.")
    found[addon.kind] = addon


def refuse_missing(wanted: Sequence[AddOn], provided: Provided) -> None:
    """Refuse an app whose add-ons the platform does not provide, before anything is built.

    Raises:
        AppInvalid: One of them is not provided; the text names all of those.
    """
    lacking: list[str] = sorted({each.kind for each in wanted} - provided.addons)
    if lacking:
        raise AppInvalid(
            f"The app asks for {listed(lacking)}, which the runtime `{provided.runtime}` does not provide",
            why="this machine has no server program for it" if provided.runtime == "process" else "",
            todo="Install the server program and restart knarr, or run apps with Docker: `knarr up --runtime docker`."
            " Or take the service out of `.cupaas.yml` or app.json, and give the address of one that you run yourself"
            " as a config var.",
        )
