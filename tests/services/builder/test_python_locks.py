"""Python apps with lock files: each project's own tool installs, frozen, from a package index on this machine."""

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import uv

from services.builder.adapters.layers.image import HOST_PATH
from services.builder.errors import BuildFailed
from services.builder.install.python_runner import runner_script
from services.source.contract import AppDescription, Packages
from tests.services.builder.package_index import PackageIndex, package_index
from tests.services.builder.support import PYTHON, Bench, Files, make_bench, run_process, unpacked, write_files

APP = "import greet, importlib.metadata as m\nprint(greet.VERSION, *sorted(d.name for d in m.distributions()))\n"
PROJECT = """[project]
name = "shop"
version = "1"
requires-python = ">=3.11"
dependencies = ["greet{wanted}"]

[dependency-groups]
dev = ["extra"]
"""
SAYS = {
    "poetry": "pyproject.toml changed significantly since poetry.lock was last generated. Run `poetry lock`.",
    "pdm": "WARNING: Lockfile doesn't satisfy the project requirements, packages may be outdated",
    "pipenv": "Pipfile.lock is out-of-date. Run $ pipenv lock to update.",
}


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with package_index() as index:
        for version in ("1.0", "2.0"):
            index.add("greet", version)
        index.add("extra")
        index.add("hishel", "1.5")
        index.add_tool("poetry", "1.8.5", SAYS["poetry"])
        index.add_tool("poetry", "2.1.3", SAYS["poetry"])
        index.add_tool("pdm", "2.29.4", SAYS["pdm"])
        index.add_tool("pipenv", "2026.10.3", SAYS["pipenv"])
        yield index


@pytest.fixture
def environ(index: PackageIndex) -> Mapping[str, str]:
    return {"PIP_INDEX_URL": index.url, "PATH": HOST_PATH}


@pytest.fixture
def bench(tmp_path: Path, environ: Mapping[str, str]) -> Bench:
    return make_bench(tmp_path, environ=environ)


def described(packages: Packages, *command: str) -> AppDescription:
    processes = {"web": command or ("python", "app.py")}
    return PYTHON.model_copy(update={"packages": (packages,), "processes": processes})


def packages(tool: str, lock: str, *manifests: str, project: bool = False) -> Packages:
    return Packages.model_validate(
        {"language": "python", "tool": tool, "lock": lock, "manifests": (lock, *manifests), "project": project}
    )


async def locked(folder: Path, index: PackageIndex, files: Files) -> Files:
    """The files with the uv.lock that uv makes of them; it names addresses, and so no lock file is kept."""
    tree = write_files(folder / "locking", files)
    environ = {"UV_DEFAULT_INDEX": index.url, "UV_CACHE_DIR": str(folder / "locking-cache"), "PATH": os.environ["PATH"]}
    running = await asyncio.create_subprocess_exec(uv.find_uv_bin(), "lock", "--quiet", cwd=tree, env=environ)
    assert await running.wait() == 0
    return {**files, "uv.lock": (tree / "uv.lock").read_bytes()}


# ── uv ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_uv_installs_what_uv_lock_pins(bench: Bench, tmp_path: Path, index: PackageIndex) -> None:
    """Not the newest version; development packages are no part of the image, and the log names the file."""
    files = await locked(tmp_path, index, {"app.py": APP, "pyproject.toml": PROJECT.format(wanted="<2")})
    pinned = {**files, "pyproject.toml": PROJECT.format(wanted="<2")}

    built = await bench.build(described(packages("uv", "uv.lock", "pyproject.toml")), pinned)

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "1.0 greet\n"
    assert "packages from uv.lock, frozen" in bench.output


async def test_a_changed_lock_is_a_changed_layer(bench: Bench, tmp_path: Path, index: PackageIndex) -> None:
    """And an unchanged one starts no tool: the index is not even asked."""
    description = described(packages("uv", "uv.lock", "pyproject.toml"))
    files = await locked(tmp_path, index, {"app.py": APP, "pyproject.toml": PROJECT.format(wanted="")})
    first = await bench.build(description, files)
    asked = len(index.asked)

    same = await bench.build(description, {**files, "app.py": APP + "# changed\n"})
    assert same.layers[0].cached
    assert len(index.asked) == asked
    lock = files["uv.lock"]
    assert isinstance(lock, bytes)
    other = await bench.build(description, {**files, "uv.lock": lock + b"\n"})
    assert not other.layers[0].cached
    assert other.layers[0].digest == first.layers[0].digest


async def test_a_lock_that_does_not_fit_its_manifest_names_both(
    bench: Bench, tmp_path: Path, index: PackageIndex
) -> None:
    """Also the command that makes it fit."""
    files = await locked(tmp_path, index, {"app.py": APP, "pyproject.toml": PROJECT.format(wanted="<2")})
    changed = {**files, "pyproject.toml": PROJECT.format(wanted=">=2")}

    with pytest.raises(BuildFailed, match=r"uv\.lock does not fit pyproject\.toml.*Run `uv lock`") as failure:
        await bench.build(described(packages("uv", "uv.lock", "pyproject.toml")), changed)

    assert failure.value.reason_code == "lock_out_of_date"


async def test_a_lock_from_another_index_than_the_platforms_fits(tmp_path: Path, index: PackageIndex) -> None:
    """A mirror that builds use does not make a lock file of the public index outdated."""
    files = await locked(tmp_path, index, {"app.py": APP, "pyproject.toml": PROJECT.format(wanted="<2")})
    bench = make_bench(tmp_path, environ={"UV_DEFAULT_INDEX": "http://127.0.0.1:9/mirror", "PATH": HOST_PATH})
    own = PROJECT.format(wanted="<2") + f'\n[[tool.uv.index]]\nurl = "{index.url}"\ndefault = true\n'

    built = await bench.build(described(packages("uv", "uv.lock", "pyproject.toml")), {**files, "pyproject.toml": own})

    assert await run_process(bench, built, await unpacked(bench, built, tmp_path / "root")) == "1.0 greet\n"


# ── Poetry, PDM, Pipenv ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A project with a lock file of another tool than uv."""

    tool: str
    version: str
    """Version of the tool that installs."""
    manifest: str
    lock: str
    content: str
    """Of the lock file."""
    command: str
    """The beginning of the tool's arguments."""

    @property
    def files(self) -> dict[str, str]:
        return {"app.py": APP, self.manifest: PROJECT.format(wanted=""), self.lock: self.content}

    @property
    def packages(self) -> Packages:
        return packages(self.tool, self.lock, self.manifest)

    def __str__(self) -> str:
        return f"{self.tool}-{self.version}"


POETRY = Case("poetry", "1.8.5", "pyproject.toml", "poetry.lock", "", '["install", "--no-interaction"')
CASES = [
    POETRY,
    replace(POETRY, content="# This file is automatically @generated by Poetry 1.4.0 and\n"),
    replace(POETRY, version="2.1.3", content="# This file is automatically @generated by Poetry 2.1.3 and\n"),
    Case("pdm", "2.29.4", "pyproject.toml", "pdm.lock", 'content_hash = "x"', '["sync", "--prod", "--no-self"'),
    Case("pipenv", "2026.10.3", "Pipfile", "Pipfile.lock", f'{{"sha256": "{"a" * 64}"}}', '["sync"'),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_the_projects_own_tool_installs_from_its_lock(bench: Bench, tmp_path: Path, case: Case) -> None:
    """In the version that the project or its lock file names; scripts of packages run in the image."""
    built = await bench.build(described(case.packages, "greet"), case.files)

    root = await unpacked(bench, built, tmp_path / "root")
    assert await run_process(bench, built, root) == f"by {case.tool} {case.version} {root}/layers/python\n"
    assert f"packages from {case.lock}, frozen" in bench.output
    assert f"tool {case.tool} {case.version} {case.command}" in bench.output


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4]], ids=str)
async def test_a_stale_lock_of_any_tool_names_both_files(bench: Bench, case: Case) -> None:
    """And the command that makes it anew."""
    stale = replace(case, content=case.content + " stale")

    with pytest.raises(BuildFailed) as failure:
        await bench.build(described(stale.packages), stale.files)

    assert failure.value.reason_code == "lock_out_of_date"
    assert failure.value.what == f"{case.lock} does not fit {case.manifest}"
    assert failure.value.todo == f"Run `{case.tool} lock` and commit {case.lock}."
    assert await bench.images.images() == []


async def test_what_another_tool_installs_is_the_same_bytes_each_time(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    """Paths of the build, records of the installer and starters of the environment are no part of the layer."""
    benches = [make_bench(tmp_path, environ=environ, cache=name) for name in ("one", "two")]

    one, two = [await each.build(described(POETRY.packages), POETRY.files) for each in benches]

    assert not any(layer.cached for layer in (*one.layers, *two.layers))
    assert one.layers[0].digest == two.layers[0].digest
    root = await unpacked(benches[0], one, tmp_path / "root")
    for path in (root / "layers").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()


# ── `uv run` in start commands ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (("run", "greet", "--port", "80"), "greet --port 80"),
        (("run", "--no-dev", "--extra", "x", "--", "greet", "-v"), "greet -v"),
        (("run", "-m", "greet", "more"), "python -m greet more"),
        (("run", "--with", "extra", "app.py", "a b"), "python app.py a b"),
        (("sync",), "uv is not part of the image: only 'uv run COMMAND' works here"),
        (("run",), "uv is not part of the image: only 'uv run COMMAND' works here"),
    ],
)
async def test_a_start_command_may_name_the_projects_tool(tmp_path: Path, words: tuple[str, ...], started: str) -> None:
    """The image has no tool: `run` starts the command with the packages that are there."""
    shown = '#!/bin/sh\necho ${0##*/} "$@"\n'
    folder = write_files(tmp_path / "bin", {"uv": runner_script("uv"), "greet": shown, "python": shown})

    running = await asyncio.create_subprocess_exec(
        folder / "uv", *words, env={"PATH": str(folder)}, stdout=PIPE, stderr=STDOUT
    )
    printed, _ = await running.communicate()

    assert printed.decode() == started + "\n"


async def test_the_stand_in_of_the_tool_is_in_the_image(bench: Bench, tmp_path: Path, index: PackageIndex) -> None:
    """Only that of the project's own tool, and not where a package brings the tool itself."""
    files = await locked(tmp_path, index, {"app.py": APP, "pyproject.toml": PROJECT.format(wanted="<2")})
    description = described(packages("uv", "uv.lock", "pyproject.toml"), "uv", "run", "app.py")

    built = await bench.build(description, files)

    root = await unpacked(bench, built, tmp_path / "root")
    assert await run_process(bench, built, root) == "1.0 greet\n"
    assert not (root / "layers/python/bin/poetry").exists()
