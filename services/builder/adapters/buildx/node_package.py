"""What a package.json says to the Dockerfile of a Node app. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services.builder.errors import CannotBuild
from services.builder.install.node import ReadFile

_LOCKS = ("npm-shrinkwrap.json", "package-lock.json")
_INSTALL_SCRIPTS = frozenset(
    {"preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What the app's package.json and its neighbours say."""

    manifest: Mapping[str, Any]
    lock: str | None
    """Its file name."""
    lock_text: str
    npmrc: str

    @property
    def has_dependencies(self) -> bool:
        """Whether npm has anything to install."""
        return any(self.manifest.get(name) for name in ("dependencies", "devDependencies", "optionalDependencies"))

    @property
    def scripts(self) -> Mapping[str, Any]:
        """By name."""
        found = self.manifest.get("scripts")
        return found if isinstance(found, dict) else {}

    @property
    def needs_source(self) -> bool:
        """Whether installing looks at more than these files."""
        local = any(
            str(version).startswith(("file:", "link:", ".", "/", "~/"))
            for name in ("dependencies", "devDependencies", "optionalDependencies")
            for version in (self.manifest.get(name) or {}).values()
        )
        return local or bool(_INSTALL_SCRIPTS & self.scripts.keys()) or bool(self.manifest.get("workspaces"))


def read_package(read: ReadFile) -> Package:
    """Read package.json, the lock file and .npmrc.

    Raises:
        CannotBuild: package.json is missing or no JSON object.
    """
    content = read("package.json")
    if content is None:
        raise CannotBuild("There is no package.json", todo="Commit one, or choose another runtime in .cupaas.yml.")
    try:
        manifest = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise CannotBuild("package.json cannot be read", why=str(error), todo="Correct it and push again.") from error
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name) or {}, dict)
        for name in ("dependencies", "devDependencies", "optionalDependencies")
    ):
        raise CannotBuild("package.json is not what npm expects", why="it and its dependencies are JSON objects")
    locks = {name: text for name in _LOCKS if (text := read(name)) is not None}
    lock = next(iter(locks), None)
    return Package(
        manifest=manifest,
        lock=lock,
        lock_text=locks[lock].decode(errors="replace") if lock else "",
        npmrc=(read(".npmrc") or b"").decode(errors="replace"),
    )
