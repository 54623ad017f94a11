"""Python apps, really built: packages by uv, a layer of their own, and an app that runs from the image."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.builder.adapters.layers.image import HOST_PATH
from services.builder.errors import BuildFailed, CannotBuild
from services.source.contract import Runtime
from tests.services.builder.support import (
    NO_PACKAGES,
    PYPROJECT,
    PYTHON,
    Bench,
    Files,
    make_bench,
    run_process,
    unpacked,
    wheel,
)

APP = "import greet, sys\nprint(greet.__file__, greet.VERSION, sys.path)\n"
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
