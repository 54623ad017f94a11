"""The import rules hold, and they bite: a planted violation is found and named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'libs'}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages as they are, to plant something in."""
    for name in ("libs", "services", "knarr"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_import_rules_hold(copy: Path) -> None:
    """What is in the repository keeps every contract."""
    answer = lint(copy)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "0 broken" in answer.stdout


@pytest.mark.parametrize(
    ("planted_in", "line", "broken"),
    [
        ("services/source/planted.py", "from services.builder import ports", "Services meet only at contract.py"),
        ("libs/seedwork/planted.py", "from services.source import contract", "The kernel knows no service"),
        ("libs/ocistore/planted.py", "import knarr", "The image store stands on the kernel alone"),
        ("services/deployer/planted.py", "from knarr import home", "knarr knows everyone, and nobody knows knarr"),
    ],
)
def test_a_planted_violation_is_found(copy: Path, planted_in: str, line: str, broken: str) -> None:
    """A module that imports what it must not breaks the contract that says so."""
    (copy / planted_in).write_text(f"{line}\n")
    answer = lint(copy)
    assert answer.returncode == 1
    assert f"{broken} BROKEN" in answer.stdout


def test_another_services_contract_may_be_imported(copy: Path) -> None:
    """`contract.py` is the one file where services meet."""
    (copy / "services/registry/planted.py").write_text("from services.builder.contract import ImageBuilt\n")
    assert lint(copy).returncode == 0
