"""What requirement files say, and the form in which an image can hold what they install."""

from collections.abc import Mapping

import pytest

from services.builder.errors import CannotBuild
from services.builder.install.requirements import Requirements, read_requirements


def read(files: Mapping[str, str]) -> Requirements:
    content = {name: text.encode() for name, text in files.items()}
    return read_requirements("requirements.txt", content.get)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "   # nothing"])
def test_a_file_without_requirements_installs_nothing(text: str) -> None:
    """Uv is not even started."""
    assert read({"requirements.txt": text}).empty


def test_included_files_are_read_too() -> None:
    """Through several levels, relative to the file that includes, each once."""
    files = {
        "requirements.txt": "-r reqs/base.txt\n-c constraints.txt\n",
        "reqs/base.txt": "--requirement=more.txt\n-r ../requirements.txt\nsix\n",
        "reqs/more.txt": "flask",
        "constraints.txt": "six<2",
        "unrelated.txt": "x",
    }

    assert set(read(files).files) == files.keys() - {"unrelated.txt"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-r /etc/passwd", "outside of the app's folder"),
        ("-r ../secret.txt", "outside of the app's folder"),
        ("-r none.txt", "no such file"),
    ],
)
def test_what_cannot_be_built_is_named(line: str, words: str) -> None:
    """With the file and the line's text."""
    with pytest.raises(CannotBuild, match=words) as failure:
        read({"requirements.txt": f"six\n{line}\n"})

    assert "requirements.txt" in failure.value.message


@pytest.mark.parametrize(
    ("line", "installed"),
    [
        ("-e .", "."),
        ("-e.", "."),
        ("--editable=./lib[more]", "./lib[more]"),
        ("--editable ./lib ; python_version > '3'", "./lib ; python_version > '3'"),
        ("-e git+https://example.com/a/b.git@v1#egg=b", "b @ git+https://example.com/a/b.git@v1"),
        (
            "-e git+https://example.com/a/b.git#egg=b[x]&subdirectory=sub",
            "b[x] @ git+https://example.com/a/b.git#subdirectory=sub",
        ),
        ("--extra-index-url https://example.com", "--extra-index-url https://example.com"),
    ],
)
def test_an_editable_requirement_becomes_a_regular_one(line: str, installed: str) -> None:
    """It would point into the folder of the build, which is gone when the app runs."""
    found = read({"requirements.txt": f"six\r\n{line}\r\n"})

    assert found.files["requirements.txt"] == f"six\n{installed}\n"
    assert found.rewritten == (["requirements.txt"] if line.startswith(("-e", "--editable")) else [])


@pytest.mark.parametrize(
    ("line", "local"),
    [
        *[
            (line, True)
            for line in ("./lib", "-e ./lib", "/opt/lib", "lib @ file:///opt/lib", "vendor/x-1.0-py3-none-any.whl")
        ],
        *[(line, True) for line in ("x-1.0.tar.gz", "--find-links ./wheels", "file:lib")],
        *[(line, False) for line in ("six==1.17", "six @ https://example.com/six.whl", "-r https://example.com/r.txt")],
        *[(line, False) for line in ("--index-url https://example.com/simple", "a.b==1", "requests[socks]>=2 ; x")],
    ],
)
def test_what_lies_in_the_app_makes_the_layer_depend_on_its_source(line: str, local: bool) -> None:
    """A folder or file of the app may change without requirements.txt changing."""
    assert read({"requirements.txt": line + "\n"}).needs_source is local


@pytest.mark.parametrize(
    ("line", "extras"), [(".", []), ("-e .", []), ("./", []), ("-e .[web, db]", ["web", "db"]), ("./lib", None)]
)
def test_the_apps_own_project_is_recognised(line: str, extras: list[str] | None) -> None:
    """It is installed in a layer of its own; the other lines stay."""
    found = read({"requirements.txt": f"six\n{line}\n"})

    assert found.itself == extras
    if extras is not None:
        assert found.without_itself() == {"requirements.txt": "six\n"}


def test_hashes_are_noticed_over_continued_lines() -> None:
    """As `pip-compile --generate-hashes` writes them."""
    assert read({"requirements.txt": "six==1.17 \\\n    --hash=sha256:ab\n"}).hashed
    assert not read({"requirements.txt": "six==1.17\n"}).hashed


def test_a_byte_order_mark_is_passed_over() -> None:
    """Editors on Windows write one, also for UTF-16, which pip reads too."""
    for encoding in ("utf-8-sig", "utf-16"):
        found = read_requirements("r.txt", {"r.txt": "six\n".encode(encoding)}.get)
        assert found.files == {"r.txt": "six\n"}


def test_a_file_that_is_not_text_says_so() -> None:
    """Latin-1 from an old editor, for example."""
    with pytest.raises(CannotBuild, match=r"requirements\.txt is not UTF-8"):
        read_requirements("requirements.txt", {"requirements.txt": "# M\xfcnchen".encode("latin-1")}.get)
