"""Node apps: packages installed by npm into `/layers/node`, for production only; `scripts.build` runs if there is one.

    /layers/node/bin/             node, npm, npx: start those of this machine
    /layers/node/node_modules/    the packages; `/app/node_modules` is a relative link to it

With a lock file `npm ci`, else `npm install` and a warning. Scripts of packages run (`esbuild`, `sharp` and others
need them): what npm installs is code that runs here. A build script gets the development packages too, which are no
part of the image. What the app's processes get: `PATH` with the packages' programs in front, and
`NODE_ENV=production`.

The layer's key: the lock file, the parts of package.json and .npmrc that npm looks at, the versions of node and npm,
and the platform. An app whose own package.json has install scripts (`postinstall` …), or depends on folders of its
own, is installed anew for every change of its source.
"""

import asyncio
import os
import platform
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from seedwork.archives import ArchiveLimits, extract_tar
from seedwork.threads import in_thread
from services.builder.adapters.layers.image import HOST_PATH, Prepared, ReadyLayer
from services.builder.adapters.layers.node_versions import satisfies
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop, wrapper
from services.builder.errors import BuildFailed, CannotBuild, RegistryUnavailable
from services.builder.install.requirements import ReadFile

_NETWORK = re.compile(
    rb"code (ECONNRESET|ECONNREFUSED|ETIMEDOUT|ESOCKETTIMEDOUT|ENOTFOUND|EAI_AGAIN|ERR_SOCKET_TIMEOUT|E5\d\d|E429)"
)
_LOCKS = ("npm-shrinkwrap.json", "package-lock.json")
_INSTALL_SCRIPTS = frozenset(
    {"preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare"}
)
_DECIDING = (
    *("dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "bundleDependencies"),
    *("overrides", "engines", "os", "cpu", "workspaces"),
)
ENVIRONMENT = {
    "PATH": f"/layers/node/bin:/layers/node/node_modules/.bin:{HOST_PATH}",
    "NODE_ENV": "production",
}
_BUILD_LAYER = "node-build"
"""With the development packages: for the build script only, never part of an image."""
_TREE = ArchiveLimits(max_bytes=16 * 1024**3, max_entries=2_000_000, max_depth=256, max_path_bytes=4096)
"""Of our own layers: what npm made, not what a stranger sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """node and npm of this machine."""

    node: Path
    npm: Path
    npx: Path
    node_version: str
    npm_version: str


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


class NodeTools:
    """Found once; look again after a restart."""

    def __init__(self) -> None:
        self._found: Tools | None = None

    async def find(self, shop: Workshop) -> Tools:
        """Look for node and npm.

        Raises:
            CannotBuild: One of them is not installed.
        """
        if self._found is None:
            paths = {name: await asyncio.to_thread(shop.sandbox.which, name) for name in ("node", "npm", "npx")}
            node, npm, npx = (paths[name] for name in ("node", "npm", "npx"))
            if node is None or npm is None or npx is None:
                missing = ", ".join(name for name, path in paths.items() if path is None)
                raise CannotBuild(
                    "Node apps cannot be built on this machine",
                    why=f"{missing} is not on PATH",
                    todo="Install Node.js with npm and restart knarr.",
                    code="no_interpreter",
                )
            self._found = Tools(
                node=node,
                npm=npm,
                npx=npx,
                node_version=(await _version(node, shop)).removeprefix("v"),
                npm_version=await _version(npm, shop),
            )
        return self._found


async def prepare(shop: Workshop, node_tools: NodeTools) -> Prepared:
    """The dependency layer, the build script's work in `/app`, and the environment.

    Raises:
        CannotBuild: No node, another version than the app asks for, or a package.json that cannot be read.
        BuildFailed: npm or the build script ended with an error.
        RegistryUnavailable: The package registry did not answer.
    """
    tools = await node_tools.find(shop)
    package = await asyncio.to_thread(read_package, shop.read)
    await _check_version(shop, package, tools)
    if package.has_dependencies and package.lock is None:
        await shop.say(
            "Warning: no package-lock.json; npm chooses versions, and the next build may get others. Commit one."
        )
    layer = await _packages(shop, package, tools, name="node", omit_dev=True)
    if package.scripts.get("build"):
        await _run_build_script(shop, package, tools)
    await asyncio.to_thread(_link_packages, shop, package)
    return Prepared(layers=(layer,), env=ENVIRONMENT)


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


async def _check_version(shop: Workshop, package: Package, tools: Tools) -> None:
    engines = package.manifest.get("engines")
    wanted = shop.order.description.runtime.version or (engines.get("node") if isinstance(engines, dict) else None)
    if not wanted:
        return
    fits = satisfies(tools.node_version, str(wanted))
    if fits is None:
        await shop.say(f"Warning: the node version {wanted!r} is not understood; {tools.node_version} is used")
    elif not fits:
        raise CannotBuild(
            f"The app asks for node {wanted}",
            why=f"this machine has {tools.node_version}",
            todo="Ask for that one (`engines.node` in package.json, or `runtime` in .cupaas.yml), "
            "or install the other.",
            code="no_interpreter",
        )


async def _packages(shop: Workshop, package: Package, tools: Tools, *, name: str, omit_dev: bool) -> ReadyLayer:
    """The layer with `bin` and `node_modules`, cached by everything that npm looks at."""
    inputs = {
        "manifest": {key: package.manifest[key] for key in _DECIDING if key in package.manifest},
        "lock": package.lock_text,
        "npmrc": package.npmrc,
        "source": shop.order.source_digest if package.needs_source else None,
        "omit_dev": omit_dev,
        "tools": [str(tools.node), tools.node_version, str(tools.npm), tools.npm_version, str(tools.npx)],
        "platform": [platform.system(), platform.machine(), *platform.libc_ver()],
    }

    async def make(folder: Path) -> None:
        await asyncio.to_thread(_lay_out, folder, tools)
        await asyncio.to_thread(_remove_packages, shop)
        if package.has_dependencies:
            await _npm_install(shop, package, tools, omit_dev=omit_dev)
        await asyncio.to_thread(_move_packages, shop, folder)

    what = f"node {tools.node_version}, " + (
        f"packages of {package.lock or 'package.json'}" if package.has_dependencies else "no packages"
    )
    return await shop.layer(name, inputs, make, created_by=what)


async def _npm_install(shop: Workshop, package: Package, tools: Tools, *, omit_dev: bool) -> None:
    shop.note("installing dependencies")
    verb = ["ci"] if package.lock else ["install", "--no-package-lock"]
    options = ["--omit=dev"] if omit_dev else ["--include=dev"]
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
    try:
        await shop.run(
            [tools.npm, *verb, *options, *quiet],
            env=_environment(shop, tools),
            shown=" ".join(["npm", *verb, *options]),
        )
    except ToolFailed as error:
        if error.says(_NETWORK):
            raise RegistryUnavailable("The npm registry did not answer", why=error.ending) from error
        raise BuildFailed(
            "The packages of package.json could not be installed",
            why=error.ending,
            todo="The last lines of the log say why.",
        ) from error


async def _run_build_script(shop: Workshop, package: Package, tools: Tools) -> None:
    """`npm run build` with the development packages, which are taken away again."""
    everything = await _packages(shop, package, tools, name=_BUILD_LAYER, omit_dev=False)
    await in_thread(lambda stop: _use_packages(shop, everything, stop))
    shop.note("running the build script")
    try:
        await shop.run([tools.npm, "run", "build"], env=_environment(shop, tools), shown="npm run build")
    except ToolFailed as error:
        raise BuildFailed(
            "The script `build` of package.json failed", why=error.ending, todo="The last lines of the log say why."
        ) from error


def _environment(shop: Workshop, tools: Tools) -> dict[str, str]:
    heap_mib = max(64, shop.sandbox.limits.memory_bytes * 3 // 4 // 1024**2)
    return shop.environment(
        {
            "PATH": f"{tools.node.parent}:{shop.sandbox.path}",
            "npm_config_cache": str(shop.caches / "npm"),
            "npm_config_loglevel": "notice",
            "npm_config_progress": "false",
            "NODE_OPTIONS": f"--max-old-space-size={heap_mib}",
        }
    )


def _lay_out(folder: Path, tools: Tools) -> None:
    for name, program in (("node", tools.node), ("npm", tools.npm), ("npx", tools.npx)):
        wrapper(folder / "bin" / name, program.absolute())


def _remove_packages(shop: Workshop) -> None:
    """What stands at `/app/node_modules`: committed packages give way to the lock file's."""
    path = shop.app / "node_modules"
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _move_packages(shop: Workshop, folder: Path) -> None:
    """Put them where the layer has them; links to folders of the app (`file:`, workspaces) go on leading there."""
    source, target = shop.app / "node_modules", folder / "node_modules"
    if not source.is_dir():
        target.mkdir()
        return
    outward = {
        path.relative_to(source): Path(os.path.realpath(path))
        for path in (*source.glob("*"), *source.glob("@*/*"))
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(source))
    }
    source.rename(target)
    for name, leads_to in outward.items():
        (target / name).unlink()
        (target / name).symlink_to(os.path.relpath(leads_to, os.path.realpath((target / name).parent)))


def _use_packages(shop: Workshop, layer: ReadyLayer, stop: threading.Event) -> None:
    """Link the development packages into the app; unpacked first, where they came from the cache."""
    if not (shop.root / "layers" / _BUILD_LAYER).exists():
        assert layer.file.path is not None  # noqa: S101 - layers of the cache are files
        extract_tar(layer.file.path, shop.root, limits=_TREE, stop=stop)
    _remove_packages(shop)
    (shop.app / "node_modules").symlink_to(f"../layers/{_BUILD_LAYER}/node_modules")


def _link_packages(shop: Workshop, package: Package) -> None:
    _remove_packages(shop)
    if package.has_dependencies:
        (shop.app / "node_modules").symlink_to("../layers/node/node_modules")


async def _version(program: Path, shop: Workshop) -> str:
    process = await asyncio.create_subprocess_exec(
        str(program),
        "--version",
        env=shop.environment({}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return answer.decode(errors="replace").strip()
