"""Files of repositories are parsed under limits wherever they are read."""

import re
import tracemalloc
from pathlib import Path

import pytest

from services.builder.errors import CannotBuild
from services.builder.install.node import read_manifest
from services.builder.install.python import _toml

ROOT = Path(__file__).parents[2]
UNBOUNDED = re.compile(
    r"\btomllib\.loads?\(|\byaml\.(?:safe_|full_|unsafe_)?load(?:_all)?\((?!text, Loader=_TextLoader)"
)


def test_no_service_reads_toml_or_yaml_without_limits() -> None:
    """The standard parsers take gigabytes for small files; `seedwork.bounded_toml` and the text loader do not."""
    found = [
        str(path.relative_to(ROOT)) for path in (ROOT / "services").rglob("*.py") if UNBOUNDED.search(path.read_text())
    ]
    assert not found


def test_the_builder_refuses_a_small_file_that_would_cost_gigabytes() -> None:
    """A `pyproject.toml` with a key of 13,000 parts."""
    tracemalloc.start()
    try:
        with pytest.raises(CannotBuild, match=r"pyproject\.toml cannot be read"):
            _toml(lambda _: b".".join([b"a"] * 13_000) + b" = 1", "pyproject.toml")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 50_000, b'{"a": "' + b"x" * 2_000_000 + b'"}'])
def test_the_builder_refuses_a_package_json_that_is_too_deep_or_too_large(content: bytes) -> None:
    """Its values take twenty times its size."""
    with pytest.raises(CannotBuild):
        read_manifest("package.json", content)
