"""What Node brings to a Dockerfile: the same commands as the builder `layers` runs, in stages of their own. Pure.

node-tools       the base image with the project's package manager
node-packages       the app's folder with all packages, for build steps
production-packages  `node_modules` folders without development packages, as the final image gets them
"""

import re
import shlex
from collections.abc import Mapping, Sequence

from services.builder.adapters.buildx.kitchen import (
    EPOCH,
    TOUCH,
    BaseImages,
    Kitchen,
    Part,
    compiler_lines,
    library_steps,
    run_line,
)
from services.builder.adapters.layers.node_versions import satisfies
from services.builder.errors import CannotBuild
from services.builder.install import node as plan
from services.builder.install import yarn_lock
from services.builder.install.node import Tool
from services.builder.install.node_faults import install_failed
from services.builder.install.requirements import ReadFile
from services.builder.ports import BuildOrder
from services.source.contract import Packages

_CACHES = "/knarr/caches"
_AGAIN = (
    "echo 'Note: it failed without development packages: they stay in the image.'; "
    "find . -name node_modules -prune -exec rm -rf {} +"
)
"""Between an installation without development packages, in which a script of the app failed, and one with them."""
_MARK = "/tmp/knarr-installed"  # noqa: S108 - in the image build, where nothing else runs
_REGISTRY = (
    'registry="${NPM_CONFIG_REGISTRY-${npm_config_registry-}}"; if [ -n "$registry" ]; then '
    'export YARN_NPM_REGISTRY_SERVER="$registry" BUN_CONFIG_REGISTRY="$registry"; fi'
)
_HEADERS = (
    'node="$(readlink -f "$(command -v node)")"; if [ -f "${node%/bin/*}/include/node/node.h" ]; then '
    'export npm_config_nodedir="${node%/bin/*}"; fi'
)
"""node-gyp compiles with the headers beside node, and downloads none."""
_ONLY_MODULES = (
    "find . -name node_modules -prune -o \\( -type f -o -type l \\) -exec rm -f {} +; "
    "find . -mindepth 1 -type d -empty ! -path '*/node_modules/*' -delete"
)
_ONLY_WRITTEN = (
    f"if [ -d node_modules ]; then find node_modules \\( -type f -o -type l \\) ! -newer {_MARK} -exec rm -f {{}} +; "
    "rm -rf node_modules/.cache node_modules/.vite node_modules/.vite-temp; "
    "find node_modules -type d -empty -delete; fi; "
    "find . -path ./node_modules -prune -o -name node_modules -prune -exec rm -rf {} +"
)
"""What build steps wrote into the packages (generated code) stays; packages come from their own stage."""
_STATE = "find . \\( -name .modules.yaml -o -name '.pnpm-workspace-state*' \\) -path '*node_modules*' -exec rm -f {} +"

_FINISH = ("mkdir -p node_modules", _STATE, _ONLY_MODULES)


def node_part(order: BuildOrder, packages: Packages, read: ReadFile, kitchen: Kitchen, *, in_image: bool) -> Part:
    """Return the stages that install the packages of a Node app.

    Args:
        order: What to build.
        packages: What to install, with what.
        read: Reads a file of the app.
        kitchen: Base images, secrets and limits.
        in_image: The final image needs the packages.

    Raises:
        CannotBuild: A file cannot be read, or no base image fits what the app asks for.
    """
    tool = plan.tool_for(packages, read)
    image = node_image(packages.version or order.description.runtime.version, kitchen.images)
    names = dict.fromkeys(("package.json", ".npmrc", *packages.manifests))
    contents = {name: content for name in names if (content := read(name)) is not None}
    manifests = [
        plan.read_manifest(name, content)
        for name, content in contents.items()
        if name.rpartition("/")[2] == "package.json"
    ]
    _refuse_without_addresses(packages, tool, contents)
    stages = _tools(image, tool, kitchen, order.app_id)
    source = "root/app/" if packages.needs_source else "knarr/dependencies/"
    texts = [content for name, content in contents.items() if name.rpartition("/")[2] != "package.json"]
    own_scripts = plan.has_own_scripts(manifests)
    installing = kitchen if own_scripts or packages.needs_source else kitchen.for_install(texts)
    install = _Installing(order=order, packages=packages, tool=tool, kitchen=installing)
    installs = plan.has_packages(manifests)
    stages += [
        *compiler_lines("node-tools", "node-compilers", kitchen),
        "FROM node-compilers AS node-packages",
        "WORKDIR /app",
        f"COPY {source} /app/",
        install.line(dev=True, then=[f"touch {_MARK}"], installs=installs),
    ]
    if in_image:
        with_dev = packages.include_dev or not plan.can_omit_dev(tool)
        stages += [
            "FROM node-compilers AS production-packages",
            "WORKDIR /out/app",
            f"COPY {source} /out/app/",
            install.line(
                dev=with_dev,
                then=[*_FINISH, *library_steps(kitchen), TOUCH],
                installs=installs,
                or_with_dev=own_scripts and not with_dev and plan.has_dev(manifests),
            ),
        ]
    runtime = "".join(f" {name}={value}" for name, value in plan.runtime_environment(tool).items())
    calls_tool = any(tool.name in word for argv in order.description.processes.values() for word in argv)
    files = {f"knarr/dependencies/{name}": content for name, content in contents.items()}
    return Part(
        image="node-tools" if calls_tool and tool.name != "npm" else image,
        ready="node-packages",
        stages=stages,
        env=f"NODE_ENV=production HOME=/app PATH=/app/node_modules/.bin:$PATH{runtime}",
        copies=["COPY --from=production-packages /out/ /"] if in_image else [],
        files=files,
        before_steps=[
            *install.exports(),
            'export NODE_ENV="${NODE_ENV:-production}" NEXT_TELEMETRY_DISABLED=1',
            'export PATH="/app/node_modules/.bin:$PATH"',
        ],
        caches=[f"id=knarr-node-{order.app_id},target={_CACHES}"],
        after_steps=[
            _ONLY_WRITTEN if in_image else "find . -name node_modules -prune -exec rm -rf {} +",
            "rm -f .yarn/install-state.gz .yarn/build-state.yml",
        ],
        explain=lambda lines, ending: install_failed(packages, ending, lines),
        writes_app=own_scripts,
    )


def _refuse_without_addresses(packages: Packages, tool: Tool, contents: Mapping[str, bytes]) -> None:
    """Refuse a lock file whose versions Yarn 1 would not install: only the engine knows its registry."""
    lock = packages.lock or ""
    if tool.name != "yarn" or tool.berry or lock not in contents:
        return
    if patterns := yarn_lock.unresolved(contents[lock].decode(errors="replace")):
        raise CannotBuild(
            f"{lock} has no address for {', '.join(patterns[:5])}",
            why="without a line `resolved`, Yarn 1 installs the newest version and not the locked one",
            todo="Write it again with `yarn install`, and commit it.",
        )


class _Installing:
    """The lines that install packages."""

    def __init__(self, *, order: BuildOrder, packages: Packages, tool: Tool, kitchen: Kitchen) -> None:
        self._order = order
        self._packages = packages
        self._tool = tool
        self._kitchen = kitchen
        self._sharing = ",sharing=locked" if tool.name == "yarn" else ""
        """Two stages install at the same time, and Yarn's cache is for one process."""

    def exports(self) -> list[str]:
        """Commands that set the tool's variables."""
        heap_mib = max(64, self._kitchen.memory_bytes * 3 // 4 // 1024**2)
        env = plan.tool_environment(self._tool, caches=_CACHES, environ={})
        options = f'export NODE_OPTIONS="--max-old-space-size={heap_mib} ${{NODE_OPTIONS-}}"'
        yarn_cache = ["if ! [ -d .yarn/cache ]; then export YARN_ENABLE_GLOBAL_CACHE=true; fi"]
        return [*_exports(env), _REGISTRY, _HEADERS, options, *(yarn_cache if self._tool.berry else [])]

    def line(self, *, dev: bool, then: Sequence[str], installs: bool, or_with_dev: bool = False) -> str:
        """The line that installs, and what follows in it.

        Args:
            dev: With development packages.
            then: Commands that follow.
            installs: There is something to install.
            or_with_dev: Where that fails, install once more with development packages: a script of the app needs one.
        """
        command = self._command(dev=dev)
        if or_with_dev:
            command = f"{command} || {{ {_AGAIN}; {self._command(dev=True)}; }}"
        steps = [*self.exports(), "unset NODE_ENV", command] if installs else []
        cache = f"id=knarr-node-{self._order.app_id},target={_CACHES}{self._sharing}"
        return run_line(self._kitchen, cache=cache, steps=[*steps, *then])

    def _command(self, *, dev: bool) -> str:
        return shlex.join(plan.install(self._packages, self._tool, dev=dev, caches=_CACHES, environ={}).command)


def node_image(wanted: str | None, images: BaseImages) -> str:
    """Return the first base image with a version that the app allows, or that of the major version that it names.

    Raises:
        CannotBuild: There is none.
    """
    first = re.search(r"\d+", wanted or "")
    exact = wanted is not None and re.fullmatch(r"[\^~=v ]*\d+(\.\d+)*(\.[x*])*", wanted.strip()) is not None
    for version in images.node_versions:
        # the tag is the newest of its major version, so a range that begins anywhere in it is satisfied
        same_major = exact and first is not None and first[0] == version
        if not wanted or satisfies(f"{version}.9999.9999", wanted) or same_major:
            return images.pinned(images.node.format(version=version))
    if exact and first is not None:
        return images.pinned(images.node.format(version=first[0]))
    raise CannotBuild(
        f"The app asks for node {str(wanted)[:60]!r}",
        why=f"base images are there for {', '.join(images.node_versions)}",
        todo="Ask for one of these (`engines.node` in package.json), or set KNARR_BUILDX_NODE_VERSIONS.",
        code="no_interpreter",
    )


def _tools(image: str, tool: Tool, kitchen: Kitchen, app_id: str) -> list[str]:
    if tool.version is None:
        return [f"FROM {image} AS node-tools"]
    spec = f"{tool.npm_package}@{tool.version}"
    quiet = "--global --force --no-audit --no-fund --no-update-notifier"
    steps = ["export npm_config_cache=/root/.npm"]
    if tool.hash is None:
        steps.append(f"npm install {quiet} {shlex.quote(spec)}")
    else:
        algorithm, digest = tool.hash
        check = f"echo '{digest}  '\"$file\" | {algorithm}sum -c -"
        if tool.berry:
            file = "$(npm root --global)/@yarnpkg/cli-dist/bin/yarn.js"
            steps += [f"npm install {quiet} {shlex.quote(spec)}", f'file="{file}"', check]
        else:
            packed = f'cd /tmp; file="$(npm pack --silent {shlex.quote(spec)})"'
            steps += [packed, check, f'npm install {quiet} "./$file"', 'rm "$file"']
    mount = f"id=knarr-npm-{app_id},target=/root/.npm"
    return [f"FROM {image} AS node-tools", run_line(kitchen, cache=mount, steps=[*steps, _RESET], variables=False)]


_RESET = f"find /usr/local/lib/node_modules /usr/local/bin -exec touch -h -d @{EPOCH} {{}} +"


def _exports(env: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
