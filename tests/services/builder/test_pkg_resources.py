"""Where setuptools has to be added: packages of its time import a part of it without requiring it."""

from pathlib import Path

import pytest

from services.builder.install.pkg_resources import is_needed


@pytest.mark.parametrize(
    ("text", "python", "needed"),
    [
        ("import os\nimport pkg_resources\n", (3, 11, 7), True),
        ("from pkg_resources import get_distribution\n", (3, 9, 1), True),
        ("import pkg_resources\n", (3, 12, 0), False),
        ("import os  # not pkg_resources\n", (3, 11, 7), False),
    ],
)
def test_an_import_before_python_3_12_needs_setuptools(
    tmp_path: Path, text: str, python: tuple[int, ...], needed: bool
) -> None:
    """From 3.12 on environments come without it, and what imports it requires it."""
    module = tmp_path / "lib/python3.11/site-packages/gunicorn/util.py"
    module.parent.mkdir(parents=True)
    module.write_text(text)
    assert is_needed(tmp_path, python) is needed


def test_an_environment_that_has_it_needs_nothing(tmp_path: Path) -> None:
    """It was a requirement of its own, or came with another package."""
    site = tmp_path / "lib/python3.11/site-packages"
    (site / "pkg_resources").mkdir(parents=True)
    (site / "old.py").write_text("import pkg_resources\n")
    assert not is_needed(tmp_path, (3, 11))
