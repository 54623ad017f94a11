"""`package.json` as detection reads it: scripts, dependencies, engines, and the package manager that it names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.source.errors import AppInvalid
from services.source.manifests import JsonObject
from services.source.plan.formats import json_of, text, texts
from services.source.plan.tree import Tree

PACKAGE_JSON = "package.json"
INSTALL_SCRIPTS = frozenset(
    {"preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare"}
)
"""Scripts of the app that run when its packages are installed."""
_LOCAL = ("file:", "link:", "portal:", "workspace:", ".", "/", "~/")
_MANAGER = re.compile(r"(npm|pnpm|yarn|bun)(?:@([0-9A-Za-z.^~<>=* |-]{1,60}?))?(\+[0-9A-Za-z.]{1,200})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PackageJson:
    """The parts that decide."""

    name: str = ""
    scripts: Mapping[str, str] = field(default_factory=dict)
    dependencies: Mapping[str, str] = field(default_factory=dict)
    """Of the running app, optional ones included."""
    dev_dependencies: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    dev_node: str | None = None
    """`devEngines.runtime`, where it names Node."""
    volta: str | None = None
    main: str | None = None
    manager: str | None = None
    """Name of the package manager that the file names."""
    manager_version: str | None = None
    manager_key: str = "packageManager"
    workspaces: tuple[str, ...] = ()
    has_patches: bool = False

    def has(self, name: str) -> bool:
        """Whether that package is a dependency of either kind."""
        return name in self.dependencies or name in self.dev_dependencies

    def version(self, name: str) -> str:
        """The range in which a package is asked for, or empty."""
        return self.dependencies.get(name) or self.dev_dependencies.get(name) or ""

    @property
    def protocols(self) -> frozenset[str]:
        """Protocols of the dependencies, such as `workspace`, `catalog` and `file`."""
        values = (*self.dependencies.values(), *self.dev_dependencies.values())
        return frozenset(value.partition(":")[0] for value in values if re.match(r"[a-z]{2,12}:", value))

    @property
    def needs_source(self) -> bool:
        """Whether the installation reads more than the manifests."""
        values = (*self.dependencies.values(), *self.dev_dependencies.values())
        return (
            any(value.startswith(_LOCAL) for value in values)
            or bool(INSTALL_SCRIPTS & self.scripts.keys())
            or bool(self.workspaces)
            or self.has_patches
        )


def read_package_json(tree: Tree, name: str = PACKAGE_JSON) -> PackageJson:
    """Read the file.

    Raises:
        AppInvalid: It is no such file, or a part of it has the wrong kind.
    """
    content = json_of(tree, name)
    manager, version, key = _manager(content)
    dev_engines = content.get("devEngines")
    runtime = dev_engines.get("runtime") if isinstance(dev_engines, dict) else None
    volta = content.get("volta")
    pnpm = content.get("pnpm")
    return PackageJson(
        name=text(content.get("name")) or "",
        scripts=_strings(content, "scripts"),
        dependencies={**_strings(content, "dependencies"), **_strings(content, "optionalDependencies")},
        dev_dependencies=_strings(content, "devDependencies"),
        engines=_engines(content),
        dev_node=_dev_engine(runtime, "node"),
        volta=text(volta.get("node")) if isinstance(volta, dict) else None,
        main=text(content.get("main")) or text(content.get("module")),
        manager=manager,
        manager_version=version,
        manager_key=key,
        workspaces=_workspaces(content.get("workspaces")),
        has_patches=isinstance(pnpm, dict) and bool(pnpm.get("patchedDependencies")),
    )


def _strings(content: JsonObject, key: str) -> Mapping[str, str]:
    """Items whose value is a text; an object of another kind is an error."""
    for name, value in content.object(key).items():
        if not isinstance(value, str):
            raise AppInvalid(
                f"{content.place(key)}: {name[:80]!r} is no text"
                if key != "scripts"
                else f"{content.place(f'scripts.{name[:80]}')} is no command",
                todo='For example `"start": "node server.js"`.'
                if key == "scripts"
                else 'For example `"ms": "^2.0.0"`.',
            )
    return {name: value.strip() for name, value in content.object(key).items()}


def _engines(content: JsonObject) -> Mapping[str, str]:
    engines = content.get("engines")
    if engines is None or isinstance(engines, list):  # npm took lists before 2012
        return {}
    found = content.object("engines")
    for name, value in found.items():
        if name in {"node", "npm", "pnpm", "yarn", "bun"} and not isinstance(value, str):
            raise AppInvalid(f"{content.place(f'engines.{name}')} is no text", todo='For example `"20"` or `"20.x"`.')
    return {name: value.strip() for name, value in found.items() if isinstance(value, str)}


def _manager(content: JsonObject) -> tuple[str | None, str | None, str]:
    """Name, version and key of the package manager that the file names."""
    named = content.get("packageManager")
    if named is not None:
        match = _MANAGER.fullmatch(named.strip()) if isinstance(named, str) else None
        if match is None:
            raise AppInvalid(
                f"{content.place('packageManager')} is {str(named)[:80]!r}",
                todo="Known are npm, pnpm, yarn and bun with a version, for example `pnpm@9.1.0`.",
            )
        return match[1], f"{match[2]}{match[3] or ''}" if match[2] else None, "packageManager"
    dev_engines = content.get("devEngines")
    entry = dev_engines.get("packageManager") if isinstance(dev_engines, dict) else None
    for each in entry if isinstance(entry, list) else [entry]:
        if isinstance(each, dict) and each.get("name") in {"npm", "pnpm", "yarn", "bun"}:
            return each["name"], text(each.get("version")), "devEngines.packageManager"
    return None, None, "packageManager"


def _dev_engine(entry: Any, wanted: str) -> str | None:
    for each in entry if isinstance(entry, list) else [entry]:
        if isinstance(each, dict) and each.get("name") == wanted:
            return text(each.get("version"))
    return None


def _workspaces(value: Any) -> tuple[str, ...]:
    return texts(value.get("packages")) if isinstance(value, dict) else texts(value)
