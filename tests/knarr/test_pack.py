"""A folder as an archive: the same files give the same bytes, and what nobody deploys stays out."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from knarr.pack import pack
from seedwork.errors import InvalidInput, NotFound


def packed(folder: Path) -> bytes:
    archive = io.BytesIO()
    pack(folder, archive)
    return archive.getvalue()


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither times nor the order of a directory nor its place are in it."""
    write(tmp_path / "one", "b.py", "a/c.py")
    write(tmp_path / "two", "a/c.py", "b.py")
    os.utime(tmp_path / "two/b.py", (1, 1))
    assert packed(tmp_path / "one") == packed(tmp_path / "two")


def test_what_git_ignores_stays_out_and_new_files_go_in(tmp_path: Path) -> None:
    """Tracked, or neither tracked nor ignored: what the author sees in `git status`."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    write(tmp_path, "app.py", "new.py", "secret.env", "node_modules/left/pad.js")
    (tmp_path / ".gitignore").write_text("*.env\nnode_modules/\n")
    subprocess.run(["git", "-C", tmp_path, "add", "app.py"], check=True)
    assert names(packed(tmp_path)) == [".gitignore", "app.py", "new.py"]


def test_a_file_that_git_knows_and_that_was_deleted_stays_out(tmp_path: Path) -> None:
    """The folder counts, not the index."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    write(tmp_path, "app.py", "gone.py")
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    (tmp_path / "gone.py").unlink()
    assert names(packed(tmp_path)) == ["app.py"]


def test_a_folder_inside_a_repository_is_packed_from_its_own_root(tmp_path: Path) -> None:
    """`knarr deploy examples/hello` packs that folder alone."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    write(tmp_path, "other/x.py", "apps/shop/app.py")
    assert names(packed(tmp_path / "apps/shop")) == ["app.py"]


def test_without_git_a_list_of_names_stays_out(tmp_path: Path) -> None:
    """Caches, environments, dependencies, and `.env`."""
    write(tmp_path, "app.py", ".venv/x", "node_modules/y", "a/__pycache__/z", ".env", "a/b.py")
    assert names(packed(tmp_path)) == ["a/b.py", "app.py"]


def test_links_and_the_executable_bit_are_kept(tmp_path: Path) -> None:
    """And nothing else of a file's mode or owner."""
    write(tmp_path, "run.sh", "app.py")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "link").symlink_to("app.py")
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path))) as tar:
        modes = {each.name: (each.mode, each.uid, each.mtime, each.linkname) for each in tar}
    assert modes == {"app.py": (0o644, 0, 0, ""), "link": (0o777, 0, 0, "app.py"), "run.sh": (0o755, 0, 0, "")}


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    """With words, before anything is sent."""
    with pytest.raises(InvalidInput, match="nothing to deploy"):
        packed(tmp_path)
    with pytest.raises(NotFound, match="no folder"):
        packed(tmp_path / "nowhere")


def test_the_compressed_header_holds_no_time(tmp_path: Path) -> None:
    """Bytes 4 to 8 of gzip are a time: zero."""
    write(tmp_path, "app.py")
    archive = packed(tmp_path)
    assert archive[4:8] == b"\0\0\0\0"
    assert gzip.decompress(archive)
