"""Node apps, really built where node is installed, and what is said where it is not."""

import shutil
from pathlib import Path

import orjson
import pytest

from services.builder.adapters.layers.node_versions import satisfies
from services.builder.errors import BuildFailed, CannotBuild
from services.source.contract import Runtime
from tests.services.builder.support import NODE, Bench, Files, make_bench, run_process, unpacked

with_node = pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")

SERVER = "console.log(process.env.NODE_ENV, require('greet').words, require.resolve('greet'))\n"
GREET = {
    "vendor/greet/package.json": '{"name": "greet", "version": "1.0.0", "main": "index.js"}',
    "vendor/greet/index.js": "exports.words = 'hello'\n",
}


def package(**more: object) -> str:
    return orjson.dumps({"name": "shop", "version": "1.0.0", **more}).decode()


@with_node
async def test_an_app_without_packages_runs(bench: Bench, tmp_path: Path) -> None:
    """Nothing is installed; node is on the path and knows that this is production."""
    files: Files = {"package.json": package(), "server.js": "console.log(process.env.NODE_ENV)\n"}

    built = await bench.build(NODE, files)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "production\n"


@with_node
async def test_packages_are_in_a_layer_that_the_app_links_to(bench: Bench, tmp_path: Path) -> None:
    """`/app/node_modules` is a relative link; a folder of the app as a package is found from there too."""
    files: Files = {**GREET, "package.json": package(dependencies={"greet": "file:vendor/greet"}), "server.js": SERVER}

    built = await bench.build(NODE, files)

    root = await unpacked(bench, built, tmp_path / "root")
    assert (root / "app/node_modules").readlink() == Path("../layers/node/node_modules")
    assert (await run_process(bench, built, root)).startswith("production hello ")
    assert "no package-lock.json" in bench.output


@with_node
async def test_the_build_script_runs_in_the_app_and_its_work_is_in_the_image(bench: Bench, tmp_path: Path) -> None:
    """It may use development packages, which are no part of the image."""
    manifest = package(devDependencies={"greet": "file:vendor/greet"}, scripts={"build": "node build.js"})
    build = "require('fs').writeFileSync('built.txt', require('greet').words)\n"
    server = (
        "const fs = require('fs')\nconsole.log(fs.readFileSync('built.txt') + '', fs.existsSync('node_modules/greet'))"
    )
    files: Files = {**GREET, "package.json": manifest, "build.js": build, "server.js": server}

    built = await bench.build(NODE, files)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "hello false\n"
    assert [layer.cached for layer in built.layers] == [False, False]


@with_node
async def test_a_changed_line_rebuilds_the_apps_layer_only(bench: Bench) -> None:
    """The packages' layer comes from the cache; the build script runs again with cached development packages."""
    manifest = package(scripts={"build": "node build.js"})
    files: Files = {"package.json": manifest, "build.js": "console.log('built')\n", "server.js": "1\n"}
    first = await bench.build(NODE, files)

    second = await bench.build(NODE, {**files, "server.js": "2\n"})

    assert [layer.cached for layer in second.layers] == [True, False]
    assert first.layers[0].digest == second.layers[0].digest
    assert bytes(bench.output.text).count(b"\nbuilt\n") == 2


@with_node
async def test_a_build_script_that_fails_fails_the_build(bench: Bench) -> None:
    """For good, with its words in the log."""
    files: Files = {"package.json": package(scripts={"build": "node -e \"console.log('oh no'); process.exit(7)\""})}

    with pytest.raises(BuildFailed, match="script `build`"):
        await bench.build(NODE, files)

    assert "oh no" in bench.output


@with_node
async def test_a_lock_file_that_does_not_fit_fails_the_build(bench: Bench) -> None:
    """`npm ci` refuses, and says so."""
    lock = '{"name": "shop", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "shop"}}}'
    files: Files = {
        **GREET,
        "package.json": package(dependencies={"greet": "file:vendor/greet"}),
        "package-lock.json": lock,
    }

    with pytest.raises(BuildFailed, match="could not be installed"):
        await bench.build(NODE, files)


@with_node
@pytest.mark.parametrize("asked", ["engines", "runtime"])
async def test_another_node_version_is_a_clear_error(bench: Bench, asked: str) -> None:
    """What was asked for, what there is, what to change."""
    manifest = package(engines={"node": "6.x"}) if asked == "engines" else package()
    runtime = Runtime(kind="node", version="6" if asked == "runtime" else None)

    with pytest.raises(CannotBuild, match=r"asks for node 6.*this machine has \d+"):
        await bench.build(NODE.model_copy(update={"runtime": runtime}), {"package.json": manifest})


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
