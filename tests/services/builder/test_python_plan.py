"""Which commands install the packages of a Python app, and what their result depends on."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.builder.errors import CannotBuild
from services.builder.install.python import VENV_PYTHON, Installation, plan_installation
from services.builder.install.python_environment import foreign_indexes, index_environment, tool_environment
from services.source.contract import Packages

RUN = "tool run --isolated --quiet --python PY --from"
PROJECT = '[project]\nname = "x"\ndependencies = ["six"]\n[project.optional-dependencies]\nweb = ["flask"]\n'


def planned(files: Mapping[str, str], **packages: Any) -> Installation:
    described = Packages.model_validate({"language": "python", "manifests": tuple(files), **packages})
    content = {name: text.encode() for name, text in files.items()}
    return plan_installation(described, content.get, uv_version="0.9.10")


def commands(found: Installation) -> list[str]:
    return [" ".join([*(each.tool.arguments("PY") if each.tool else ()), *each.arguments]) for each in found.commands]


def test_an_app_without_packages_has_no_commands() -> None:
    """Also one with an empty requirements file."""
    assert plan_installation(None, lambda _: None, uv_version="1").title == "no packages"
    assert planned({"requirements.txt": "# none\n"}, tool="pip").commands == ()


@pytest.mark.parametrize(
    ("files", "packages", "expected"),
    [
        ({"requirements.txt": "six\n"}, {"tool": "pip"}, ["pip install --python VENV -r requirements.txt"]),
        (
            {"requirements.txt": "six==1 --hash=sha256:ab\n"},
            {"tool": "pip", "lock": "requirements.txt"},
            ["pip install --python VENV --require-hashes -r requirements.txt"],
        ),
        (
            {"pyproject.toml": PROJECT},
            {"tool": "uv", "groups": ("web", "other")},
            ["pip install --python VENV -r pyproject.toml --extra web --group other"],
        ),
        (
            {"pyproject.toml": PROJECT, "uv.lock": ""},
            {"tool": "uv", "lock": "uv.lock", "include_dev": True, "groups": ("web",)},
            [
                "lock --check --python VENV",
                "sync --frozen --extra web --no-editable --no-install-project --python VENV",
            ],
        ),
        (
            {"pyproject.toml": PROJECT, "uv.lock": ""},
            {"tool": "uv", "lock": "uv.lock", "tool_version": ">=0.5,<0.6"},
            [
                "RUN uv>=0.5,<0.6 uv lock --check --python VENV",
                "RUN uv>=0.5,<0.6 uv sync --frozen --no-dev --no-editable --no-install-project --python VENV",
            ],
        ),
        (
            {"pyproject.toml": PROJECT, "poetry.lock": ""},
            {"tool": "poetry", "lock": "poetry.lock", "tool_version": "2.0.1", "groups": ("web", "docs")},
            ["RUN poetry==2.0.1 poetry install --no-interaction --no-ansi --no-root --extras web --only main,docs"],
        ),
        (
            {"pyproject.toml": PROJECT, "pdm.lock": ""},
            {"tool": "pdm", "lock": "pdm.lock", "groups": ("web",)},
            ["RUN pdm==2.29.4 --with hishel>=1.4,<2 pdm sync --prod -G web --no-self --no-editable"],
        ),
        (
            {"Pipfile": "[packages]\n"},
            {"tool": "pipenv"},
            ["RUN pipenv==2026.10.3 pipenv install --skip-lock"],
        ),
        (
            {"pylock.toml": "lock-version = '1.0'\n"},
            {"tool": "pylock", "lock": "pylock.toml"},
            ["pip install --preview-features pylock --python VENV -r pylock.toml"],
        ),
    ],
)
def test_each_tool_installs_in_its_own_way(
    files: Mapping[str, str], packages: Mapping[str, Any], expected: list[str]
) -> None:
    """Frozen where there is a lock file; for production, unless the start command needs more."""
    assert commands(planned(files, **packages)) == [
        line.replace("VENV", VENV_PYTHON).replace("RUN", RUN) for line in expected
    ]


@pytest.mark.parametrize(
    ("file", "content", "kept"),
    [
        ("Pipfile.lock", '{"x": {"editable": true}}', '{"x": {"editable": false}}'),
        ("poetry.lock", "[[package]]\ndevelop = true\n", "[[package]]\ndevelop = false\n"),
        ("pylock.toml", 'directory = { path = ".", editable = true }', 'directory = { path = ".", editable = false }'),
    ],
)
def test_local_packages_of_a_lock_are_installed_as_regular_ones(file: str, content: str, kept: str) -> None:
    """The folder of the build, into which an editable one points, is gone when the app runs."""
    tool = {"Pipfile.lock": "pipenv", "poetry.lock": "poetry", "pylock.toml": "pylock"}[file]
    found = planned({file: content}, tool=tool, lock=file)

    assert found.files[file] == kept.encode()
    assert found.keyed_by_source is (tool == "pylock")


def test_the_key_has_every_file_and_every_tool() -> None:
    """A change of a lock file, of a manifest or of a tool's version is a change of the packages."""
    files = {"pyproject.toml": PROJECT, "poetry.lock": ""}
    first = planned(files, tool="poetry", lock="poetry.lock").inputs

    assert first == planned(files, tool="poetry", lock="poetry.lock").inputs
    for changed in ({**files, "poetry.lock": "# x"}, {**files, "pyproject.toml": PROJECT + "# x"}):
        assert planned(changed, tool="poetry", lock="poetry.lock").inputs != first
    assert planned(files, tool="poetry", lock="poetry.lock", tool_version="2.0.1").inputs != first


@pytest.mark.parametrize(
    ("files", "packages", "words"),
    [
        ({"pyproject.toml": "not ["}, {"tool": "uv"}, "pyproject.toml cannot be read"),
        ({"pyproject.toml": PROJECT}, {"tool": "uv", "lock": "uv.lock"}, "There is no uv.lock"),
        ({"poetry.lock": ""}, {"tool": "poetry", "lock": "poetry.lock", "tool_version": "x; y"}, "not understood"),
    ],
)
def test_what_cannot_be_planned_is_named(files: Mapping[str, str], packages: Mapping[str, Any], words: str) -> None:
    """Before any tool starts."""
    with pytest.raises(CannotBuild, match=words):
        planned(files, **packages)


def test_each_tool_gets_the_platforms_index_under_its_own_name() -> None:
    """What is set already stays."""
    found = index_environment({"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://b"}.get)

    assert found == {"PDM_PYPI_URL": "https://a", "PIPENV_PYPI_MIRROR": "https://a"}
    env = {"UV_DEFAULT_INDEX": "https://a/simple/", "UV_INDEX": "https://b/simple"}
    assert foreign_indexes(env, b'registry = "https://a/simple"') == ("UV_INDEX",)


def test_a_project_that_configures_uv_is_left_its_configuration() -> None:
    """Otherwise files above the build's folder would count."""
    plain = planned({"requirements.txt": "six\n"}, tool="pip")
    own = planned({"requirements.txt": "six\n", "uv.toml": "offline = true\n"}, tool="pip")

    assert tool_environment(plain, venv="/v", caches="/c")["UV_NO_CONFIG"] == "1"
    assert "UV_NO_CONFIG" not in tool_environment(own, venv="/v", caches="/c")
    assert plain.inputs != own.inputs
