"""The names and contents that detection sees of an app."""

from pathlib import Path

import pytest

from seedwork.archives import NORMAL_MTIME, pack_tar
from services.source.errors import AppInvalid
from services.source.plan.tree import MAX_TOTAL_BYTES, Tree, tree_of_archive, tree_of_folder


def test_a_link_inside_the_root_is_followed_to_its_file() -> None:
    """Also through a folder that is a link, and over several links."""
    found = Tree.of(
        {"conf/Procfile": b"web: run", "src/app/main.py": b"x"},
        links={"Procfile": "conf/Procfile", "app": "src/app", "conf/again": "../Procfile"},
    )
    assert found.read("Procfile") == b"web: run"
    assert found.read("conf/again") == b"web: run"
    assert found.read("app/main.py") == b"x"
    assert found.has_folder("app")
    assert "Procfile" in found.names


@pytest.mark.parametrize("target", ["../Procfile", "/etc/passwd", "conf/../../x", "nothing", "loop", "."])
def test_a_link_that_leads_to_no_file_inside_the_root_is_no_file(target: str) -> None:
    """It is neither followed nor listed."""
    found = Tree.of({"x": b""}, links={"Procfile": target, "loop": "Procfile"})
    assert not found.has("Procfile")
    assert "Procfile" not in found.names
    with pytest.raises(KeyError):
        found.read("Procfile")


def test_an_archive_is_listed_by_its_headers_and_read_by_name(tmp_path: Path) -> None:
    """Only the files that are asked for are read, and only up to the limit."""
    folder = tmp_path / "app"
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "Procfile").write_bytes(b"web: run\n")
    (folder / "Procfile").symlink_to("conf/Procfile")
    (folder / "large.bin").write_bytes(b"x" * 100_000)
    (folder / ("n" * 150 + ".py")).write_bytes(b"long name")
    pack_tar(folder, tmp_path / "app.tar", mtime=NORMAL_MTIME)
    with tree_of_archive(tmp_path / "app.tar") as found:
        assert found.names == ("Procfile", "conf/Procfile", "large.bin", "n" * 150 + ".py")
        assert found.read("Procfile") == b"web: run\n"
        assert found.read("large.bin", 10) == b"x" * 11
        assert found.read("n" * 150 + ".py") == b"long name"


def test_a_folder_is_read_as_its_archive_would_be(tmp_path: Path) -> None:
    """Links are not followed by the system but by the tree."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("/etc/hostname")
    found = tree_of_folder(tmp_path, iter(["a", "b", "c", "gone"]))
    assert found.names == ("a", "b")
    assert found.read("b") == b"1"


def test_what_says_nothing_of_the_app_is_not_listed() -> None:
    """Installed packages, repositories, deep folders, and names that are no text."""
    names = ["node_modules/x/package.json", ".git/config", "a/b/c/d/e/f/g/h/i", "caf\udce9.txt", "app.py"]
    assert Tree.of(dict.fromkeys(names, b"")).names == ("app.py",)


def test_names_near_the_root_are_kept_where_there_are_too_many() -> None:
    """A manifest is not crowded out by data files."""
    files = {f"data/{number:06}.json": b"" for number in range(25_000)} | {"package.json": b"{}"}
    found = Tree.of(files)
    assert len(found.names) == 20_000
    assert found.has("package.json")


def test_a_pointer_of_lfs_is_named_where_a_manifest_is_read() -> None:
    """Its text is not taken for the file's."""
    found = Tree.of({"Procfile": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"})
    with pytest.raises(AppInvalid, match=r"Procfile is a pointer of Git LFS.*git lfs untrack Procfile"):
        found.read("Procfile")


def test_all_reads_together_are_bounded() -> None:
    """However many large files an app has."""
    content = b"x" * (8 * 1024 * 1024)
    found = Tree.of({f"{number}.lock": content for number in range(20)})
    with pytest.raises(AppInvalid, match=str(MAX_TOTAL_BYTES)):
        [found.read(name, len(content)) for name in found.names]


def test_patterns_match_level_by_level() -> None:
    """`*` stands for no slash."""
    found = Tree.of(dict.fromkeys(["settings.py", "a/settings.py", "a/b/settings.py"], b""))
    assert found.matching("*/settings.py") == ("a/settings.py",)
    assert found.matching("*.py") == ("settings.py",)
    assert found.matching("*.py", "a/*.py", "*.py") == ("a/settings.py", "settings.py")
    odd = Tree.of(dict.fromkeys(["a.b", "axb", "a+b.py", "x\ny.py", "[a].py"], b""))
    assert odd.matching("a.b") == ("a.b",)
    assert odd.matching("*.py") == ("[a].py", "a+b.py")
