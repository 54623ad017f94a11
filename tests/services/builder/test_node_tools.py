"""Tools and versions of Node that a project asks for, fetched from the npm registry and kept."""

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from services.builder.errors import BuildFailed, CannotBuild, RegistryUnavailable
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.npm_registry import NpmRegistry, npm_registry
from tests.services.builder.support import Bench, Files, make_bench, run_process, unpacked

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")

INSTALLER = """#!/usr/bin/env node
const fs = require('fs')
if (process.argv[2] === '--version') { console.log('VERSION'); process.exit(0) }
if (process.argv[2] === 'run') {
  const script = require(process.cwd() + '/package.json').scripts[process.argv[3]]
  require('child_process').execSync(script, {stdio: 'inherit'})
  process.exit(0)
}
fs.mkdirSync('node_modules/ms', {recursive: true})
const locked = fs.readFileSync('LOCK', 'utf8').match(/ms@(\\S+)/)[1]
fs.writeFileSync('node_modules/ms/package.json', JSON.stringify({name: 'ms', version: locked}))
console.log('arguments: ' + process.argv.slice(2).join(' '))
"""
"""A package manager that reads `ms@VERSION` from its lock file."""
SERVER = "console.log(require('ms/package.json').version)\n"


@pytest.fixture
def registry() -> Iterator[NpmRegistry]:
    with npm_registry() as found:
        yield found


def bench_at(folder: Path, registry: NpmRegistry, *, fetch: bool = True, **more: str) -> Bench:
    environ = {"PATH": os.environ["PATH"], "NPM_CONFIG_REGISTRY": registry.url, **more}
    return make_bench(folder, environ=environ, fetch_toolchains=fetch)


def tool(registry: NpmRegistry, name: str, version: str, lock: str, program: str) -> bytes:
    """Publish a package manager."""
    text = INSTALLER.replace("VERSION", version).replace("LOCK", lock)
    return registry.add(name, version, {"cli.js": text}, bin={program: "cli.js"})


def app(tool: str, lock: str, version: str | None, *, node: str | None = None, build: bool = False) -> AppDescription:
    packages = Packages.model_validate(
        {
            "language": "node",
            "tool": tool,
            "tool_version": version,
            "lock": lock,
            "manifests": ("package.json", lock),
            "version": node,
        }
    )
    step = BuildStep(name="scripts.build of package.json", command=(tool, "run", "build"), language="node")
    return AppDescription(
        runtime=Runtime(kind="node"),
        processes={"web": ("node", "server.js"), "tool": (tool, "--version")},
        packages=(packages,),
        build=(step,) if build else (),
    )


def files(lock: str) -> Files:
    manifest = {"name": "shop", "dependencies": {"ms": "^2.0.0"}, "scripts": {"build": "node -p 1+1"}}
    return {"package.json": orjson.dumps(manifest), lock: "# yarn lockfile v1\nms@2.0.0\n", "server.js": SERVER}


@pytest.mark.parametrize(
    ("npm_package", "version", "lock"),
    [
        ("pnpm", "9.1.2", "pnpm-lock.yaml"),
        ("yarn", "1.22.22", "yarn.lock"),
        ("@yarnpkg/cli-dist", "4.1.0", "yarn.lock"),
    ],
)
async def test_a_tool_is_fetched_once_and_installs_what_its_lock_file_says(
    tmp_path: Path, registry: NpmRegistry, npm_package: str, version: str, lock: str
) -> None:
    """In the version that the project names; the app's processes and build steps find it."""
    name = lock.partition(".")[0].removesuffix("-lock")
    tool(registry, npm_package, version, lock, name)
    bench = bench_at(tmp_path, registry)

    built = await bench.build(app(name, lock, version, build=True), files(lock))

    root = await unpacked(bench, built, tmp_path / "root")
    assert await run_process(bench, built, root) == "2.0.0\n"
    assert await run_process(bench, built, root, "tool") == f"{version}\n"
    assert f"{name} {version}: packages of {lock}" in bench.output
    asked = len(registry.asked)
    await bench.build(app(name, lock, version, build=True), {**files(lock), "new": "x"})
    assert len(registry.asked) == asked


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", "sha1"])
async def test_a_checksum_of_package_manager_is_checked(tmp_path: Path, registry: NpmRegistry, algorithm: str) -> None:
    """As Corepack does: `packageManager: pnpm@9.1.2+sha512.…`."""
    tarball = tool(registry, "pnpm", "9.1.2", "pnpm-lock.yaml", "pnpm")
    right = hashlib.new(algorithm, tarball).hexdigest()
    bench = bench_at(tmp_path, registry)

    wrong = "0" * len(right)
    with pytest.raises(CannotBuild, match=f"{algorithm} differs"):
        await bench.build(app("pnpm", "pnpm-lock.yaml", f"9.1.2+{algorithm}.{wrong}"), files("pnpm-lock.yaml"))
    await bench.build(app("pnpm", "pnpm-lock.yaml", f"9.1.2+{algorithm}.{right}"), files("pnpm-lock.yaml"))


async def test_a_version_that_does_not_exist_is_final(tmp_path: Path, registry: NpmRegistry) -> None:
    """Another attempt would not find it."""
    tool(registry, "pnpm", "9.1.2", "pnpm-lock.yaml", "pnpm")

    with pytest.raises(CannotBuild, match=r"The npm registry has no pnpm 99\.0\.0"):
        await bench_at(tmp_path, registry).build(app("pnpm", "pnpm-lock.yaml", "99.0.0"), files("pnpm-lock.yaml"))


async def test_without_a_network_the_error_says_how(tmp_path: Path, registry: NpmRegistry) -> None:
    """Retryable, with what to do on the machine."""
    registry.url = "http://127.0.0.1:9"
    settings = tmp_path / "npmrc"
    settings.write_text("fetch-retries=0\n")  # npm waits ten seconds and more between attempts
    bench = bench_at(tmp_path, registry, NPM_CONFIG_USERCONFIG=str(settings))

    with pytest.raises(RegistryUnavailable, match=r"npm install --global pnpm@9\.1\.2"):
        await bench.build(app("pnpm", "pnpm-lock.yaml", "9.1.2"), files("pnpm-lock.yaml"))


@pytest.mark.parametrize("node", [None, "18"])
async def test_a_platform_that_fetches_nothing_says_so(tmp_path: Path, registry: NpmRegistry, node: str | None) -> None:
    """KNARR_FETCH_TOOLCHAINS=false: what is missing, and both ways to get it."""
    bench = bench_at(tmp_path, registry, fetch=False)

    with pytest.raises(CannotBuild, match="KNARR_FETCH_TOOLCHAINS"):
        await bench.build(app("pnpm", "pnpm-lock.yaml", "9.1.2", node=node), files("pnpm-lock.yaml"))
    assert registry.asked == []


async def test_another_node_is_fetched_with_an_npm_that_runs_on_it(tmp_path: Path, registry: NpmRegistry) -> None:
    """`engines.node` that the machine's does not satisfy; the image starts that one."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"node-{platform.system().lower()}-{machine}"
    program = f'#!/bin/sh\n[ "$1" = --version ] && echo v16.20.2 && exit\nexec \'{shutil.which("node")}\' "$@"\n'
    registry.add(name, "16.20.2", {"bin/node": program})
    registry.add(
        "npm",
        "8.19.4",
        {"cli.js": "#!/usr/bin/env node\nconsole.log('8.19.4')\n"},
        bin={"npm": "cli.js", "npx": "cli.js"},
    )
    tool(registry, "pnpm", "8.1.0", "pnpm-lock.yaml", "pnpm")
    described = app("pnpm", "pnpm-lock.yaml", "8.1.0", node="16.x").model_copy(
        update={"processes": {"web": ("node", "--version")}}
    )
    bench = bench_at(tmp_path, registry)

    built = await bench.build(described, files("pnpm-lock.yaml"))

    root = await unpacked(bench, built, tmp_path / "root")
    assert await run_process(bench, built, root) == "v16.20.2\n"
    assert "node 16.20.2, pnpm 8.1.0" in bench.output


async def test_a_tool_that_refuses_the_lock_file_is_told_with_both_names(tmp_path: Path, registry: NpmRegistry) -> None:
    """Pnpm's own words for it."""
    refusing = "#!/usr/bin/env node\nif (process.argv[2] === '--version') console.log('9.1.2')\nelse {\n"
    refusing += "console.log(' ERR_PNPM_OUTDATED_LOCKFILE  Cannot install with frozen-lockfile'); process.exit(1) }\n"
    registry.add("pnpm", "9.1.2", {"cli.js": refusing}, bin={"pnpm": "cli.js"})

    with pytest.raises(BuildFailed, match=r"package\.json and pnpm-lock\.yaml do not agree"):
        await bench_at(tmp_path, registry).build(app("pnpm", "pnpm-lock.yaml", "9.1.2"), files("pnpm-lock.yaml"))
