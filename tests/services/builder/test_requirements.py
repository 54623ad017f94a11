"""What a Python app's files say of its dependencies, and what becomes part of the layer's key."""

from collections.abc import Mapping

import pytest

from services.builder.adapters.layers.requirements import Requirements, read_requirements
from services.builder.errors import CannotBuild


def read(files: Mapping[str, str]) -> Requirements:
    content = {name: text.encode() for name, text in files.items()}
    return read_requirements(content.get)


def test_requirements_come_before_pyproject() -> None:
    """The lock-like file wins."""
    project = '[project]\nname = "x"\ndependencies = ["a"]\n'

    assert read({"requirements.txt": "six==1.17\n", "pyproject.toml": project}).file == "requirements.txt"
    assert read({"pyproject.toml": project}).file == "pyproject.toml"
    assert read({}).file is None


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "   # nothing"])
def test_a_file_without_requirements_installs_nothing(text: str) -> None:
    """Uv is not even started."""
    assert read({"requirements.txt": text}).file is None


def test_included_files_are_part_of_the_key() -> None:
    """Through several levels, relative to the file that includes, each once."""
    files = {
        "requirements.txt": "-r reqs/base.txt\n-c constraints.txt\n",
        "reqs/base.txt": "--requirement=more.txt\n-r ../requirements.txt\nsix\n",
        "reqs/more.txt": "flask",
        "constraints.txt": "six<2",
        "unrelated.txt": "x",
    }

    assert set(read(files).inputs) == files.keys() - {"unrelated.txt"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-r /etc/passwd", "outside of the app's folder"),
        ("-r ../secret.txt", "outside of the app's folder"),
        ("-r none.txt", "no such file"),
        ("-e .", "editable install"),
        ("--editable ./lib", "editable install"),
    ],
)
def test_what_cannot_be_built_is_named(line: str, words: str) -> None:
    """With the file and the line's text."""
    with pytest.raises(CannotBuild, match=words) as failure:
        read({"requirements.txt": f"six\n{line}\n"})

    assert "requirements.txt" in failure.value.message


@pytest.mark.parametrize(
    ("line", "local"),
    [
        *[
            (line, True)
            for line in (".", "./lib", "/opt/lib", "lib @ file:///opt/lib", "vendor/x-1.0-py3-none-any.whl")
        ],
        *[(line, True) for line in ("x-1.0.tar.gz", "--find-links ./wheels", "file:lib")],
        *[(line, False) for line in ("six==1.17", "six @ https://example.com/six.whl", "-r https://example.com/r.txt")],
        *[(line, False) for line in ("--index-url https://example.com/simple", "a.b==1", "requests[socks]>=2 ; x")],
    ],
)
def test_what_lies_in_the_app_makes_the_layer_depend_on_its_source(line: str, local: bool) -> None:
    """A folder or file of the app may change without requirements.txt changing."""
    assert read({"requirements.txt": line + "\n"}).needs_source is local


def test_of_pyproject_only_what_decides_is_part_of_the_key() -> None:
    """A new version of the app itself installs nothing anew."""
    one = read({"pyproject.toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["six"]\n'})
    two = read({"pyproject.toml": '[project]\nname = "x"\nversion = "2"\ndependencies = ["six"]\n[tool.ruff]\n'})
    three = read({"pyproject.toml": '[project]\nname = "x"\nversion = "2"\ndependencies = ["six<2"]\n'})

    assert one.inputs == two.inputs != three.inputs


def test_dependencies_that_are_computed_need_the_source() -> None:
    """`dynamic`, and sources that are folders of the app."""
    assert read({"pyproject.toml": '[project]\nname = "x"\ndynamic = ["dependencies"]\n'}).needs_source
    project = '[project]\nname = "x"\ndependencies = ["lib"]\n[tool.uv.sources]\nlib = { path = "lib" }\n'
    assert read({"pyproject.toml": project}).needs_source


def test_the_apps_own_configuration_of_uv_is_used_and_part_of_the_key() -> None:
    """An index of its own, for example."""
    plain = read({"requirements.txt": "six"})
    own = read({"requirements.txt": "six", "uv.toml": 'index-url = "https://example.com"'})

    assert not plain.own_config
    assert own.own_config
    assert plain.inputs != own.inputs


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pyproject.toml": "not toml ["}, "pyproject.toml cannot be read"),
        ({"pyproject.toml": "[tool.poetry]\nname = 'x'\n"}, "poetry"),
    ],
)
def test_a_pyproject_that_cannot_be_used_says_why(files: Mapping[str, str], words: str) -> None:
    """Wrong TOML; dependencies where this builder does not look."""
    with pytest.raises(CannotBuild, match=words):
        read(files)


def test_a_file_that_is_not_text_says_so() -> None:
    """UTF-16 from an editor on Windows, for example."""
    with pytest.raises(CannotBuild, match=r"requirements\.txt is not UTF-8"):
        read_requirements({"requirements.txt": "six".encode("utf-16")}.get)
