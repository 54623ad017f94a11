"""Python apps, really built: packages by uv, a layer of their own, and an app that runs from the image."""

import platform
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from services.builder.adapters.layers.image import HOST_PATH
from services.builder.adapters.layers.interpreters import Interpreters
from services.builder.errors import BuildFailed, CannotBuild
from services.source.contract import Packages, Runtime
from tests.services.builder.support import (
    NO_PACKAGES,
    PIP,
    PROCFILE,
    PYPROJECT,
    PYTHON,
    Bench,
    Files,
    make_bench,
    run_process,
    unpacked,
    wheel,
    write_files,
)

APP = "import greet, sys\nprint(greet.__file__, greet.VERSION, sys.path)\n"
SYSCONFIG = "# system configuration generated and used by the sysconfig module\nbuild_time_vars = {}\n"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
WHEEL = "greet-1.0-py3-none-any.whl"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / WHEEL).write_bytes(wheel("greet", scripts={"greet": "greet:main"}))
    return folder


@pytest.fixture
def offline(wheels: Path) -> Mapping[str, str]:
    """An environment whose package index is a folder."""
    return {"PIP_FIND_LINKS": str(wheels), "UV_OFFLINE": "1", "PATH": HOST_PATH}


@pytest.fixture
def bench(tmp_path: Path, offline: Mapping[str, str]) -> Bench:
    return make_bench(tmp_path, environ=offline)


def app(**more: str) -> Files:
    return {"app.py": APP, "requirements.txt": "greet==1.0\n", **more}


async def test_an_app_finds_its_packages_in_the_image(bench: Bench, tmp_path: Path) -> None:
    """`python app.py` imports what requirements.txt names, from the layer, wherever the image is unpacked."""
    built = await bench.build(PYTHON, app())

    root = await unpacked(bench, built, tmp_path / "root")
    printed = await run_process(bench, built, root)

    assert printed.startswith(f"{root}/layers/python/lib/python{VERSION}/site-packages/greet.py 1.0")
    assert "installing dependencies" in bench.notes


async def test_what_the_host_has_installed_is_not_the_apps(bench: Bench, tmp_path: Path) -> None:
    """An app that forgot to name a package fails on every machine alike."""
    built = await bench.build(PYTHON, app())

    printed = await run_process(bench, built, await unpacked(bench, built, tmp_path / "root"))

    assert "dist-packages" not in printed
    sites = [part.strip(" ']\n") for part in printed.split(",") if "site-packages" in part]
    assert [site.partition("/layers/")[2] for site in sites[1:]] == [f"python/lib/python{VERSION}/site-packages"]


async def test_scripts_of_packages_are_on_the_path(bench: Bench, tmp_path: Path, wheels: Path) -> None:
    """`gunicorn`, `flask` and the like start with the right interpreter."""
    files = {"greet.py": "VERSION = '1.0'\ndef main():\n    print('hello from a script')\n"}
    (wheels / WHEEL).write_bytes(wheel("greet", files=files, scripts={"greet": "greet:main"}))
    description = PYTHON.model_copy(update={"processes": {"web": ("greet",)}})

    built = await bench.build(description, app())

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "hello from a script\n"


async def test_a_changed_line_rebuilds_the_apps_layer_only(bench: Bench) -> None:
    """The dependency layer comes from the cache, with the same digest."""
    first = await bench.build(PYTHON, app())
    second = await bench.build(PYTHON, app(**{"app.py": APP + "# changed\n"}))

    assert [layer.cached for layer in first.layers] == [False, False]
    assert [layer.cached for layer in second.layers] == [True, False]
    assert first.layers[0].digest == second.layers[0].digest
    assert first.layers[1].digest != second.layers[1].digest


async def test_a_changed_config_var_installs_packages_only_where_installers_read_it(bench: Bench) -> None:
    """The layer is shared by all values of the others, and no installation gets these."""
    order = bench.order(PYTHON, app())
    first = await bench.run(order)
    second = await bench.run(replace(bench.order(PYTHON, app()), variables={"API_KEY": "a secret"}))
    third = await bench.run(replace(bench.order(PYTHON, app()), variables={"UV_HTTP_RETRIES": "1"}))

    assert [each.layers[0].cached for each in (first, second, third)] == [False, True, False]
    assert first.digest == second.digest == third.digest


async def test_two_fresh_installs_give_the_same_bytes(tmp_path: Path, offline: Mapping[str, str]) -> None:
    """The digest depends on the source, not on the builder, the folder or the time."""
    one = make_bench(tmp_path, environ=offline, cache="one")
    two = make_bench(tmp_path, environ=offline, cache="two")
    two.app_id = one.app_id

    first, second = await one.build(PYTHON, app()), await two.build(PYTHON, app())

    assert not any(layer.cached for layer in (*first.layers, *second.layers))
    assert first.digest == second.digest


async def test_packages_are_compiled_and_their_bytecode_is_not_checked_against_times(
    bench: Bench, tmp_path: Path
) -> None:
    """PEP 552: flags 1 are hash-based and unchecked; so the time in the image does not matter."""
    root = await unpacked(bench, await bench.build(PYTHON, app()), tmp_path / "root")

    (bytecode,) = (root / f"layers/python/lib/python{VERSION}/site-packages/__pycache__").glob("greet.*.pyc")
    assert bytecode.read_bytes()[4:8] == (1).to_bytes(4, "little")


async def test_dependencies_are_read_from_pyproject(bench: Bench, tmp_path: Path) -> None:
    """`[project] dependencies`, and only those: the project itself is not installed."""
    pyproject = '[project]\nname = "shop"\nversion = "1"\ndependencies = ["greet==1.0"]\n'

    built = await bench.build(PYPROJECT, {"app.py": APP, "pyproject.toml": pyproject})

    root = await unpacked(bench, built, tmp_path / "root")
    assert " 1.0 " in await run_process(bench, built, root)
    assert not list((root / "layers/python/lib").rglob("shop*"))


async def test_an_app_without_dependencies_runs_too(bench: Bench, tmp_path: Path) -> None:
    """No requirements.txt, no pyproject.toml: just the interpreter."""
    built = await bench.build(NO_PACKAGES, {"app.py": "print('plain')\n"})

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "plain\n"


async def test_a_folder_of_the_app_can_be_a_requirement(bench: Bench, tmp_path: Path) -> None:
    """A committed wheel is installed, and the layer then depends on the whole source."""
    files: Files = {"app.py": APP, "requirements.txt": f"./vendor/{WHEEL}\n", f"vendor/{WHEEL}": wheel("greet")}
    first = await bench.build(PYTHON, files)
    newer: Files = {**files, f"vendor/{WHEEL}": wheel("greet", files={"greet.py": "VERSION = 'newer'\n"})}

    second = await bench.build(PYTHON, newer)

    assert not second.layers[0].cached
    assert " newer " in await run_process(bench, second, await unpacked(bench, second, tmp_path / "root"))
    assert first.layers[0].digest != second.layers[0].digest


async def test_a_package_that_does_not_exist_fails_the_build_for_good(bench: Bench) -> None:
    """Uv's words are in the log; the error says what to look at; nothing is stored."""
    with pytest.raises(BuildFailed, match=r"packages of requirements\.txt could not be installed") as failure:
        await bench.build(PYTHON, app(**{"requirements.txt": "no-such-package-anywhere==1\n"}))

    assert failure.value.reason_code == "build_failed"
    assert "no-such-package-anywhere" in bench.output
    assert await bench.images.images() == []


async def test_an_interpreter_that_is_not_here_is_named_with_those_that_are(bench: Bench) -> None:
    """The error says what was asked for, what there is, and what to change."""
    description = PYTHON.model_copy(update={"runtime": Runtime(kind="python", version="3.4")})

    with pytest.raises(CannotBuild, match=r"no Python 3\.4.*found: cpython 3\.\d+.*\.python-version") as failure:
        await bench.build(description, app())

    assert failure.value.reason_code == "no_interpreter"


# ── the project itself ───────────────────────────────────────────────────────────────────────────────────────────────


def backend(tmp_path: Path) -> bytes:
    """A build backend: it packs the folder `src`, so that a test needs no other one from an index."""
    code = Path(__file__).with_name("small_backend.py").read_text()
    return wheel("small_backend", files={"small_backend.py": code})


SHOP: Files = {
    "pyproject.toml": """[project]
name = "shop"
version = "1.0"
dependencies = ["greet==1.0"]

[build-system]
requires = ["small-backend"]
build-backend = "small_backend"
""",
    "src/shop/__init__.py": "",
    "src/shop/main.py": "import greet, sys\ndef main():\n    print('shop', greet.VERSION, __file__, sys.prefix)\n",
}
IN_PROJECT = "layers/project/lib/python{version}/site-packages/shop/main.py"


@pytest.mark.parametrize(
    ("packages", "more"),
    [
        (PIP.model_copy(update={"manifests": ("pyproject.toml",), "project": True}), {}),
        (PIP, {"requirements.txt": "-e .\n"}),
        (PIP, {"requirements.txt": ".\n"}),
    ],
)
async def test_the_project_is_installed_in_a_layer_of_its_own(
    bench: Bench, tmp_path: Path, wheels: Path, packages: Packages, more: Files
) -> None:
    """With its scripts; a changed line of it leaves the packages as they are."""
    (wheels / "small_backend-1.0-py3-none-any.whl").write_bytes(backend(tmp_path))
    description = PYTHON.model_copy(update={"packages": (packages,), "processes": {"web": ("shop",)}})
    files = {**SHOP, **more}

    built = await bench.build(description, files)
    root = await unpacked(bench, built, tmp_path / "root")
    place = root / IN_PROJECT.format(version=VERSION)
    assert await run_process(bench, built, root) == f"shop 1.0 {place} {root}/layers/python\n"

    changed = {**files, "src/shop/main.py": "def main():\n    print('changed')\n"}
    second = await bench.build(description, changed)
    assert [layer.cached for layer in second.layers] == [True, False, False]
    assert await run_process(bench, second, await unpacked(bench, second, tmp_path / "second")) == "changed\n"


PLAIN = {
    **SHOP,
    "pyproject.toml": str(SHOP["pyproject.toml"])
    .replace("small-backend", "flit_core")
    .replace("small_backend", "flit_core.buildapi"),
    "README.md": "A shop.",
}
AS_BEFORE = "The project as built before, with 1 changed files"


@pytest.fixture
def plain_wheels(wheels: Path) -> Path:
    """A folder with the same backend under the name of one that copies files and nothing else."""
    code = Path(__file__).with_name("small_backend.py").read_text()
    files = {"flit_core/__init__.py": "", "flit_core/buildapi.py": code}
    (wheels / "flit_core-1.0-py3-none-any.whl").write_bytes(wheel("flit_core", files=files))
    return wheels


@pytest.mark.usefixtures("plain_wheels")
async def test_a_changed_file_of_a_project_gives_the_same_image_without_its_build_backend(
    tmp_path: Path, offline: Mapping[str, str]
) -> None:
    """What is made from the layer before has the bytes of a build from nothing."""
    one = make_bench(tmp_path, environ=offline, cache="one")
    two = make_bench(tmp_path, environ=offline, cache="two")
    two.app_id = one.app_id
    packages = PIP.model_copy(update={"manifests": ("pyproject.toml",), "project": True})
    description = PYTHON.model_copy(update={"packages": (packages,), "processes": {"web": ("shop",)}})
    changed = {**PLAIN, "src/shop/main.py": "def main():\n    print('changed')\n"}

    await one.build(description, PLAIN)
    assert AS_BEFORE not in one.output
    warm = await one.build(description, changed)
    assert AS_BEFORE in one.output
    cold = await two.build(description, changed)
    assert AS_BEFORE not in two.output

    assert warm.digest == cold.digest
    assert await run_process(one, warm, await unpacked(one, warm, tmp_path / "root")) == "changed\n"


@pytest.mark.usefixtures("plain_wheels")
async def test_the_build_backend_runs_where_more_changed_than_copied_files(bench: Bench) -> None:
    """It decides what becomes of it."""
    packages = PIP.model_copy(update={"manifests": ("pyproject.toml",), "project": True})
    description = PYTHON.model_copy(update={"packages": (packages,), "processes": {"web": ("shop",)}})

    await bench.build(description, PLAIN)
    await bench.build(description, {**PLAIN, "README.md": "Another shop."})

    assert "The project as built before" not in bench.output


async def test_nothing_of_an_installation_is_left_in_the_app(bench: Bench, tmp_path: Path, wheels: Path) -> None:
    """Tools run in a copy of the source, where they may write."""
    (wheels / "small_backend-1.0-py3-none-any.whl").write_bytes(backend(tmp_path))
    packages = PIP.model_copy(update={"manifests": ("pyproject.toml",), "project": True})
    description = PYTHON.model_copy(update={"packages": (packages,)})

    root = await unpacked(bench, await bench.build(description, SHOP), tmp_path / "root")

    assert {str(path.relative_to(root / "app")) for path in (root / "app").rglob("*") if path.is_file()} == set(SHOP)


# ── isolation ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_data_files_of_packages_are_in_the_environment(bench: Bench, tmp_path: Path, wheels: Path) -> None:
    """Jupyter and Voila look below sys.prefix."""
    files = {"greet.py": "VERSION = '1'\n", "greet-1.0.data/data/share/greet/hello.txt": "hello\n"}
    (wheels / WHEEL).write_bytes(wheel("greet", files=files))
    code = "import sys; print(open(sys.prefix + '/share/greet/hello.txt').read())"

    built = await bench.build(PYTHON, app(**{"app.py": code}))

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "hello\n\n"


@pytest.mark.parametrize("program", ["python", "python3", f"python{VERSION}"])
async def test_python_of_an_app_with_a_procfile_only_has_no_packages(
    bench: Bench, tmp_path: Path, program: str
) -> None:
    """Whatever the machine's own Python has installed."""
    code = "import sys; print([each for each in sys.path if 'packages' in each])"
    description = PROCFILE.model_copy(update={"processes": {"web": (program, "-c", code)}})

    built = await bench.build(description, {"serve": "x"})

    root = await unpacked(bench, built, tmp_path / "root")
    assert await run_process(bench, built, root) == f"['{root}/layers/python/lib/python{VERSION}/site-packages']\n"


async def test_the_environment_works_without_bash(bench: Bench, tmp_path: Path) -> None:
    """The starter passes its own path on with the interpreter's help then."""
    built = await bench.build(PYTHON, app())
    root = await unpacked(bench, built, tmp_path / "root")
    starter = root / "layers/python/bin/python"
    starter.write_text("\n".join(line for line in starter.read_text().split("\n") if "/bin/bash" not in line))

    assert (await run_process(bench, built, root)).startswith(f"{root}/layers/python/lib/python{VERSION}/")


# ── interpreters that are not here ───────────────────────────────────────────────────────────────────────────────────


def publish_python(folder: Path) -> Path:
    """An archive as uv fetches it, with the interpreter of this test in it, and the list that names it."""
    major, minor, patch = sys.version_info[:3]
    files = {
        f"bin/python{VERSION}": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        f"lib/python{VERSION}/_sysconfigdata__linux_{platform.machine()}-linux-gnu.py": SYSCONFIG,
    }
    python = write_files(folder / "python", files)
    archive = folder / "cpython.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(python, "python")
    machine = platform.machine()
    record = {
        "name": "cpython",
        "arch": {"family": machine, "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "variant": None,
        "build": "20260101",
        "url": archive.as_uri(),
        "sha256": None,
    }
    listed = folder / "downloads.json"
    listed.write_bytes(orjson.dumps({f"cpython-{major}.{minor}.{patch}-linux-{machine}-gnu": record}))
    return listed


def machine_without_python(tmp_path: Path, *, fetched: Path | None) -> Interpreters:
    return Interpreters("", own=tmp_path / "none", fetched=fetched)


async def test_an_interpreter_that_is_not_here_is_fetched(tmp_path: Path, offline: Mapping[str, str]) -> None:
    """Once: the next build finds it in the cache."""
    environ = {
        **offline,
        "UV_PYTHON_DOWNLOADS_JSON_URL": publish_python(tmp_path).as_uri(),
    }
    here = machine_without_python(tmp_path, fetched=tmp_path / "fetched")
    bench = make_bench(tmp_path, environ=environ, interpreters=here)
    description = PYTHON.model_copy(update={"packages": (PIP.model_copy(update={"version": f">={VERSION}"}),)})

    built = await bench.build(description, app())

    assert " 1.0 " in await run_process(bench, built, await unpacked(bench, built, tmp_path / "root"))
    assert f"uv python install '>={VERSION}'" in bench.output
    again = await machine_without_python(tmp_path, fetched=tmp_path / "fetched").for_version(VERSION)
    assert again.version == platform.python_version()


async def test_without_fetching_the_error_says_how_to_get_one(tmp_path: Path, offline: Mapping[str, str]) -> None:
    """The command works as written; the file that asks is named."""
    bench = make_bench(tmp_path, environ=offline, interpreters=machine_without_python(tmp_path, fetched=None))
    wanted = PIP.model_copy(update={"version": ">=3.12,<3.13", "version_file": "pyproject.toml"})

    with pytest.raises(CannotBuild, match=r"no Python >=3\.12,<3\.13.*pyproject\.toml asks for it") as failure:
        await bench.build(PYTHON.model_copy(update={"packages": (wanted,)}), app())

    assert "`uv python install '>=3.12,<3.13'`" in failure.value.todo
    assert failure.value.reason_code == "no_interpreter"


async def test_a_fetch_that_fails_says_why(tmp_path: Path, offline: Mapping[str, str]) -> None:
    """Without a network, for example."""
    environ = {**offline, "UV_PYTHON_DOWNLOADS_JSON_URL": (tmp_path / "none.json").as_uri()}
    here = machine_without_python(tmp_path, fetched=tmp_path / "fetched")
    wanted = PIP.model_copy(update={"version": "3.12"})

    with pytest.raises(CannotBuild, match=r"no Python 3\.12.*could not be fetched: .*uv python install 3\.12"):
        await make_bench(tmp_path, environ=environ, interpreters=here).build(
            PYTHON.model_copy(update={"packages": (wanted,)}), app()
        )
