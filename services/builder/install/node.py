"""How the packages of a Node app are installed: `Packages` and its files in, tools, commands and errors out. Pure.

Each tool installs from its own lock file and refuses to change it. The tool has the version that the project names;
else a pinned version that reads the lock file's format. Yarn from version 2 installs into `node_modules`, also where
the project asks for Plug'n'Play: the files of an image must be found without Yarn's loader.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.builder.errors import CannotBuild
from services.builder.install.requirements import MANIFEST_BYTES
from services.source.contract import Packages

ReadFile = Callable[[str], bytes | None]
"""Return the content of a file of the app, or None."""

TOOLS = ("npm", "pnpm", "yarn", "bun")
_PNPM = {"5": "7.33.7", "6": "8.15.9", "9": "9.15.9"}
_PNPM_NEWEST = "10.33.4"
"""For settings in pnpm-workspace.yaml, which older versions do not read, and for a new project."""
_YARN_CLASSIC = "1.22.22"
_YARN_BERRY = {"4": "3.8.7", "5": "3.8.7", "6": "3.8.7"}
_YARN_NEWEST = "4.12.0"
_BUN = "1.2.20"
_RANGE = re.compile(r"[0-9A-Za-z.^~<>=|*+ -]{1,100}", re.ASCII)
_HASH = re.compile(r"(sha(?:1|224|256|384|512))\.([0-9a-f]{40,128})", re.ASCII)
_PNPM_LOCK_VERSION = re.compile(rb"^lockfileVersion:\s*['\"]?(\d+)", re.MULTILINE)
_BERRY_LOCK_VERSION = re.compile(rb"^__metadata:\s*\n\s+version:\s*(\d+)", re.MULTILINE)
_PNPM_WORKSPACE_KEY = re.compile(rb"^([A-Za-z]\w*)\s*:", re.MULTILINE)
_HEAD_BYTES = 4096
"""Beginning of a lock file in which its version stands."""
DECIDING = (
    *("name", "dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "peerDependenciesMeta"),
    *("dependenciesMeta", "bundleDependencies", "bundledDependencies", "overrides", "resolutions", "pnpm", "engines"),
    *("workspaces", "catalog", "catalogs", "trustedDependencies", "patchedDependencies", "os", "cpu", "libc"),
    *("packageManager", "devEngines", "installConfig", "bin"),
)
"""Keys of package.json that decide what is installed."""
INSTALL_SCRIPTS = ("preinstall", "install", "postinstall", "preprepare", "prepare", "postprepare", "prepublish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A package manager in one version."""

    name: str
    """`npm`, `pnpm`, `yarn` or `bun`: also the program."""
    version: str | None
    """Exact version, or a range; null: the npm that comes with node."""
    hash: tuple[str, str] | None = None
    """Algorithm and hex digits that `packageManager` gives, of the tarball (Yarn from 2: of the program)."""
    named: bool = False
    """True: the project names the version."""

    @property
    def berry(self) -> bool:
        """Whether it is Yarn from version 2."""
        return self.name == "yarn" and self.version is not None and not re.match(r"\D*[01]\b", self.version)

    @property
    def npm_package(self) -> str:
        """Name of the npm package that holds it."""
        return "@yarnpkg/cli-dist" if self.berry else self.name

    @property
    def major(self) -> int:
        """The first number of its version; 0 if there is none."""
        found = re.search(r"\d+", self.version or "")
        return int(found[0]) if found else 0

    def __str__(self) -> str:
        """Return the name with the version."""
        return f"{self.name} {self.version}" if self.version else self.name


def tool_for(packages: Packages, read: ReadFile) -> Tool:
    """Choose the tool and its version.

    Raises:
        CannotBuild: The version that the project names is not a version.
    """
    if packages.tool not in TOOLS:
        raise CannotBuild(f"Node packages cannot be installed by {packages.tool}", todo=f"Known: {', '.join(TOOLS)}.")
    lock = (read(packages.lock) or b"") if packages.lock else b""
    if packages.tool_version:
        version, _, checksum = packages.tool_version.strip().partition("+")
        found = _HASH.fullmatch(checksum.strip())
        version = _pinned(packages.tool, version)
        if not _RANGE.fullmatch(version):
            raise CannotBuild(
                f"The version {packages.tool_version[:80]!r} of {packages.tool} is not understood",
                todo=f'Write a version to package.json, for example `"packageManager": "{packages.tool}@1.2.3"`.',
            )
        return Tool(name=packages.tool, version=version, hash=(found[1], found[2]) if found else None, named=True)
    return Tool(name=packages.tool, version=_default_version(packages.tool, lock, read("pnpm-workspace.yaml") or b""))


def _pinned(tool: str, version: str) -> str:
    """The pinned version, where only its major number is asked for. Yarn 3 stands in for 2, whose lock it reads."""
    known = {"pnpm": [*_PNPM.values(), _PNPM_NEWEST], "yarn": [_YARN_CLASSIC, *_YARN_BERRY.values(), _YARN_NEWEST]}
    if tool == "yarn" and version == "2":
        return _YARN_BERRY["4"]
    return next((each for each in known.get(tool, ()) if each.partition(".")[0] == version), version)


def _default_version(tool: str, lock: bytes, workspace: bytes) -> str | None:
    head = lock[:_HEAD_BYTES]
    if tool == "pnpm":
        settings = set(_PNPM_WORKSPACE_KEY.findall(workspace)) - {b"packages", b"catalog", b"catalogs"}
        version = found[1].decode() if (found := _PNPM_LOCK_VERSION.search(head)) else ""
        return _PNPM_NEWEST if settings and version in {"9", ""} else _PNPM.get(version, _PNPM_NEWEST)
    if tool == "yarn":
        if found := _BERRY_LOCK_VERSION.search(head):
            return _YARN_BERRY.get(found[1].decode(), _YARN_NEWEST)
        return _YARN_CLASSIC
    return _BUN if tool == "bun" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """The commands that install packages in the app's folder, with what they need."""

    command: tuple[str, ...]
    shown: str
    """The command without options that are the same in every build."""
    env: Mapping[str, str]


def install(packages: Packages, tool: Tool, *, dev: bool, caches: str, environ: Mapping[str, str]) -> Install:
    """Return the command that installs.

    Args:
        packages: What to install.
        tool: What installs it.
        dev: With development packages.
        caches: Folder for the tool's cache.
        environ: The platform's variables about package registries.
    """
    frozen = packages.lock is not None
    words, quiet = _WORDS[tool.name](tool, frozen=frozen, dev=dev)
    options = {"pnpm": [f"--store-dir={caches}/pnpm-store"]}.get(tool.name, [])
    return Install(
        command=(tool.name, *words, *quiet, *options),
        shown=" ".join([tool.name, *words]),
        env=tool_environment(tool, caches=caches, environ=environ),
    )


def prune(tool: Tool, *, caches: str, environ: Mapping[str, str]) -> Install | None:
    """Return the command that removes development packages from an installation; None: install once more without."""
    if tool.name != "npm":
        return None
    env = tool_environment(tool, caches=caches, environ=environ)
    command = ("npm", "prune", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
    return Install(command=command, shown="npm prune --omit=dev", env=env)


def can_omit_dev(tool: Tool) -> bool:
    """Whether the tool can leave development packages out. Yarn 2 and 3 need a plugin for that."""
    return not tool.berry or tool.major >= 4


def _npm_words(_tool: Tool, *, frozen: bool, dev: bool) -> tuple[list[str], list[str]]:
    words = ["ci"] if frozen else ["install", "--no-package-lock"]
    return [*words, "--include=dev" if dev else "--omit=dev"], ["--no-audit", "--no-fund", "--no-update-notifier"]


def _pnpm_words(_tool: Tool, *, frozen: bool, dev: bool) -> tuple[list[str], list[str]]:
    words = ["install", "--frozen-lockfile" if frozen else "--no-lockfile"]
    quiet = [
        "--reporter=append-only",
        "--package-import-method=clone-or-copy",  # a link would let a build change the store
        "--config.extend-node-path=false",  # the build's folder would stand in the packages' programs
        "--config.confirm-modules-purge=false",
        "--config.manage-package-manager-versions=false",
    ]
    return [*words, *([] if dev else ["--prod"])], quiet


def _yarn_words(tool: Tool, *, frozen: bool, dev: bool) -> tuple[list[str], list[str]]:
    if tool.berry:
        if not dev and can_omit_dev(tool):
            return ["workspaces", "focus", "--all", "--production"], []
        return ["install", "--immutable" if frozen else "--no-immutable"], []
    words = ["install", "--frozen-lockfile" if frozen else "--no-lockfile"]
    return [*words, f"--production={'false' if dev else 'true'}"], ["--non-interactive", "--no-progress"]


def _bun_words(_tool: Tool, *, frozen: bool, dev: bool) -> tuple[list[str], list[str]]:
    words = ["install", "--frozen-lockfile" if frozen else "--no-save"]
    return [*words, *([] if dev else ["--production"])], ["--no-progress", "--backend=copyfile"]


_WORDS: Mapping[str, Callable[..., tuple[list[str], list[str]]]] = {
    "npm": _npm_words,
    "pnpm": _pnpm_words,
    "yarn": _yarn_words,
    "bun": _bun_words,
}


def tool_environment(tool: Tool, *, caches: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the tool needs, also in a build step."""
    registry = next((value for name, value in environ.items() if name.upper() == "NPM_CONFIG_REGISTRY"), None)
    env = {
        "npm_config_cache": f"{caches}/npm",
        "npm_config_loglevel": "notice",
        "npm_config_progress": "false",
        "npm_config_update_notifier": "false",
    }
    env |= runtime_environment(tool)
    if tool.name == "pnpm":
        env["XDG_CACHE_HOME"] = f"{caches}/pnpm"
    if tool.name == "yarn" and not tool.berry:
        env["YARN_CACHE_FOLDER"] = f"{caches}/yarn"
    if tool.berry:
        env |= {
            "YARN_GLOBAL_FOLDER": f"{caches}/yarn-berry",
            "YARN_ENABLE_TELEMETRY": "0",
            "YARN_ENABLE_PROGRESS_BARS": "0",
            "YARN_ENABLE_INLINE_BUILDS": "true",  # what an install script prints is part of the log
        }
        if registry:
            env["YARN_NPM_REGISTRY_SERVER"] = registry
            if registry.startswith("http://"):
                env["YARN_UNSAFE_HTTP_WHITELIST"] = registry.split("/")[2].rpartition("@")[2].partition(":")[0]
    if tool.name == "bun":
        env["BUN_INSTALL_CACHE_DIR"] = f"{caches}/bun"
        env |= {"BUN_CONFIG_REGISTRY": registry} if registry else {}
    return env


def headers_environment(node: Path) -> dict[str, str]:
    """Return the variable by which node-gyp compiles with the headers beside `node`, without a download."""
    prefix = node.resolve().parent.parent
    return {"npm_config_nodedir": str(prefix)} if (prefix / "include/node/node.h").is_file() else {}


def runtime_environment(tool: Tool) -> dict[str, str]:
    """Return the variables with which the tool starts a script, in a build step and in a process of the app."""
    if tool.berry:
        return {"YARN_NODE_LINKER": "node-modules"}  # `yarn start` must look where the packages are
    if tool.name == "pnpm":
        # pnpm 11 compares node_modules with the lock file, and installs, before it runs a script; what a build left is
        # without development packages and without pnpm's notes
        return {"pnpm_config_verify_deps_before_run": "false"}
    return {}


LEFTOVERS = (
    ".yarn/install-state.gz",
    ".yarn/build-state.yml",
    ".yarn/unplugged",
    ".yarn/cache",
    ".pnp.cjs",
    ".pnp.loader.mjs",
)
"""What Yarn leaves in an app's folder besides the packages; it differs from one installation to the next."""


# --- package.json -----------------------------------------------------------------------------------------------------


def read_manifest(name: str, content: bytes) -> Mapping[str, Any]:
    """Read a package.json; a byte order mark is passed over.

    Raises:
        CannotBuild: It is no JSON object.
    """
    if len(content) > MANIFEST_BYTES:
        raise CannotBuild(f"{name} has more than {MANIFEST_BYTES} bytes", todo="Shorten it.")
    try:
        manifest = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise CannotBuild(f"{name} cannot be read", why=str(error), todo="Correct it and push again.") from error
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key) or {}, dict) for key in ("dependencies", "devDependencies", "optionalDependencies")
    ):
        raise CannotBuild(f"{name} is not what npm expects", why="it and its dependencies are JSON objects")
    return manifest


def deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a package.json decides what is installed."""
    scripts = manifest.get("scripts")
    kept = {key: manifest[key] for key in DECIDING if key in manifest}
    if isinstance(scripts, dict):
        kept["scripts"] = {name: scripts[name] for name in INSTALL_SCRIPTS if name in scripts}
    return kept


def has_own_scripts(manifests: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an installation runs scripts of the app itself, which may write anything into its folder."""
    return any(deciding(manifest).get("scripts") for manifest in manifests)


def has_packages(manifests: Iterable[Mapping[str, Any]]) -> bool:
    """Whether there is anything to install."""
    keys = ("dependencies", "devDependencies", "optionalDependencies", "workspaces")
    return any(manifest.get(key) for manifest in manifests for key in keys)


def has_dev(manifests: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an installation with development packages differs from one without."""
    return any(manifest.get("devDependencies") for manifest in manifests)


# --- versions of node -------------------------------------------------------------------------------------------------


def npm_for_node(node_version: str) -> str:
    """Return the range of npm versions that run on a node version."""
    major = int(node_version.partition(".")[0])
    for least, npm in ((22, "^10"), (18, "^10"), (16, "^8"), (10, "^6")):
        if major >= least:
            return npm
    return "^6"
