"""Node apps: packages installed by the project's own tool into `/layers/node`.

    /layers/node/bin/             node, npm, npx and the project's tool: start those that the layer was made for
    /layers/node/node_modules/    the packages; `/app/node_modules` is a relative link to it; the same for workspaces

Scripts of packages run (`esbuild`, `sharp` and others need them): what the tool installs is code that runs here. Where
there are build steps, packages are installed once with those for development. The image gets what is left without
them, unless the description says that the start command needs one.

The layer's key: every file that the description names, the versions of node and of the tool, the build-time variables
and the platform. The packages with those for development stay on disk between two builds of an app (`trees`), unless a
build step changed one of them. What a step writes into `node_modules` (generated code such as Prisma's client) is in
the image; then the layer belongs to this build only.
"""

import asyncio
import hashlib
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.builder.adapters.layers import node_tree as tree
from services.builder.adapters.layers.cache import key_of
from services.builder.adapters.layers.image import HOST_PATH, ReadyLayer
from services.builder.adapters.layers.installed import Installed, unpack
from services.builder.adapters.layers.node_tools import NodeTools, Programs, printed
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop, wrapper
from services.builder.errors import BuildFailed, CannotBuild
from services.builder.install import node as plan
from services.builder.install import yarn_lock
from services.builder.install.node_faults import SCRIPT_FAILED, install_failed
from services.builder.install.variables import install_variables
from services.source.contract import Packages

MODULES = Path(tree.MODULES)
ENVIRONMENT = {
    "PATH": f"/layers/node/bin:/layers/node/node_modules/.bin:{HOST_PATH}",
    "NODE_ENV": "production",
}


async def prepare(
    shop: Workshop, packages: Packages, node_tools: NodeTools, *, has_steps: bool, in_image: bool
) -> Installed:
    """Install the packages.

    Args:
        shop: The build.
        packages: What to install, with what.
        node_tools: Finds node and the tool.
        has_steps: A build step of this language follows.
        in_image: The image needs the packages; else they are for build steps only.

    Raises:
        CannotBuild: No node, no such tool or version, or a package.json that cannot be read.
        BuildFailed: The tool ended with an error.
        RegistryUnavailable: The package registry did not answer.
    """
    tool = await asyncio.to_thread(plan.tool_for, packages, shop.read)
    programs = await node_tools.find(shop, packages.version or shop.order.description.runtime.version, tool)
    node = NodePackages(shop, packages, programs, in_image=in_image)
    await node.install(has_steps=has_steps)
    runtime = plan.runtime_environment(tool)
    return Installed(env={**ENVIRONMENT, **runtime}, step_env=node.step_env(), finish=node.finish)


class NodePackages:
    """The packages of one build, from their installation to their layer.

    Args:
        shop: The build.
        packages: What to install.
        programs: What installs it.
        in_image: The image needs the packages.
    """

    def __init__(self, shop: Workshop, packages: Packages, programs: Programs, *, in_image: bool) -> None:
        self._shop = shop
        self._packages = packages
        self._programs = programs
        self._in_image = in_image
        self._bins = shop.scratch / "node-bin"
        self._inputs: dict[str, Any] = {}
        self._manifests: list[Mapping[str, Any]] = []
        self._variables: Mapping[str, str] = shop.order.variables
        """What the installation gets of the build-time variables."""
        self._own: dict[str, bytes] = {}
        """The app's files that decide what is installed, as they were committed."""
        self._leftovers: Sequence[str] = ()
        self._vendored: set[Path] = set()
        """`node_modules` folders of the source itself, below its root."""
        self._folders: list[Path] = []
        """Those that are installed in the app's folder for build steps."""
        self._before: tree.Snapshot = {}
        self._layer: ReadyLayer | None = None

    async def install(self, *, has_steps: bool) -> None:
        """Install for build steps and for the image."""
        await asyncio.to_thread(self._begin)
        has_packages = plan.has_packages(self._manifests)
        await self._shop.say(self._what)
        if has_packages and self._packages.lock is None:
            await self._shop.say(
                f"Warning: no lock file; {self._programs.tool.name} chooses versions, and the next build may get "
                "others. Commit one."
            )
        if has_steps and has_packages:
            await self._install_for_steps()
        if self._in_image:
            self._layer = await self._production_layer(has_packages=has_packages)
        if self._folders:
            self._before = await asyncio.to_thread(tree.snapshot, self._shop.app, self._folders)

    def step_env(self) -> dict[str, str]:
        """Return the variables of build steps."""
        path = f"{self._bins}:{self._shop.app / MODULES / '.bin'}:{self._shop.sandbox.path}"
        wanted = self._shop.order.variables.get("NODE_ENV", "production")
        return {**self._tool_env(), "PATH": path, "NODE_ENV": wanted, "NEXT_TELEMETRY_DISABLED": "1", "CI": ""}

    async def finish(self) -> tuple[ReadyLayer, ...]:
        """Take the packages out of the app's folder; return the layer that the image gets."""
        if self._folders:
            new, changed = await asyncio.to_thread(self._changes)
            if self._layer is not None and (written := [path for path in new + changed if tree.belongs_to_app(path)]):
                self._layer = await self._layer_with(written)
            await asyncio.to_thread(self._keep_tree, new, reusable=not changed)
        if self._layer is None:
            return ()
        folders = [Path(each) for each in self._layer.facts.get("folders", ())]
        await asyncio.to_thread(tree.link, self._shop.app, self._shop.root / "layers" / "node", folders)
        return (self._layer,)

    # --- what is asked for -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Read what decides what is installed, and put the programs where steps find them."""
        shop, packages, programs = self._shop, self._packages, self._programs
        files: dict[str, Any] = {}
        self._leftovers = [name for name in plan.LEFTOVERS if not (shop.app / name).exists()]
        for name in sorted({"package.json", ".npmrc", *packages.manifests}):
            if (content := shop.read(name)) is None:
                if name == "package.json":
                    raise CannotBuild("There is no package.json", todo="Commit one, or choose another runtime.")
                continue
            self._own[name] = content
            if name.rpartition("/")[2] == "package.json":
                manifest = plan.read_manifest(name, content)
                self._manifests.append(manifest)
                files[name] = plan.deciding(manifest)
            else:
                files[name] = hashlib.sha256(content).hexdigest()
        own_scripts = plan.has_own_scripts(self._manifests)
        if not (own_scripts or packages.needs_source):
            texts = [content for name, content in self._own.items() if name.rpartition("/")[2] != "package.json"]
            self._variables = install_variables(shop.order.variables, texts)
        self._inputs = {
            "files": files,
            "source": shop.order.source_digest if packages.needs_source else None,
            # scripts of the app itself write into its folder, so they run in every build
            "build": shop.order.saga_id if own_scripts else None,
            "include_dev": packages.include_dev,
            "tools": [
                *(str(programs.node.node), programs.node.version, str(programs.node.npm), programs.node.npm_version),
                *(programs.tool.name, str(programs.program), programs.tool_version),
            ],
            "platform": [platform.system(), platform.machine(), *platform.libc_ver()],
            "variables": shop.variables_key(self._variables),
        }
        self._bins.mkdir(parents=True)
        for name, program in programs.by_name.items():
            (self._bins / name).symlink_to(program.absolute())
        tree.remove(shop.app / MODULES)  # committed packages give way to the lock file's
        self._vendored = set(tree.module_folders(shop.app))

    def _tool_env(self) -> dict[str, str]:
        shop = self._shop
        caches, environ = str(shop.app_cache.tools), shop.sandbox.environment_passed()
        heap_mib = max(64, shop.sandbox.limits.memory_bytes * 3 // 4 // 1024**2)
        return {
            **plan.tool_environment(self._programs.tool, caches=caches, environ=environ),
            "PATH": f"{self._bins}:{shop.sandbox.path}",
            **plan.headers_environment(self._programs.node.node),
            **({"YARN_ENABLE_GLOBAL_CACHE": "true"} if ".yarn/cache" in self._leftovers else {}),
            "NODE_OPTIONS": f"--max-old-space-size={heap_mib} {shop.order.variables.get('NODE_OPTIONS', '')}".strip(),
        }

    # --- installing --------------------------------------------------------------------------------------------------

    async def _install_for_steps(self) -> None:
        """Install with development packages, or take up what the build before left."""
        shop, kept = self._shop, self._kept
        self._folders = await asyncio.to_thread(_taken_up, kept, shop.app)
        if self._folders:
            await shop.say(f"{self._what}, with development packages: nothing changed, kept from the build before")
            return
        await self._run_install(dev=True)
        self._folders = await asyncio.to_thread(self._installed_folders)

    async def _production_layer(self, *, has_packages: bool) -> ReadyLayer:
        """The layer without development packages; made from what is installed for steps, where that is there."""
        shop, folders = self._shop, list[str]()

        async def make(folder: Path) -> None:
            aside = shop.scratch / "node-aside"
            if self._folders:
                await asyncio.to_thread(_set_aside, shop.app, aside, self._folders)
                await self._without_dev()
            elif has_packages:
                await self._install_for_image()
            made = await asyncio.to_thread(self._installed_folders)
            await asyncio.to_thread(_fill, folder, shop.app, made, self._programs)
            if self._folders:
                await asyncio.to_thread(tree.rename, aside, shop.app, self._folders)
            folders.extend(map(str, made))

        return await shop.layer("node", self._inputs, make, created_by=self._what, facts=lambda: {"folders": folders})

    async def _without_dev(self) -> None:
        """Bring the copy in the app's folder to what the image gets."""
        if self._with_dev or not plan.has_dev(self._manifests):
            return
        environ = self._shop.sandbox.environment_passed()
        prune = plan.prune(self._programs.tool, caches=str(self._shop.app_cache.tools), environ=environ)
        if prune is not None:
            await self._run(prune)
            return
        for each in self._folders:
            await asyncio.to_thread(tree.remove, self._shop.app / each)
        await self._install_for_image()

    async def _install_for_image(self) -> None:
        """Install without development packages, unless a script of the app itself fails without them.

        Such scripts are common: `husky` in `prepare`, a framework's code generator in `postinstall`.
        """
        try:
            await self._run_install(dev=self._with_dev)
        except BuildFailed as error:
            own = plan.has_own_scripts(self._manifests) and error.reason_code == SCRIPT_FAILED
            if not own or self._with_dev or not plan.has_dev(self._manifests):
                raise
            await self._shop.say(
                "Note: an install script of the app fails without development packages: they stay in the image."
            )
            for each in await asyncio.to_thread(self._installed_folders):
                await asyncio.to_thread(tree.remove, self._shop.app / each)
            await self._run_install(dev=True)

    async def _run_install(self, *, dev: bool) -> None:
        self._shop.note("installing dependencies")
        environ = self._shop.sandbox.environment_passed()
        caches = str(self._shop.app_cache.tools)
        await self._complete_lock()
        await self._run(plan.install(self._packages, self._programs.tool, dev=dev, caches=caches, environ=environ))

    async def _complete_lock(self) -> None:
        """Give entries of a lock file of Yarn 1 the addresses that they lack; `_restore` takes them out again."""
        tool, lock = self._programs.tool, self._packages.lock
        content = self._shop.read(lock) if lock and tool.name == "yarn" and not tool.berry else None
        text = (content or b"").decode(errors="replace")
        if lock is None or not (patterns := yarn_lock.unresolved(text)):
            return
        await self._shop.say(f"{lock}: {', '.join(patterns[:5])} without an address: the registry's is taken")
        env = {**self._environment(self._tool_env()), "PATH": f"{self._bins}:{self._shop.sandbox.path}"}
        registry = await printed([str(self._bins / "npm"), "config", "get", "registry"], env=env, cwd=self._shop.app)
        await asyncio.to_thread((self._shop.app / lock).write_text, yarn_lock.with_addresses(text, registry))

    async def _run(self, install: plan.Install) -> None:
        env = self._environment({**install.env, **self._tool_env()})
        env.pop("NODE_ENV", None)  # `production` would leave packages out that the command asks for
        argv = [str(self._bins / install.command[0]), *install.command[1:]]
        try:
            await self._shop.run(argv, env=env, shown=install.shown)
        except ToolFailed as error:
            raise install_failed(self._packages, error.ending, error.lines) from error
        await asyncio.to_thread(self._restore)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        return self._shop.environment(extra, variables=self._variables)

    def _restore(self) -> None:
        """Take back what a tool did to the app's own files: Yarn writes package.json anew, and leaves its state."""
        for name, content in self._own.items():
            if self._shop.read(name) != content:
                (self._shop.app / name).write_bytes(content)
        for name in self._leftovers:
            tree.remove(self._shop.app / name)
        folder = self._shop.app / ".yarn"
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    # --- what the build did ------------------------------------------------------------------------------------------

    def _changes(self) -> tuple[list[str], list[str]]:
        return tree.changes(self._before, tree.snapshot(self._shop.app, self._folders))

    async def _layer_with(self, written: Sequence[str]) -> ReadyLayer:
        """The layer with what the build wrote into the packages."""
        shop, shared = self._shop, self._layer
        assert shared is not None  # noqa: S101 - the caller looked
        digests = await asyncio.to_thread(_digests, shop.app, written)

        async def make(folder: Path) -> None:
            if not (folder / "bin").exists():
                await unpack(shop, shared)
            await asyncio.to_thread(_write_over, shop.app, folder, digests)

        what = f"{self._what}, with {len(digests)} files that the build wrote"
        inputs = {**self._inputs, "written": digests}
        return await shop.layer("node", inputs, make, created_by=what, facts=lambda: shared.facts)

    def _keep_tree(self, new: Sequence[str], *, reusable: bool) -> None:
        """Leave the packages for the next build of the app, as they were before the steps."""
        trees = self._kept.parent
        tree.remove(trees)  # those of other lock files
        if not reusable:
            for folder in self._folders:
                tree.remove(self._shop.app / folder)
            return
        tree.restore(self._shop.app, new)
        tree.rename(self._shop.app, self._kept, self._folders)

    def _installed_folders(self) -> list[Path]:
        return [path for path in tree.module_folders(self._shop.app) if path not in self._vendored]

    @property
    def _kept(self) -> Path:
        return self._shop.app_cache.kept("trees", key_of({"tree": self._inputs}))

    @property
    def _with_dev(self) -> bool:
        return self._packages.include_dev or not plan.can_omit_dev(self._programs.tool)

    @property
    def _what(self) -> str:
        tool = f"{self._programs.tool.name} {self._programs.tool_version}"
        source = self._packages.lock or "package.json, without a lock file"
        packages = f"{tool}: packages of {source}" if plan.has_packages(self._manifests) else "no packages"
        return f"node {self._programs.node.version}, {packages}"


def _taken_up(kept: Path, app: Path) -> list[Path]:
    folders = tree.module_folders(kept) if kept.is_dir() else []
    tree.rename(kept, app, folders)
    return folders


def _set_aside(app: Path, aside: Path, folders: Sequence[Path]) -> None:
    tree.rename(app, aside, folders)
    tree.copy(aside, app, folders)


def _fill(folder: Path, app: Path, made: Sequence[Path], programs: Programs) -> None:
    for name, program in programs.by_name.items():
        wrapper(folder / "bin" / name, program.absolute())
    tree.move(app, folder, made, app=app)
    tree.drop_state(folder, made)
    (folder / MODULES).mkdir(exist_ok=True)


def _digests(app: Path, written: Sequence[str]) -> dict[str, str]:
    files = (path for path in written if (app / path).is_file() and not (app / path).is_symlink())
    return {path: hashlib.sha256((app / path).read_bytes()).hexdigest() for path in files}


def _write_over(app: Path, folder: Path, files: Mapping[str, str]) -> None:
    for path in files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(app / path, target)
