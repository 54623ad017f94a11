"""node and the package managers: those of this machine where they fit, else from the npm registry, kept.

    <home>/toolchains/node/<version>/        node and npm, as `/layers/node/bin` of images starts them
    <home>/toolchains/tools/<tool@version>/  pnpm, Yarn, bun, another npm

Nothing here is removed while the builder runs: images refer to it. A folder appears whole or not at all.
"""

import asyncio
import hashlib
import platform
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seedwork.archives import disk_errors
from services.builder.adapters.layers.node_versions import satisfies
from services.builder.adapters.layers.sandbox import ToolFailed
from services.builder.adapters.layers.workshop import Workshop
from services.builder.errors import CannotBuild, RegistryUnavailable
from services.builder.install import node as plan
from services.builder.install.node import Tool
from services.builder.install.node_faults import reasons
from services.builder.locks import Locks

_NO_VERSION = re.compile(rb"code (ETARGET|E404|ENOVERSIONS|EINVALIDTAGNAME)")
_PLATFORMS = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_VERSION = re.compile(r"\d+\.\d+\.\d+\S*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node with its npm."""

    node: Path
    npm: Path
    npx: Path
    version: str
    npm_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What one app is built with."""

    node: Node
    tool: Tool
    program: Path
    tool_version: str

    @property
    def by_name(self) -> Mapping[str, Path]:
        """The programs that the app finds on its PATH, by name."""
        return {"node": self.node.node, "npm": self.node.npm, "npx": self.node.npx, self.tool.name: self.program}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """An npm package to fetch."""

    spec: str
    """As npm takes it: `pnpm@9.15.9`."""
    shown: str
    """As people read it."""
    hash: tuple[str, str] | None = None


class NodeTools:
    """Finds or fetches node and package managers.

    Args:
        folder: Where fetched tools are kept.
        fetch: Whether tools may be fetched (`KNARR_FETCH_TOOLCHAINS`).
    """

    def __init__(self, folder: Path, *, fetch: bool) -> None:
        self._folder = folder
        self._fetch = fetch
        self._machine: Node | None = None
        self._locks = Locks()

    async def find(self, shop: Workshop, wanted: str | None, tool: Tool) -> Programs:
        """Return the programs for an app.

        Raises:
            CannotBuild: Something is missing, and may not or cannot be fetched.
            RegistryUnavailable: The npm registry did not answer.
        """
        node = await self._node(shop, wanted)
        if tool.name == "npm" and (tool.version is None or satisfies(node.npm_version, tool.version)):
            return Programs(node=node, tool=tool, program=node.npm, tool_version=node.npm_version)
        if found := await self._on_machine(shop, tool):
            return Programs(node=node, tool=tool, program=found[0], tool_version=found[1])
        folder = await self._fetched(
            shop,
            await self._of_machine(shop),
            _Wanted(spec=f"{tool.npm_package}@{tool.version}", shown=str(tool), hash=tool.hash),
        )
        program = folder / "node_modules" / ".bin" / tool.name
        if tool.name == "bun":
            program = next((folder / "node_modules" / "@oven").glob("*/bin/bun"), program)
        version = await _version(program, shop, node)
        return Programs(node=node, tool=tool, program=program, tool_version=version)

    # --- node --------------------------------------------------------------------------------------------------------

    async def _node(self, shop: Workshop, wanted: str | None) -> Node:
        machine = await self._of_machine(shop)
        if not wanted:
            return machine
        fits = satisfies(machine.version, wanted)
        if fits is None:
            await shop.say(f"Warning: the node version {wanted!r} is not understood; {machine.version} is used")
        if fits is not False:
            return machine
        if not self._fetch:
            raise CannotBuild(
                f"The app asks for node {wanted}",
                why=f"this machine has {machine.version}, and KNARR_FETCH_TOOLCHAINS is off",
                todo="Install that version, set KNARR_FETCH_TOOLCHAINS=true, or ask for another one "
                "(`engines.node` in package.json).",
                code="no_interpreter",
            )
        return await self._fetched_node(shop, machine, wanted)

    async def _fetched_node(self, shop: Workshop, machine: Node, wanted: str) -> Node:
        name = f"node-{platform.system().lower()}-{_PLATFORMS.get(platform.machine().lower(), platform.machine())}"
        folder = await self._fetched(shop, machine, _Wanted(spec=f"{name}@{wanted}", shown=f"node {wanted}"))
        node = folder / "node_modules" / name / "bin" / "node"
        version = (await _version(node, shop, None)).removeprefix("v")
        npm_range = plan.npm_for_node(version)
        npm_folder = await self._fetched(shop, machine, _Wanted(spec=f"npm@{npm_range}", shown=f"npm {npm_range}"))
        bins = npm_folder / "node_modules" / ".bin"
        own = Node(node=node, npm=bins / "npm", npx=bins / "npx", version=version, npm_version="")
        npm_version = await _version(own.npm, shop, own)
        return Node(node=node, npm=own.npm, npx=own.npx, version=version, npm_version=npm_version)

    async def _of_machine(self, shop: Workshop) -> Node:
        if self._machine is None:
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
            version = (await _version(node, shop, None)).removeprefix("v")
            self._machine = Node(
                node=node, npm=npm, npx=npx, version=version, npm_version=await _version(npm, shop, None)
            )
        return self._machine

    # --- package managers --------------------------------------------------------------------------------------------

    async def _on_machine(self, shop: Workshop, tool: Tool) -> tuple[Path, str] | None:
        """The machine's own program, where its version fits what the project names."""
        if not tool.version or tool.hash:
            return None
        path = await asyncio.to_thread(shop.sandbox.which, tool.name)
        if path is None:
            return None
        version = await _version(path, shop, None)
        return (path, version) if _VERSION.match(version) and satisfies(version, tool.version) else None

    async def _fetched(self, shop: Workshop, node: Node, wanted: _Wanted) -> Path:
        """The folder with that npm package, installed once."""
        spec, what = wanted.spec, wanted.shown
        name = spec.replace("/", "+").replace(" ", "_")
        folder = self._folder / (name if len(name) < 80 else hashlib.sha256(name.encode()).hexdigest())
        async with self._locks.of(spec):
            if await asyncio.to_thread(folder.is_dir):
                return folder
            if not self._fetch:
                raise CannotBuild(
                    f"The app needs {what}",
                    why="it is not on this machine, and KNARR_FETCH_TOOLCHAINS is off",
                    todo=f"Install it (`npm install --global {spec}`), or set KNARR_FETCH_TOOLCHAINS=true.",
                    code="no_interpreter",
                )
            shop.note(f"fetching {what}")
            new = folder.with_name(f".new-{secrets.token_hex(8)}")
            try:
                await self._install(shop, node, new, wanted)
                await asyncio.to_thread(_appear, new, folder)
            finally:
                await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        return folder

    async def _install(self, shop: Workshop, node: Node, folder: Path, wanted: _Wanted) -> None:
        spec, what, checksum = wanted.spec, wanted.shown, wanted.hash
        with disk_errors():
            await asyncio.to_thread(folder.mkdir, parents=True)
            await asyncio.to_thread((folder / "package.json").write_text, '{"private": true}\n')
        env = {**shop.environment({}, variables={}), "PATH": f"{node.node.parent}:{shop.sandbox.path}"}
        env["npm_config_cache"] = str(folder / ".cache")
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--prefix", str(folder)]
        package = _bun_package(spec) if spec.startswith("bun@") else spec
        try:
            if checksum is not None and not spec.startswith("@yarnpkg/"):
                await shop.run(
                    [node.npm, "pack", package, "--pack-destination", folder],
                    env=env,
                    cwd=folder,
                    shown=f"fetch {what}",
                )
                package = str(await asyncio.to_thread(_checked_tarball, folder, what, checksum))
            await shop.run([node.npm, "install", *quiet, package], env=env, cwd=folder, shown=f"npm install {spec}")
        except ToolFailed as error:
            raise _not_fetched(error, spec, what) from error
        if checksum is not None and spec.startswith("@yarnpkg/"):
            program = folder / "node_modules" / "@yarnpkg" / "cli-dist" / "bin" / "yarn.js"
            await asyncio.to_thread(_check, program, what, checksum)
        await asyncio.to_thread(shutil.rmtree, folder / ".cache", ignore_errors=True)


def _not_fetched(error: ToolFailed, spec: str, what: str) -> CannotBuild | RegistryUnavailable:
    why = "; ".join(reasons(error.lines)) or error.ending
    if error.says(_NO_VERSION):
        return CannotBuild(
            f"The npm registry has no {what}",
            why=why,
            todo="Name a version that exists in package.json.",
            code="no_interpreter",
        )
    return RegistryUnavailable(
        f"{what} could not be fetched from the npm registry",
        why=why,
        todo=f"Give the machine access to the registry (NPM_CONFIG_REGISTRY), or install it there: "
        f"`npm install --global {spec}`.",
    )


def _bun_package(spec: str) -> str:
    """The package with the program for this machine: the package `bun` would choose it by a script."""
    system, machine = platform.system().lower(), platform.machine().lower()
    arch = {"arm64": "aarch64", "amd64": "x64", "x86_64": "x64"}.get(machine, machine)
    baseline = ""
    if system == "linux" and arch == "x64" and "avx2" not in _cpu_flags():
        baseline = "-baseline"
    return f"@oven/bun-{system}-{arch}{baseline}@{spec.partition('@')[2]}"


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()[:16_384]
    except OSError:
        return ""


def _checked_tarball(folder: Path, what: str, checksum: tuple[str, str]) -> Path:
    tarball = next(folder.glob("*.tgz"))
    _check(tarball, what, checksum)
    return tarball


def _check(path: Path, what: str, checksum: tuple[str, str]) -> None:
    algorithm, digest = checksum
    if hashlib.new(algorithm, path.read_bytes(), usedforsecurity=True).hexdigest() != digest:
        raise CannotBuild(
            f"{what} is not what package.json says",
            why=f"its {algorithm} differs from that of `packageManager`",
            todo="Correct the checksum of `packageManager`, or remove it from there.",
            code="no_interpreter",
        )


def _appear(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)


async def _version(program: Path, shop: Workshop, node: Node | None) -> str:
    path = f"{node.node.parent}:{shop.sandbox.path}" if node else shop.sandbox.path
    env = {**shop.environment({}, variables={}), "PATH": path}
    return await printed([str(program), "--version"], env=env, cwd=shop.scratch)


async def printed(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> str:
    """Return the last line that a program prints within 30 s; empty: none."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=cwd,
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
    return answer.decode(errors="replace").strip().splitlines()[-1] if answer.strip() else ""
