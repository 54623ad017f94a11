"""Which projects are installed as their files are, and what of them changes."""

import pytest

from services.builder.install.plain_project import changed_copies, copied_files, is_plain

PLAIN = """[project]
name = "shop"
version = "1"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
"""
POETRY = """[tool.poetry]
name = "shop"
[build-system]
requires = ["poetry-core>=2"]
build-backend = "poetry.core.masonry.api"
"""


def plain(text: str) -> bool:
    return is_plain({"pyproject.toml": text.encode()}.get)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        POETRY,
        PLAIN.partition("[build-system]")[0],
        PLAIN.replace("hatchling.build", "uv_build").replace("hatchling", "uv_build>=0.9,<1"),
        PLAIN.replace("hatchling.build", "setuptools.build_meta").replace('"hatchling"', '"setuptools>=70", "wheel"'),
        PLAIN + '[tool.hatch.build.targets.wheel]\npackages = ["src/shop"]\n',
    ],
)
def test_a_backend_without_plugins_copies_files(text: str) -> None:
    """Its wheel differs by the files that were changed."""
    assert plain(text)


@pytest.mark.parametrize(
    "text",
    [
        "no toml",
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n',
        PLAIN.replace('version = "1"', 'dynamic = ["version"]'),
        PLAIN.replace('"hatchling"', '"hatchling", "hatch-vcs"'),
        PLAIN.replace("hatchling.build", "maturin").replace("hatchling", "maturin"),
        PLAIN + 'backend-path = ["."]\n',
        PLAIN + "[tool.hatch.build.hooks.custom]\n",
        PLAIN + "[tool.hatch.build.targets.wheel.hooks.mypyc]\n",
        PLAIN + '[[tool.setuptools.ext-modules]]\nname = "x"\n',
        POETRY + '[tool.poetry.build]\nscript = "make.py"\n',
    ],
)
def test_a_backend_that_may_compute_files_runs_each_time(text: str) -> None:
    """Plugins, hooks, native code, a version from the code, another backend."""
    assert not plain(text)


@pytest.mark.parametrize("name", ["setup.py", "setup.cfg", "hatch_build.py", "pdm_build.py"])
def test_code_beside_pyproject_may_compute_files(name: str) -> None:
    """A backend runs or reads it if it is there."""
    assert not is_plain({"pyproject.toml": PLAIN.encode(), name: b""}.get)


def test_copies_have_the_same_content_under_one_name_of_the_source() -> None:
    """Another content is no copy; of two candidates none is taken."""
    source = {"src/shop/a.py": "1", "src/shop/b.py": "2", "src/shop/c.py": "3", "old/shop/c.py": "3", "a.py": "1"}
    installed = {"shop/a.py": "1", "shop/b.py": "other", "shop/c.py": "3", "shop/made.py": "4"}
    assert copied_files(installed, source) == {"shop/a.py": "src/shop/a.py"}


def test_changed_copies_are_all_that_may_change() -> None:
    """A new file, a removed one, or a change of anything else is for the backend."""
    before, copies = {"src/a.py": "1", "src/b.py": "2", "README.md": "3"}, {"a.py": "src/a.py", "b.py": "src/b.py"}
    assert changed_copies(before, {**before, "src/a.py": "9"}, copies) == {"a.py": "src/a.py"}
    assert changed_copies(before, before, copies) == {}
    assert changed_copies(before, {**before, "src/c.py": "1"}, copies) is None
    assert changed_copies(before, {"src/a.py": "1"}, copies) is None
    assert changed_copies(before, {**before, "README.md": "9"}, copies) is None
    assert changed_copies(before, {**before, "src/a.py": "9"}, copies, never=["src/a.py"]) is None
