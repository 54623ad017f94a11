"""Which Python an app gets for what its files ask for."""

from pathlib import Path

import pytest

from services.builder.adapters.layers.interpreters import Interpreter, choose
from services.builder.install.python_versions import satisfies, understood


def interpreter(version: str, implementation: str = "cpython") -> Interpreter:
    path = Path(f"/opt/{implementation}-{version}/bin/python3")
    return Interpreter(path=path, implementation=implementation, version=version, platform="linux-x86_64")


MACHINE = tuple(interpreter(each) for each in ("3.11.7", "3.11.2", "3.9.18", "3.12.1", "3.12.9", "3.13.0", "3.15.0a2"))
MACHINE = (*MACHINE, interpreter("3.13.1t"), interpreter("3.10.14", "pypy"))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, "3.11.7"),
        ("3.11", "3.11.7"),
        ("3.11.2", "3.11.2"),
        ("3.11.99", "3.11.7"),
        ("3.12", "3.12.9"),
        ("3.12.x", "3.12.9"),
        ("3.12.*", "3.12.9"),
        ("3.12-dev", "3.12.9"),
        ("3", "3.11.7"),
        ("python-3.12.1", "3.12.1"),
        ("cpython@3.13", "3.13.0"),
        ("Python 3.13", "3.13.0"),
        (">=3.9", "3.11.7"),
        (">=3.12", "3.13.0"),
        (">=3.12,<3.13", "3.12.9"),
        (">= 3.12, < 3.13", "3.12.9"),
        (">=3.12 <3.13", "3.12.9"),
        (">3.11.7", "3.13.0"),
        ("<3.11", "3.9.18"),
        ("<=3.11", "3.11.7"),
        ("!=3.11.*,!=3.13.*", "3.12.9"),
        ("==3.12.*", "3.12.9"),
        ("==3.12", "3.12.9"),
        ("===3.12.1", "3.12.1"),
        ("~=3.12.2", "3.12.9"),
        ("~=3.12", "3.13.0"),
        ("^3.12", "3.13.0"),
        ("~3.12", "3.12.9"),
        ("<3.10 || ^3.13", "3.13.0"),
        ("*", "3.11.7"),
        ("pypy3.10", "3.10.14"),
        ("pypy-3.10", "3.10.14"),
        ("pypy3.10-7.3.12", "3.10.14"),
    ],
)
def test_the_best_interpreter_is_chosen(wanted: str | None, chosen: str) -> None:
    """The default one if it fits, else the newest that fits; a patch that is not here is one of its minor version."""
    found = choose(MACHINE, wanted)

    assert found is not None
    assert found.version == chosen


@pytest.mark.parametrize(
    "wanted",
    [
        "3.8",
        ">=3.14",
        "3.15",
        ">=3.15",
        "==3.12.4",
        "~=3.13.4",
        "pypy3.9",
        "3.13t",
        "3.1",
        "2.7",
        "nightly",
        "",
        "9" * 300,
    ],
)
def test_what_no_interpreter_is_has_none(wanted: str) -> None:
    """Previews and builds without the global lock are not chosen."""
    assert choose(MACHINE[1:] if not wanted else MACHINE, wanted or "nonsense") is None


@pytest.mark.parametrize(
    ("wanted", "request_"),
    [
        ("3.13", "3.13"),
        ("python-3.13.4", "3.13.4"),
        ("3.13.x", "3.13"),
        (">= 3.13, <4", ">=3.13,<4"),
        ("^3.13", ">=3.13,<4"),
        ("~3.13", ">=3.13,<3.14"),
        ("<3.10 || >=3.14", ">=3.14"),
        ("pypy3.10", "pypy3.10"),
    ],
)
def test_uv_is_asked_in_its_own_syntax(wanted: str, request_: str) -> None:
    """No word of the app reaches the command line as it is."""
    found = understood(wanted)

    assert found is not None
    assert found.request == request_


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("2.5.1", ">=2.0", True),
        ("2.5.1", "2.5.1", True),
        ("2.5.1", "2.5", False),
        ("2.5.1", "^1.8", False),
        ("0.13.8", ">=0.5,<0.10", False),
        ("2.5.1", "newest", None),
    ],
)
def test_a_tools_version_is_compared_with_what_a_project_names(version: str, specifier: str, fits: bool | None) -> None:
    """An exact version means itself; None: nothing that is known."""
    assert satisfies(version, specifier) is fits
