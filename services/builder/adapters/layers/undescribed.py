"""Packages and build steps of a description that names none: for `source` services that do not fill them yet.

Node: npm with its lock file, and `scripts.build`. Nothing else is guessed.
"""

from services.builder.install.node import ReadFile, read_manifest
from services.source.contract import AppDescription, BuildStep, Packages

_LOCKS = ("npm-shrinkwrap.json", "package-lock.json")


def described_packages(description: AppDescription, read: ReadFile) -> tuple[Packages, ...]:
    """Return the description's packages, or those that its language has without being asked."""
    kind = description.runtime.kind
    if description.packages or kind != "node":
        return description.packages
    version = description.runtime.version
    lock = next((name for name in _LOCKS if read(name) is not None), None)
    manifest = read_manifest("package.json", read("package.json") or b"{}")
    scripts = manifest.get("scripts") or {}
    engines = manifest.get("engines")
    wanted = version or (engines.get("node") if isinstance(engines, dict) else None)
    local = any(
        str(each).startswith(("file:", "link:", ".", "/", "~/"))
        for name in ("dependencies", "devDependencies", "optionalDependencies")
        for each in (manifest.get(name) or {}).values()
    )
    own_scripts = {"preinstall", "install", "postinstall", "prepare"} & set(scripts)
    return (
        Packages(
            language="node",
            version=str(wanted) if wanted else None,
            tool="npm",
            lock=lock,
            manifests=("package.json", *([lock] if lock else [])),
            needs_source=local or bool(own_scripts) or bool(manifest.get("workspaces")),
        ),
    )


def described_steps(description: AppDescription, read: ReadFile) -> tuple[BuildStep, ...]:
    """Return the description's build steps; a Node app that names no packages has its script `build`."""
    if description.build or description.packages or description.runtime.kind != "node":
        return description.build
    scripts = read_manifest("package.json", read("package.json") or b"{}").get("scripts")
    if not isinstance(scripts, dict) or not scripts.get("build"):
        return ()
    step = BuildStep(name="scripts.build of package.json", command=("npm", "run", "build"), language="node")
    return (step,)
