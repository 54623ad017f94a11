"""Go apps, really built where Go is installed, and what is said where it is not or is too old."""

import os
import shutil
from pathlib import Path

import pytest

from services.builder.adapters.layers.builder import LayersBuilder
from services.builder.errors import BuildFailed, CannotBuild
from services.builder.install.go import AWAY, minor, older
from services.source.contract import AppDescription, BuildStep, Packages, Runtime
from tests.services.builder.support import Files, make_bench, run_process, unpacked

with_go = pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")

MAIN = 'package main\n\nimport "syscall"\n\nfunc main() { syscall.Write(1, []byte("hello from go\\n")) }\n'
"""With a small part of the standard library, since each builder compiles that anew."""
STEP = BuildStep(name="go build", command=("go", "build", "-o", "bin/web", "."), language="go")


def app(version: str | None = None) -> AppDescription:
    packages = Packages(language="go", tool="go", version=version, version_file="go.mod", manifests=("go.mod",))
    return AppDescription(
        runtime=Runtime(kind="go"), processes={"web": ("/bin/sh", "-c", "bin/web")}, packages=(packages,), build=(STEP,)
    )


@pytest.mark.parametrize(
    ("line", "away"),
    [
        (b'go: x.org/a@v1.0.0: Get "https://proxy/x": dial tcp 10.0.0.1:443: connect: connection refused', True),
        (b"go: x.org/a@v1.0.0: reading https://proxy/x: 503 Service Unavailable", True),
        (b"go: x.org/a@v1.0.0: reading https://proxy/x: 404 Not Found", False),
        (b"main.go:3:8: no required module provides package x.org/a", False),
    ],
)
def test_a_module_proxy_that_does_not_answer_is_worth_another_attempt(line: bytes, away: bool) -> None:
    """A module that it does not have is not."""
    assert (AWAY.search(line) is not None) is away


@with_go
async def test_the_image_has_the_program_and_the_apps_files(tmp_path: Path) -> None:
    """No toolchain; the same source gives the same program, wherever it is built.

    Code that does not compile fails the build, with the compiler's words in the log.
    """
    files: Files = {"go.mod": "module example.org/hello\n\ngo 1.21\n", "main.go": MAIN}
    one, two = (make_bench(tmp_path, environ=dict(os.environ), cache=name) for name in ("one", "two"))
    two.app_id = one.app_id

    built, again = await one.build(app("1.21"), files), await two.build(app("1.21"), files)

    root = await unpacked(one, built, tmp_path / "root")
    assert await run_process(one, built, root) == "hello from go\n"
    assert sorted(path.name for path in root.iterdir()) == ["app"]
    assert built.digest == again.digest

    with pytest.raises(BuildFailed, match="go build"):
        await one.build(app(), {**files, "main.go": MAIN.replace("syscall.", "sicall.")})
    assert "undefined: sicall" in one.output


async def test_a_machine_without_go_says_what_to_do(tmp_path: Path) -> None:
    """By name, before anything runs."""
    bench = make_bench(tmp_path, environ={"PATH": str(tmp_path)})

    with pytest.raises(CannotBuild, match="go is not on PATH"):
        await bench.build(app(), {"go.mod": "module x\n"})


@with_go
async def test_a_newer_go_that_may_not_be_fetched_is_refused_by_name(tmp_path: Path) -> None:
    """KNARR_FETCH_TOOLCHAINS=false."""
    bench = make_bench(tmp_path, environ=dict(os.environ), fetch_toolchains=False)
    assert isinstance(bench.builder, LayersBuilder)

    with pytest.raises(CannotBuild, match=r"asks for Go 9\.9\.9 \(go\.mod\).*KNARR_FETCH_TOOLCHAINS"):
        await bench.build(app("9.9.9"), {"go.mod": "module x\n"})


@pytest.mark.parametrize(
    ("have", "wanted", "expected"),
    [("1.22.3", "1.22", False), ("1.22", "1.22.1", True), ("1.9", "1.10", True), ("1.26.8", "go1.21.0", False)],
)
def test_versions_are_compared_by_their_numbers(have: str, wanted: str, expected: bool) -> None:
    """Not as text."""
    assert older(have, wanted) is expected


def test_a_base_image_has_a_minor_version() -> None:
    """Go itself fetches the patch."""
    assert [minor(each) for each in ("1.22.3", "1.22", "go1.23.0")] == ["1.22", "1.22", "1.23"]
