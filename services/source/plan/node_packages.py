"""What a Node app installs: the package manager, its version, the lock file, and the version of Node.

The lock file says which package manager it is; `packageManager` decides between two of them. Lock files of two
managers without it are an error that names both.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from services.source.contract import Packages
from services.source.plan.findings import Findings, listed
from services.source.plan.node_locked import locked_node
from services.source.plan.package_json import PACKAGE_JSON, PackageJson, read_package_json
from services.source.plan.ranges import release, satisfies_npm
from services.source.plan.tree import Tree
from services.source.plan.versions import Asked, node_range, node_version_files

NodeTool = Literal["npm", "pnpm", "yarn", "bun"]
LOCKS: Mapping[str, str] = {
    "npm-shrinkwrap.json": "npm",
    "package-lock.json": "npm",
    "pnpm-lock.yaml": "pnpm",
    "yarn.lock": "yarn",
    "bun.lock": "bun",
    "bun.lockb": "bun",
}
"""Lock files of Node, with the package manager of each; of two of one manager the first counts."""
_CONFIGS: Mapping[str, tuple[str, ...]] = {
    "npm": (".npmrc",),
    "pnpm": (".npmrc", "pnpm-workspace.yaml", ".pnpmfile.cjs", "pnpmfile.cjs"),
    "yarn": (".npmrc", ".yarnrc", ".yarnrc.yml"),
    "bun": (".npmrc", "bunfig.toml"),
}
_MAKE_LOCK = {
    "npm": "npm install --package-lock-only",
    "pnpm": "pnpm install --lockfile-only",
    "yarn": "yarn install",
    "bun": "bun install --lockfile-only",
}
_HEAD_BYTES = 4096
_MAX_JSON_BYTES = 3 * 1024 * 1024
"""Of a lock file that is parsed: a hostile one takes twenty times as much memory."""
_MAX_WORKSPACES = 500


@dataclass(frozen=True, slots=True)
class NodeApp:
    """The Node side of an app."""

    packages: Packages
    package: PackageJson


def read_node(tree: Tree, findings: Findings, version: str | None = None) -> NodeApp | None:
    """Return what the app installs; refusals and notes are collected. None: `package.json` cannot be read.

    Args:
        tree: The app; one without `package.json` has no packages.
        findings: Where lines and refusals go.
        version: The version that `.cupaas.yml` asks for, or None.
    """
    package = PackageJson()
    if tree.has(PACKAGE_JSON):
        with findings.collecting():
            package = read_package_json(tree)
        if findings.refusals and package == PackageJson():
            return None
    asked = Asked(version, ".cupaas.yml", "`runtime` of .cupaas.yml") if version else None
    asked = asked or _node_version(tree, package, findings)
    tool, lock = _tool(tree, package, findings)
    asked = asked or locked_node(tree, package, lock)
    _check_protocols(tree, package, tool, findings)
    if lock is not None:
        _check_npm_lock(tree, package, lock, findings)
    elif package.dependencies or package.dev_dependencies:
        findings.note(
            f"no lock file: {tool} chooses the versions of {PACKAGE_JSON} at each build. Commit one: {_MAKE_LOCK[tool]}"
        )
    packages = Packages(
        language="node",
        version=asked.version if asked else None,
        version_file=asked.file if asked else None,
        tool=tool,
        tool_version=_tool_version(package, tool),
        lock=lock,
        manifests=_manifests(tree, package, tool, lock),
        needs_source=package.needs_source or tree.has("pnpm-workspace.yaml") or _has_sources(tree, package),
    )
    said = "Node" + (f" {asked.version} ({asked.where})" if asked else "")
    findings.found(f"{said}: {_how(packages, package)}")
    return NodeApp(packages, package)


def _node_version(tree: Tree, package: PackageJson, findings: Findings) -> Asked | None:
    """The engines are a range that a version file narrows; where the two contradict each other, it is an error."""
    declared = [
        (f"`engines.node` of {PACKAGE_JSON}", package.engines.get("node")),
        (f"`devEngines.runtime` of {PACKAGE_JSON}", package.dev_node),
    ]
    ranges = [Asked(found, PACKAGE_JSON, where) for where, value in declared if value and (found := node_range(value))]
    files = node_version_files(tree, findings)
    if package.volta and (found := node_range(package.volta)):
        files.append(Asked(found, PACKAGE_JSON, f"`volta.node` of {PACKAGE_JSON}"))
    if not files or not ranges:
        return next(iter((*files, *ranges)), None)
    wanted, exact = ranges[0], files[0]
    probes = {1: [f"{exact.version}.{minor}.{patch}" for minor in (0, 9, 99) for patch in (0, 99)]}
    probes[2] = [f"{exact.version}.{patch}" for patch in (0, 9, 99)]
    tried = probes.get(exact.version.count(".") + 1, [exact.version])
    answers = [satisfies_npm(each, wanted.version) for each in tried]
    if all(answer is False for answer in answers):
        findings.refuse(
            f"{exact.where} and {wanted.where} contradict each other",
            why=f"{exact.where} asks for Node {exact.version}, {wanted.where} for {wanted.version}",
            todo="Change one of them.",
        )
    return exact


def _tool(tree: Tree, package: PackageJson, findings: Findings) -> tuple[NodeTool, str | None]:
    """The package manager and its lock file."""
    locks: dict[str, str] = {}
    for file, owner in LOCKS.items():
        if tree.has(file):
            if owner in locks:
                findings.note(f"{file}: passed over, {owner} takes {locks[owner]}")
            locks.setdefault(owner, file)
    if package.manager is not None:
        tool = cast("NodeTool", package.manager)
        others = [file for owner, file in locks.items() if owner != tool]
        named = f"`{package.manager_key}` of {PACKAGE_JSON}"
        if tool not in locks and others:
            findings.refuse(
                f"{named} names {tool}, and {listed(others)} is the lock file",
                why=f"{tool} does not read {listed(others)}",
                todo=f"Commit the lock file of {tool} ({_MAKE_LOCK[tool]}), or correct `{package.manager_key}`.",
            )
        elif others:
            findings.note(f"{listed(others)}: passed over, {named} names {tool}")
        return tool, locks.get(tool)
    if len(locks) > 1:
        findings.refuse(
            f"{listed(list(locks.values()))} are lock files of different package managers",
            why="they need not hold the same versions",
            todo=f"Remove the one that is not used, or name the package manager in `packageManager` of {PACKAGE_JSON}.",
        )
    if locks:
        owner = next(iter(locks))
        return cast("NodeTool", owner), locks[owner]
    return _tool_without_lock(tree, package), None


def _tool_without_lock(tree: Tree, package: PackageJson) -> NodeTool:
    if tree.has("pnpm-workspace.yaml") or "pnpm" in package.engines:
        return "pnpm"
    if tree.has(".yarnrc.yml") or tree.has(".yarnrc") or "yarn" in package.engines:
        return "yarn"
    return "bun" if tree.has("bunfig.toml") or "bun" in package.engines else "npm"


def _tool_version(package: PackageJson, tool: str) -> str | None:
    """The version that the project names; the builder knows which one writes such a lock file."""
    if package.manager == tool and package.manager_version:
        return package.manager_version
    asked = node_range(package.engines.get(tool, ""))
    return None if tool == "npm" and asked and release(asked) is None else asked


def _is_classic(tree: Tree, package: PackageJson, tool: str) -> bool:
    """Whether it is Yarn 1, which knows neither workspaces by name nor catalogs."""
    if tool != "yarn":
        return False
    if version := _tool_version(package, tool):
        return re.match(r"\D*[01]\b", version) is not None
    head = tree.read("yarn.lock", _HEAD_BYTES).decode(errors="replace") if tree.has("yarn.lock") else ""
    return "yarn lockfile v1" in head or not (head or tree.has(".yarnrc.yml"))


def _check_protocols(tree: Tree, package: PackageJson, tool: str, findings: Findings) -> None:
    """Protocols in versions that the package manager does not know are refused by name."""
    if "workspace" in package.protocols and (tool == "npm" or _is_classic(tree, package, tool)):
        findings.refuse(
            f"{PACKAGE_JSON} has dependencies with `workspace:`, which {tool} does not know",
            why="pnpm, Yarn 2 and newer, and Bun know workspaces by that name",
            todo=f"Name the package manager in `packageManager` of {PACKAGE_JSON}, and commit its lock file.",
        )
    if "catalog" in package.protocols and tool not in {"pnpm", "bun"}:
        findings.refuse(
            f"{PACKAGE_JSON} has dependencies with `catalog:`, which {tool} does not know",
            why="catalogs of pnpm stand in pnpm-workspace.yaml",
            todo="Commit pnpm-workspace.yaml and pnpm-lock.yaml.",
        )


def _check_npm_lock(tree: Tree, package: PackageJson, lock: str, findings: Findings) -> None:
    """A dependency that npm's lock file has not, or in a version that is not allowed, is an error with both names."""
    if LOCKS[lock] != "npm":
        return
    data = tree.read(lock, _MAX_JSON_BYTES)
    if len(data) > _MAX_JSON_BYTES:
        return  # npm itself compares
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        findings.refuse(f"{lock} cannot be read", why=str(error)[:200], todo=f"Write it anew: {_MAKE_LOCK['npm']}")
        return
    entries = content.get("packages") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        return  # of npm 6 and before: npm itself compares
    for name, wanted in (*package.dependencies.items(), *package.dev_dependencies.items()):
        entry = entries.get(f"node_modules/{name}")
        version = entry.get("version") if isinstance(entry, dict) else None
        if entry is None:
            reason = f"{PACKAGE_JSON} asks for {name} {wanted}, and {lock} does not have it"
        elif isinstance(version, str) and satisfies_npm(version, wanted) is False:
            reason = f"{PACKAGE_JSON} asks for {name} {wanted}, {lock} has {version}"
        else:
            continue
        findings.refuse(f"{lock} does not fit {PACKAGE_JSON}", why=reason, todo=f"Write it anew: {_MAKE_LOCK['npm']}")
        return


def _manifests(tree: Tree, package: PackageJson, tool: str, lock: str | None) -> tuple[str, ...]:
    """Every file that decides what is installed."""
    names = [name for name in (lock, PACKAGE_JSON, *_CONFIGS[tool]) if name and tree.has(name)]
    if tool == "yarn":
        names += tree.matching(".yarn/releases/*", ".yarn/plugins/*/*", ".yarn/plugins/*/*/*", ".yarn/patches/*")
    if package.workspaces or tree.has("pnpm-workspace.yaml"):
        names += tree.matching("*/package.json", "*/*/package.json", "*/*/*/package.json")[:_MAX_WORKSPACES]
    return tuple(dict.fromkeys(names))


def _has_sources(tree: Tree, package: PackageJson) -> bool:
    """Whether install scripts of well-known packages read files of the app."""
    return (package.has("@prisma/client") and bool(tree.matching("prisma/*.prisma", "*.prisma"))) or (
        tree.has_folder("patches") and (package.has("patch-package") or tree.has("pnpm-workspace.yaml"))
    )


def _how(packages: Packages, package: PackageJson) -> str:
    if not package.dependencies and not package.dev_dependencies and not packages.needs_source:
        return "no packages"
    version = f" {packages.tool_version.partition('+')[0]}" if packages.tool_version else ""
    return f"{packages.tool}{version} installs {packages.lock or f'{PACKAGE_JSON}, not locked'}"
