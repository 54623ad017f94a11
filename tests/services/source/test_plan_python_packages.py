"""What a Python app installs, from its files: the tool, the lock file, the version, the project itself."""

import re
from typing import Any

import pytest

from services.source.contract import Packages
from tests.services.source.planning import Files, planned, refused, said

PROJECT = '[project]\nname = "shop"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["markupsafe>=2"]\n'
BACKEND = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
RUN: dict[str, Any] = {"Procfile": "web: python app.py", "app.py": ""}


def lock(version: str, *more: str) -> str:
    """A lock file of uv, Poetry or PDM, which all have these lines."""
    entries = (f'[[package]]\nname = "{name}"\nversion = "{number}"\n' for name, number in [("markupsafe", version)])
    return "version = 1\n\n" + "\n".join((*entries, *more))


def packages(files: Files) -> Packages:
    """The one entry of a Python app."""
    (found,) = planned({**RUN, **files}).packages
    return found


@pytest.mark.parametrize(
    ("files", "tool", "lock_file", "first"),
    [
        ({"requirements.txt": "flask\n"}, "pip", None, "requirements.txt"),
        ({"requirements.txt": "flask==3.0.0\n"}, "pip", "requirements.txt", "requirements.txt"),
        ({"requirements.txt": "flask==3.0.0 \\\n  --hash=sha256:ab\n"}, "pip", "requirements.txt", "requirements.txt"),
        (
            {"requirements/production.txt": "-r base.txt\n", "requirements/base.txt": "a==1\n"},
            "pip",
            "requirements/production.txt",
            "requirements/production.txt",
        ),
        ({"requirements/prod.txt": "flask\n"}, "pip", None, "requirements/prod.txt"),
        ({"requirements-prod.txt": "flask\n"}, "pip", None, "requirements-prod.txt"),
        ({"pyproject.toml": PROJECT}, "uv", None, "pyproject.toml"),
        ({"pyproject.toml": PROJECT, "uv.lock": lock("2.1.3")}, "uv", "uv.lock", "uv.lock"),
        ({"pyproject.toml": PROJECT, "pdm.lock": lock("2.1.3")}, "pdm", "pdm.lock", "pdm.lock"),
        ({"pyproject.toml": PROJECT, "poetry.lock": lock("2.1.3")}, "poetry", "poetry.lock", "poetry.lock"),
        ({"pyproject.toml": "[tool.poetry]\nname = 'x'\n"}, "poetry", None, "pyproject.toml"),
        ({"pylock.toml": '[[packages]]\nname = "a"\nversion = "1"\n'}, "pylock", "pylock.toml", "pylock.toml"),
        ({"Pipfile": '[packages]\na = "*"\n'}, "pipenv", None, "Pipfile"),
        (
            {"Pipfile": '[packages]\na = "*"\n', "Pipfile.lock": {"default": {"a": {"version": "==1"}}}},
            "pipenv",
            "Pipfile.lock",
            "Pipfile.lock",
        ),
        ({"setup.py": "setup(install_requires=['a==1'])"}, "pip", None, "setup.py"),
        ({"setup.py": "setup()", "pyproject.toml": BACKEND}, "pip", None, "setup.py"),
        ({"setup.cfg": "[options]\ninstall_requires =\n  a\n", "pyproject.toml": BACKEND}, "pip", None, "setup.cfg"),
        ({"requirements.in": "a\n"}, "pip", None, "requirements.in"),
    ],
)
def test_the_file_that_counts_and_its_tool(files: Files, tool: str, lock_file: str | None, first: str) -> None:
    """A lock file goes before a list, and the project's own tool installs from it."""
    found = packages(files)
    assert (found.tool, found.lock, found.manifests[0]) == (tool, lock_file, first)


def test_every_file_that_decides_is_a_manifest() -> None:
    """So that a change of any of them is a change of the layer."""
    found = packages({"requirements.txt": "-r more.txt\n-c limits.txt\n", "more.txt": "a\n", "limits.txt": "a<2\n"})
    assert found.manifests == ("requirements.txt", "more.txt", "limits.txt")
    found = packages({"pyproject.toml": PROJECT, "uv.lock": lock("2.1.3"), "uv.toml": ""})
    assert found.manifests == ("uv.lock", "pyproject.toml", "uv.toml")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"requirements.txt": "markupsafe==2.0.1\n", "pyproject.toml": PROJECT, "uv.lock": lock("2.1.3")},
            "uv.lock and requirements.txt do not agree: requirements.txt asks for markupsafe==2.0.1, uv.lock has",
        ),
        (
            {"requirements.txt": "six\n", "pyproject.toml": PROJECT, "uv.lock": lock("2.1.3")},
            "asks for six, and uv.lock does not",
        ),
        ({"requirements.txt": "markupsafe==1.1\n", "pyproject.toml": PROJECT}, "pyproject.toml asks for markupsafe>=2"),
        (
            {"requirements.txt": "flask\n", "pyproject.toml": PROJECT},
            "markupsafe>=2, and requirements.txt does not have it",
        ),
        ({"requirements.txt": "flask\n", "Pipfile": '[packages]\nidna = "*"\n'}, "Pipfile do not agree.*idna"),
        (
            {
                "requirements.txt": "a==2\n",
                "Pipfile": '[packages]\na = "*"\n',
                "Pipfile.lock": {"default": {"a": {"version": "==1"}}},
            },
            "Pipfile.lock and requirements.txt do not agree",
        ),
        (
            {"pyproject.toml": PROJECT, "Pipfile": '[packages]\nidna = "*"\n'},
            "Pipfile and pyproject.toml do not agree.*markupsafe",
        ),
        (
            {"pyproject.toml": PROJECT, "uv.lock": lock("2.1.3"), "Pipfile": '[packages]\nidna = "*"\n'},
            "uv.lock and Pipfile do not agree.*idna",
        ),
        (
            {"pyproject.toml": PROJECT, "uv.lock": lock("2.1.3"), "poetry.lock": lock("2.0.1")},
            "uv.lock and poetry.lock do not agree",
        ),
        (
            {
                "pyproject.toml": PROJECT,
                "uv.lock": lock("2.1.3"),
                "pdm.lock": lock("2.1.3", '[[package]]\nname = "b"\nversion = "1"'),
            },
            "pdm.lock has b, and uv.lock does not",
        ),
        (
            {"pyproject.toml": PROJECT.replace(">=2", ">=3"), "uv.lock": lock("2.1.3")},
            "uv.lock does not fit pyproject.toml.*uv lock",
        ),
        ({"uv.lock": lock("2.1.3")}, "uv.lock stands without pyproject.toml"),
        ({"Pipfile.lock": {"default": {}}}, "Pipfile.lock stands without Pipfile"),
    ],
)
def test_two_sources_that_disagree_are_an_error_that_names_both(files: Files, says: str) -> None:
    """With the package about which they disagree, and what to do."""
    assert re.search(says, refused({**RUN, **files}))


@pytest.mark.parametrize(
    ("files", "note"),
    [
        (
            {"requirements.txt": "markupsafe==2.1.3\n", "pyproject.toml": PROJECT, "uv.lock": lock("2.1.3")},
            "the packages of requirements.txt: passed over",
        ),
        (
            {"requirements.txt": "markupsafe==2.0.1\nsix\n", "pyproject.toml": PROJECT},
            "requirements.txt counts, and the two agree",
        ),
        ({"requirements.txt": "-e .\n", "pyproject.toml": PROJECT + BACKEND}, ""),
        ({"requirements.txt": "a\n", "pyproject.toml": '[project]\nname="x"\ndynamic=["dependencies"]\n'}, ""),
        ({"requirements.txt": "a\n", "pyproject.toml": "[tool.ruff]\n"}, ""),
        (
            {"pyproject.toml": PROJECT, "uv.lock": lock("2.1.3"), "pdm.lock": lock("2.1.3")},
            "pdm.lock: passed over, it agrees with uv.lock",
        ),
        ({"requirements.txt": "a\n", "requirements-dev.txt": "b\n"}, "requirements-dev.txt: passed over"),
        ({"requirements/dev.txt": "b\n"}, "requirements/dev.txt: passed over"),
        ({"requirements.txt": "a\n", "pylock.dev.toml": ""}, "pylock.dev.toml: passed over"),
        ({"requirements.txt": "a\n", "environment.yml": "name: x\n"}, "environment.yml: passed over"),
        ({"requirements.txt": "a\n", "setup.py": "setup()"}, "setup.py: passed over"),
    ],
)
def test_sources_that_agree_are_taken_and_the_other_one_is_named(files: Files, note: str) -> None:
    """Also an exported list beside a lock file."""
    assert note in "\n".join(planned({**RUN, **files}).notes)


def test_a_list_for_conda_alone_is_refused_by_name() -> None:
    """No builder has conda."""
    assert "environment.yml lists the packages for conda" in refused({"environment.yml": "name: x\n", "app.py": ""})


@pytest.mark.parametrize(
    ("files", "version", "file"),
    [
        ({".python-version": "3.12\n", "runtime.txt": "python-3.12"}, "3.12", ".python-version"),
        ({".python-version": "cpython-3.12.4-linux-x86_64-gnu"}, "3.12.4", ".python-version"),
        ({".python-version": ">=3.11, <3.13"}, ">=3.11,<3.13", ".python-version"),
        ({".python-version": "\ufeff3.11\r\n"}, "3.11", ".python-version"),
        ({".python-version": "3.12 # why\n3.11\n"}, "3.12", ".python-version"),
        ({"runtime.txt": "python-3.10.4"}, "3.10.4", "runtime.txt"),
        ({".tool-versions": "nodejs 20.1.0\npython 3.12.1 3.11.0 # two\n"}, "3.12.1", ".tool-versions"),
        ({"mise.toml": '[tools]\npython = "3.13"\n'}, "3.13", "mise.toml"),
        ({".mise.toml": '[tools]\npython = {version = "3.13"}\n'}, "3.13", ".mise.toml"),
        ({"mise.toml": '[tools]\npython = ["3.12", "3.11"]\n'}, "3.12", "mise.toml"),
        ({"mise.toml": '[tools]\npython = "latest"\n'}, None, None),
        ({"Pipfile": '[packages]\n[requires]\npython_version = "3.11"\n'}, "3.11", "Pipfile"),
        ({"pyproject.toml": PROJECT}, ">=3.11", "pyproject.toml"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "^3.11"\n'}, ">=3.11,<4", "pyproject.toml"),
        ({"pyproject.toml": '[tool.poetry.dependencies]\npython = "~3.11"\n'}, ">=3.11,<3.12", "pyproject.toml"),
        ({"pyproject.toml": PROJECT, ".python-version": "3.12"}, "3.12", ".python-version"),
        ({"requirements.txt": ""}, None, None),
    ],
)
def test_the_python_version_and_the_file_that_asks_for_it(files: Files, version: str | None, file: str | None) -> None:
    """Ranges are passed on as they are."""
    found = packages(files)
    assert (found.version, found.version_file) == (version, file)
    assert planned({**RUN, **files}).runtime.version == version


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"pyproject.toml": PROJECT, ".python-version": "3.10"},
            ".python-version and `requires-python` of pyproject.toml contradict",
        ),
        ({"pyproject.toml": PROJECT, "runtime.txt": "python-3.9.1"}, "runtime.txt asks for Python 3.9.1"),
        ({".python-version": "my-virtualenv"}, ".python-version asks for 'my-virtualenv'"),
        ({".python-version": "pypy3.10"}, "asks for 'pypy3.10'"),
        ({".python-version": ""}, "asks for ''"),
        ({"mise.toml": '[tools]\npython = "$(id)"\n'}, "mise.toml asks for the version '$(id)'"),
    ],
)
def test_a_version_that_cannot_be_is_refused_by_file(files: Files, says: str) -> None:
    """Two that exclude each other, and what is no version."""
    assert says in refused({**RUN, "requirements.txt": "", **files})


@pytest.mark.parametrize(
    ("files", "project"),
    [
        ({"pyproject.toml": PROJECT}, False),
        ({"pyproject.toml": PROJECT + BACKEND}, False),
        ({"pyproject.toml": PROJECT + BACKEND, "src/shop/__init__.py": ""}, True),
        ({"pyproject.toml": PROJECT + BACKEND, "shop/__init__.py": ""}, True),
        ({"pyproject.toml": PROJECT + BACKEND, "shop.py": ""}, True),
        ({"pyproject.toml": PROJECT + '[project.scripts]\nshop = "x:y"\n' + BACKEND}, True),
        ({"pyproject.toml": PROJECT + BACKEND + "[tool.uv]\npackage = false\n", "shop/__init__.py": ""}, False),
        ({"pyproject.toml": PROJECT + "[tool.uv]\npackage = true\n"}, True),
        ({"pyproject.toml": "[tool.poetry]\nname = 'shop'\npackage-mode = false\n" + BACKEND, "shop/x.py": ""}, False),
        ({"pyproject.toml": "[tool.poetry]\nname = 'shop'\n" + BACKEND, "shop/x.py": ""}, True),
        ({"setup.py": "setup()"}, True),
        ({"requirements.txt": "a\n"}, False),
    ],
)
def test_the_project_itself_is_installed_where_it_is_a_package(files: Files, project: bool) -> None:
    """A build backend alone is in many repositories whose code is no package."""
    found = packages(files)
    assert found.project is project
    assert found.needs_source is ("setup.py" in files)  # else the project is a layer of its own


def test_a_process_that_is_the_project_s_own_command_has_it_installed() -> None:
    """Though requirements.txt does not name the project."""
    files = {"requirements.txt": "markupsafe\n", "Procfile": "web: shop --port $PORT"}
    found = planned({**files, "pyproject.toml": PROJECT + '[project.scripts]\nshop = "x:y"\n' + BACKEND})
    assert found.packages[0].project
    assert "shop is its command" in said(found)


@pytest.mark.parametrize("line", [".", "./lib", "-e ./lib", "lib @ file:./lib", "./wheels/a-1-py3-none-any.whl"])
def test_a_requirement_of_the_app_itself_needs_its_source(line: str) -> None:
    """The layer depends on more than the manifests."""
    assert packages({"requirements.txt": line + "\n"}).needs_source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-r missing.txt\n", "includes 'missing.txt', and there is no such file"),
        ("-r ../../x.txt\n", "outside of the app's folder"),
        ("-r /etc/passwd\n", "outside of the app's folder"),
    ],
)
def test_an_included_file_that_is_not_there_is_named(text: str, says: str) -> None:
    """Before anything is built."""
    assert says in refused(RUN | {"requirements.txt": text})


def test_dependency_groups_are_named_or_used() -> None:
    """Those of development stay out; where a file has nothing but groups, the one of the app counts."""
    groups = '[dependency-groups]\ndev = ["pytest"]\n'
    found = planned({**RUN, "pyproject.toml": PROJECT + groups})
    assert "not installed: the dependency groups dev of pyproject.toml" in found.notes
    alone = packages({"pyproject.toml": groups + 'prod = ["flask==3.0.0"]\n'})
    assert (alone.tool, alone.manifests, alone.groups) == ("pip", ("pyproject.toml",), ("prod",))
    tools = planned({"package.json": {"scripts": {"start": "node ."}}, "pyproject.toml": groups})
    assert [each.language for each in tools.packages] == ["node"]
