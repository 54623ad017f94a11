"""Node apps, really built where node is installed, and what is said where it is not."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from services.builder.adapters.layers.node_versions import satisfies
from services.builder.errors import BuildFailed, CannotBuild, FileTooLarge
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.npm_registry import NpmRegistry, npm_registry
from tests.services.builder.support import MIB, Bench, Files, make_bench, make_limits, run_process, unpacked

with_node = pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")

SERVER = "console.log(process.env.NODE_ENV, require('greet').words, require.resolve('greet'))\n"
GREET = {
    "vendor/greet/package.json": '{"name": "greet", "version": "1.0.0", "main": "index.js"}',
    "vendor/greet/index.js": "exports.words = 'hello'\n",
}
GREET_DEPENDENCY = {"greet": "file:vendor/greet"}


def package(**more: object) -> str:
    return orjson.dumps({"name": "shop", "version": "1.0.0", **more}).decode()


def node_app(
    *, build: str | None = None, caches: tuple[str, ...] = (), command: tuple[str, ...] = (), **packages: object
) -> AppDescription:
    """An app with packages of npm; `build` is a script of package.json that runs after the installation."""
    asked = {"language": "node", "tool": "npm", "manifests": ("package.json",), **packages}
    step = BuildStep(
        name=f"scripts.{build} of package.json", command=("npm", "run", str(build)), language="node", caches=caches
    )
    return AppDescription(
        runtime=Runtime(kind="node"),
        processes={"web": command or ("node", "server.js")},
        packages=(Packages.model_validate(asked),),
        build=(step,) if build else (),
    )


NODE = node_app()
PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture
def registry() -> Iterator[NpmRegistry]:
    with npm_registry() as found:
        yield found


@pytest.fixture
def online(tmp_path: Path, registry: NpmRegistry) -> Bench:
    """A bench whose tools know that registry and no other."""
    return make_bench(tmp_path, environ={"PATH": os.environ["PATH"], "NPM_CONFIG_REGISTRY": registry.url})


def lock_of(registry: NpmRegistry, *packages: tuple[str, str], **root: object) -> str:
    """A package-lock.json without addresses."""
    entries = {
        f"node_modules/{name}": {"version": version, "integrity": registry.integrity(name, version)}
        for name, version in packages
    }
    return orjson.dumps(
        {
            "name": "shop",
            "version": "1.0.0",
            "lockfileVersion": 3,
            "packages": {"": {"name": "shop", **root}, **entries},
        }
    ).decode()


# --- packages ---------------------------------------------------------------------------------------------------------


@with_node
async def test_an_app_without_packages_runs(bench: Bench, tmp_path: Path) -> None:
    """Nothing is installed; node is on the path and knows that this is production."""
    files: Files = {"package.json": package(), "server.js": "console.log(process.env.NODE_ENV)\n"}

    built = await bench.build(NODE, files)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "production\n"


@with_node
async def test_a_package_of_the_app_itself_is_found_beside_the_layer(bench: Bench, tmp_path: Path) -> None:
    """A layer is shared by releases, so the link to a folder of the app is in the app."""
    files: Files = {**GREET, "package.json": package(dependencies=GREET_DEPENDENCY), "server.js": SERVER}

    built = await bench.build(node_app(needs_source=True), files)

    root = await unpacked(bench, built, tmp_path / "root")
    assert (root / "app/node_modules/greet").readlink() == Path("../vendor/greet")
    assert (await run_process(bench, built, root)).startswith("production hello ")
    assert "no lock file" in bench.output


@with_node
@pytest.mark.parametrize("lock", ["package-lock.json", "npm-shrinkwrap.json"])
async def test_the_lock_file_decides_the_versions(
    online: Bench, registry: NpmRegistry, tmp_path: Path, lock: str
) -> None:
    """A newer version that package.json would allow is not installed; the log names the file that counted."""
    for version in ("2.0.0", "2.1.3"):
        registry.add("ms", version)
    wanted = {"ms": "^2.0.0"}
    files: Files = {
        "package.json": package(dependencies=wanted),
        lock: lock_of(registry, ("ms", "2.0.0"), dependencies=wanted),
        "server.js": "console.log(require('ms/package.json').version)\n",
    }

    built = await online.build(node_app(lock=lock, manifests=("package.json", lock)), files)

    assert await run_process(online, built, await unpacked(online, built, tmp_path / "root")) == "2.0.0\n"
    assert f"packages of {lock}" in online.output


@with_node
async def test_a_byte_order_mark_is_passed_over(bench: Bench, tmp_path: Path) -> None:
    """Npm reads such a file, so knarr does."""
    files: Files = {"package.json": b"\xef\xbb\xbf" + package().encode(), "server.js": "console.log('ok')\n"}

    built = await bench.build(NODE, files)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "ok\n"


@with_node
async def test_packages_of_workspaces_are_found_from_their_folders(
    online: Bench, registry: NpmRegistry, tmp_path: Path
) -> None:
    """The root's and the workspace's versions of a package differ: two `node_modules`, two links into one layer."""
    registry.add("ms", "1.0.0")
    registry.add("ms", "2.0.0")
    files: Files = {
        "package.json": package(workspaces=["packages/lib"], dependencies={"ms": "2.0.0", "lib": "*"}),
        "packages/lib/package.json": '{"name": "lib", "version": "1.0.0", "dependencies": {"ms": "1.0.0"}}',
        "packages/lib/index.js": "exports.ms = require('ms/package.json').version\n",
        "server.js": "console.log(require('ms/package.json').version, require('lib').ms)\n",
    }
    manifests = ("package.json", "packages/lib/package.json")

    for attempt in ("first", "from the cache"):
        built = await online.build(node_app(manifests=manifests), {**files, "attempt": attempt})
        root = await unpacked(online, built, tmp_path / attempt)
        assert (root / "app/packages/lib/node_modules").readlink() == Path(
            "../../../layers/node/packages/lib/node_modules"
        )
        assert await run_process(online, built, root) == "2.0.0 1.0.0\n"


# --- development packages and build steps -----------------------------------------------------------------------------


@with_node
async def test_the_build_script_runs_in_the_app_and_its_work_is_in_the_image(bench: Bench, tmp_path: Path) -> None:
    """It may use development packages, which are no part of the image."""
    manifest = package(devDependencies=GREET_DEPENDENCY, scripts={"build": "node build.js"})
    build = "require('fs').writeFileSync('built.txt', require('greet').words)\n"
    server = (
        "const fs = require('fs')\nconsole.log(fs.readFileSync('built.txt') + '', fs.existsSync('node_modules/greet'))"
    )
    files: Files = {**GREET, "package.json": manifest, "build.js": build, "server.js": server}

    built = await bench.build(node_app(build="build", needs_source=True), files)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "hello false\n"
    assert [layer.cached for layer in built.layers] == [False, False]
    assert bytes(bench.output.text).count(b"$ npm install") == 1, "one installation, then pruned"


@with_node
async def test_development_packages_stay_where_the_start_command_needs_one(bench: Bench, tmp_path: Path) -> None:
    """`include_dev`: the image has what `start` calls."""
    manifest = package(devDependencies=GREET_DEPENDENCY)
    files: Files = {**GREET, "package.json": manifest, "server.js": SERVER}

    built = await bench.build(node_app(include_dev=True, needs_source=True), files)

    root = await unpacked(bench, built, tmp_path / "root")
    assert (await run_process(bench, built, root)).startswith("production hello ")


BUILT_FOR = "require('tool'); console.log('built for', process.env.CUSTOMER)\n"


@with_node
async def test_a_changed_line_or_config_var_installs_nothing(online: Bench, registry: NpmRegistry) -> None:
    """The packages' layer and those for the build are there; only the build step runs again."""
    registry.add("ms", "2.0.0")
    registry.add("tool", "1.0.0")
    manifest = package(
        dependencies={"ms": "2.0.0"}, devDependencies={"tool": "1.0.0"}, scripts={"build": "node build.js"}
    )
    files: Files = {"package.json": manifest, "build.js": BUILT_FOR, "server.js": "1\n"}
    first = await online.build(node_app(build="build"), files)
    asked = len(registry.asked)

    order = online.order(node_app(build="build"), {**files, "server.js": "2\n"})
    second = await online.run(replace(order, variables={"CUSTOMER": "Ada"}))

    assert [layer.cached for layer in second.layers] == [True, False]
    assert first.layers[0].digest == second.layers[0].digest
    assert b"\nbuilt for Ada\n" in online.output.text
    assert len(registry.asked) == asked


@with_node
async def test_a_build_step_that_spoils_a_package_does_not_spoil_the_next_build(
    online: Bench, registry: NpmRegistry, tmp_path: Path
) -> None:
    """What a step changes is in that build's image; the next build begins with the packages as they were published."""
    registry.add("ms", "2.0.0", {"index.js": "exports.text = 'published'\n"})
    spoil = "const fs = require('fs'); if (fs.existsSync('spoil')) fs.writeFileSync('node_modules/ms/index.js', %r)\n"
    manifest = package(dependencies={"ms": "2.0.0"}, scripts={"build": "node build.js"})
    files: Files = {
        "package.json": manifest,
        "build.js": spoil % "exports.text = 'spoiled'",
        "server.js": "console.log(require('ms').text)\n",
    }

    texts = []
    for number, more in enumerate(({}, {"spoil": "x"}, {})):
        built = await online.build(node_app(build="build"), {**files, **more, "number": str(number)})
        texts.append(await run_process(online, built, await unpacked(online, built, tmp_path / str(number))))

    assert texts == ["published\n", "spoiled\n", "published\n"]


@with_node
async def test_generated_code_among_the_packages_is_in_the_image(
    online: Bench, registry: NpmRegistry, tmp_path: Path
) -> None:
    """As Prisma generates its client; a tool's cache beside it is not."""
    registry.add("ms", "2.0.0")
    build = (
        "const fs = require('fs')\n"
        "for (const name of ['.prisma', '.cache']) {\n"
        "  fs.mkdirSync(`node_modules/${name}`, {recursive: true})\n"
        "  fs.writeFileSync(`node_modules/${name}/index.js`, `exports.from = '${fs.readFileSync('schema')}'`)\n"
        "}\n"
    )
    server = "console.log(require('.prisma').from, require('fs').existsSync('node_modules/.cache'))\n"
    files: Files = {
        "package.json": package(dependencies={"ms": "2.0.0"}, scripts={"build": "node build.js"}),
        "build.js": build,
        "server.js": server,
    }

    for schema in ("one", "two", "one"):
        built = await online.build(node_app(build="build"), {**files, "schema": schema})
        root = await unpacked(online, built, tmp_path / f"{schema}-{len(online.notes)}")
        assert await run_process(online, built, root) == f"{schema} false\n"


@with_node
async def test_a_build_script_that_fails_fails_the_build(bench: Bench) -> None:
    """For good, with its words in the log."""
    files: Files = {"package.json": package(scripts={"build": "node -e \"console.log('oh no'); process.exit(7)\""})}

    with pytest.raises(BuildFailed, match=r"scripts\.build of package\.json"):
        await bench.build(node_app(build="build"), files)

    assert "oh no" in bench.output


@with_node
async def test_a_build_script_that_writes_too_large_a_file_names_the_limit(tmp_path: Path) -> None:
    """Behind npm and a shell, too."""
    bench = make_bench(tmp_path, limits=make_limits(file_bytes=4 * MIB))
    script = "dd if=/dev/zero of=big bs=1M count=50 status=none"
    files: Files = {"package.json": package(scripts={"build": script})}

    with pytest.raises(FileTooLarge, match="KNARR_BUILD_FILE_BYTES"):
        await bench.build(node_app(build="build"), files)


@with_node
@pytest.mark.parametrize("cache", [".next/cache", "../outside", "linked/cache"])
async def test_a_step_keeps_its_caches_for_the_apps_next_build(bench: Bench, tmp_path: Path, cache: str) -> None:
    """Below the app only and never through a link; the folder is not in the image, and another app does not see it."""
    build = (
        f"const fs = require('fs'), path = {cache!r}\n"
        "console.log(fs.existsSync(path + '/kept') ? 'warm' : 'cold')\n"
        "fs.mkdirSync(path, {recursive: true}); fs.writeFileSync(path + '/kept', '1')\n"
    )
    prepare = "mkdir -p real && ln -sfn real linked" if cache.startswith("linked") else "true"
    files: Files = {"package.json": package(scripts={"build": f"{prepare} && node build.js"}), "build.js": build}
    described = node_app(build="build", caches=(cache,))

    for number in ("1", "2"):
        built = await bench.build(described, {**files, "number": number})
    kept = cache == ".next/cache"
    assert ("\nwarm\n" in bench.output) is kept
    assert not (await unpacked(bench, built, tmp_path / "root") / "app/.next/cache/kept").exists()
    bench.app_id, bench.output.text = "0192f0c1-0000-7abc-8def-00000000000f", bytearray()
    await bench.build(described, {**files, "number": "3"})
    assert "\ncold\n" in bench.output


@with_node
async def test_what_the_apps_own_install_script_writes_is_in_every_image(bench: Bench, tmp_path: Path) -> None:
    """`postinstall` builds the app in many repositories; the second build of one source has it too."""
    script = "node -e \"require('fs').writeFileSync('made.txt', 'made')\""
    files: Files = {
        "package.json": package(scripts={"postinstall": script}, dependencies=GREET_DEPENDENCY),
        **GREET,
        "server.js": "console.log(require('fs').readFileSync('made.txt') + '')\n",
    }

    for attempt in ("first", "second"):
        built = await bench.build(node_app(needs_source=True), files)
        assert await run_process(bench, built, await unpacked(bench, built, tmp_path / attempt)) == "made\n"


@with_node
async def test_an_installation_leaves_the_apps_own_files_as_they_were(
    online: Bench, registry: NpmRegistry, tmp_path: Path
) -> None:
    """Yarn writes package.json anew and leaves its state, so a build from the cache would give another image."""
    program = (
        "#!/usr/bin/env node\nconst fs = require('fs')\nif (process.argv[2] === '--version') console.log('4.1.0')\n"
        "else { fs.writeFileSync('package.json', '{}'); fs.mkdirSync('.yarn', {recursive: true})\n"
        "fs.writeFileSync('.yarn/install-state.gz', String(Math.random())) }\n"
    )
    registry.add("@yarnpkg/cli-dist", "4.1.0", {"yarn.js": program}, bin={"yarn": "yarn.js"})
    bench = make_bench(tmp_path, environ={**online.sandbox.environment_passed(), **PATH}, fetch_toolchains=True)
    bench.app_id = online.app_id
    files: Files = {"package.json": package(dependencies={"ms": "1"}), "yarn.lock": "x", "server.js": "1\n"}
    described = node_app(tool="yarn", tool_version="4.1.0", lock="yarn.lock", manifests=("package.json", "yarn.lock"))

    built = [await bench.build(described, files) for _ in range(2)]

    assert built[0].digest == built[1].digest
    root = await unpacked(bench, built[0], tmp_path / "root")
    assert (root / "app/package.json").read_text() == files["package.json"]
    assert not (root / "app/.yarn").exists()


# --- errors -----------------------------------------------------------------------------------------------------------


@with_node
async def test_a_lock_file_that_does_not_fit_names_both_files_and_the_package(
    online: Bench, registry: NpmRegistry
) -> None:
    """The tool's first lines say so; the last ones are its usage text."""
    for version in ("2.0.0", "2.1.3"):
        registry.add("ms", version)
    lock = lock_of(registry, ("ms", "2.0.0"), dependencies={"ms": "^2.0.0"})
    files: Files = {"package.json": package(dependencies={"ms": "^2.1.3"}), "package-lock.json": lock}
    described = node_app(lock="package-lock.json", manifests=("package.json", "package-lock.json"))

    with pytest.raises(BuildFailed, match=r"package\.json and package-lock\.json do not agree") as failure:
        await online.build(described, files)

    assert "ms@2.0.0 does not satisfy ms@2.1.3" in failure.value.why or "ms@" in failure.value.why
    assert "Usage" not in failure.value.message
    assert "npm install --package-lock-only" in failure.value.todo


async def test_a_machine_without_node_says_what_to_install(tmp_path: Path) -> None:
    """A final error, not a traceback."""
    bench = make_bench(tmp_path, environ={"PATH": str(tmp_path)})

    with pytest.raises(CannotBuild, match=r"node, npm, npx is not on PATH. Install Node.js"):
        await bench.build(NODE, {"package.json": package()})


@with_node
@pytest.mark.parametrize("manifest", ["{", "[]", '{"dependencies": ["x"]}'])
async def test_a_package_json_that_cannot_be_read_is_named(bench: Bench, manifest: str) -> None:
    """Wrong JSON, or JSON of another shape."""
    with pytest.raises(CannotBuild, match=r"package\.json"):
        await bench.build(NODE, {"package.json": manifest})


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        *[(each, True) for each in ("20", "20.x", "20.11.1", ">=18", ">=18 <23", "^20.1", "~20.11.0", "*", "x", "")],
        *[(each, True) for each in ("18 - 20", "18 || 20", "v20", ">= 18", "<=20", "=20", "20.*", ">18.0.0", "~>20")],
        *[(each, False) for each in ("18", "<20", "^18", "~20.10", ">20", ">=21", "18 || 22", "16 - 19", "^0.3")],
        *[(each, None) for each in ("lts/*", "latest", "20;", "node 20", ">=18,<20")],
    ],
)
def test_ranges_are_read_as_npm_reads_them(wanted: str, fits: bool | None) -> None:
    """node-semver's grammar, for node 20.11.1; None: not understood."""
    assert satisfies("20.11.1", wanted) is fits
