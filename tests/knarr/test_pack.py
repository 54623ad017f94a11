"""A folder as an archive: the same files give the same bytes, and what nobody deploys stays out."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from knarr.pack import Limits, Packed, pack
from seedwork.errors import InvalidInput, NotFound, TooLarge


def packed(folder: Path) -> bytes:
    archive = io.BytesIO()
    pack(folder, archive)
    return archive.getvalue()


def told(folder: Path) -> Packed:
    return pack(folder, io.BytesIO())


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


def git(folder: Path, *args: str) -> None:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True)


def test_repositories_inside_the_folder_go_along(tmp_path: Path) -> None:
    """A submodule, an untracked clone, and a clone in that one: each by its own `.gitignore`."""
    for folder in ("sub", "main", "main/clone", "main/clone/deep"):
        (tmp_path / folder).mkdir(exist_ok=True)
        git(tmp_path / folder, "init", "--quiet")
    write(tmp_path / "sub", "helper.py")
    git(tmp_path / "sub", "add", ".")
    git(tmp_path / "sub", "commit", "-qm", "s")
    main = tmp_path / "main"
    write(main, "app.py", "clone/x.py", "clone/x.log", "clone/deep/y.py")
    (main / "clone/.gitignore").write_text("*.log\n")
    git(main, "submodule", "add", "--quiet", str(tmp_path / "sub"), "lib")
    assert names(packed(main)) == [
        ".gitmodules",
        "app.py",
        "clone/.gitignore",
        "clone/deep/y.py",
        "clone/x.py",
        "lib/helper.py",
    ]
    assert told(main).left_out == ("ignored by git: clone/x.log",)


def test_a_submodule_that_is_not_checked_out_is_named(tmp_path: Path) -> None:
    """With the command; one whose files were copied there is packed."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path, "app.py", "copied/x.py")
    (tmp_path / "lib").mkdir()
    for path in ("lib", "copied"):
        git(tmp_path, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{path}")
    assert told(tmp_path).left_out == ("lib: a submodule that is not checked out: git submodule update --init",)
    assert names(packed(tmp_path)) == ["app.py", "copied/x.py"]


def test_what_stays_out_is_listed(tmp_path: Path) -> None:
    """By git's rules, or by the list; a few names of many. A socket is named too."""
    write(tmp_path / "plain", "app.py", *(f"m{at}/node_modules/x" for at in range(10)), ".env")
    os.mkfifo(tmp_path / "plain/pipe")
    listed = ".env, " + ", ".join(f"m{at}/node_modules" for at in range(7))
    assert told(tmp_path / "plain").left_out == (
        f"never deployed: {listed} and 3 more",
        "pipe: it is neither a file nor a link",
    )
    known = tmp_path / "known"
    write(known, "app.py", "build/x", "b.log")
    git(known, "init", "--quiet")
    (known / ".gitignore").write_text("build/\n*.log\n")
    assert told(known).left_out == ("ignored by git: b.log, build/",)


@pytest.mark.parametrize("known", [False, True], ids=["folder", "repository"])
def test_a_folder_that_is_too_large_is_refused_before_a_byte_is_packed(tmp_path: Path, *, known: bool) -> None:
    """By its files' sizes (a sparse file costs nothing here), or by their number; the largest are named."""
    write(tmp_path, "app.py", "data/b", "data/c")
    with (tmp_path / "data/model.bin").open("wb") as file:
        file.truncate(5 * 1024**3)
    if known:
        git(tmp_path, "init", "--quiet")
    into = io.BytesIO()
    with pytest.raises(TooLarge, match=r"KNARR_SOURCE_MAX_BYTES.*data 5\.\d GB"):
        pack(tmp_path, into)
    with pytest.raises(TooLarge, match=r"more than 2 files \(KNARR_SOURCE_MAX_ENTRIES"):
        pack(tmp_path, into, Limits(source_max_entries=2, source_max_bytes=1 << 60))
    assert into.getvalue() == b""


def test_packing_ends_at_the_limit_of_an_upload(tmp_path: Path) -> None:
    """What cannot be compressed: the rest is not read."""
    for number in range(40):
        (tmp_path / f"{number:02}").write_bytes(os.urandom(100_000))
    into = io.BytesIO()
    with pytest.raises(TooLarge, match="KNARR_UPLOAD_MAX_BYTES"):
        pack(tmp_path, into, Limits(upload_max_bytes=1_000_000))
    assert len(into.getvalue()) < 1_500_000


def test_a_name_that_is_not_utf_8_is_packed(tmp_path: Path) -> None:
    """Names are bytes."""
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_bytes(b"1")
    assert names(packed(tmp_path)) == [name]
    git(tmp_path, "init", "--quiet")
    assert names(packed(tmp_path)) == [name]


def test_the_configuration_of_the_folder_starts_no_program(tmp_path: Path) -> None:
    """A cloned folder may have been made to harm."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path, "app.py")
    git(tmp_path, "add", ".")
    program = tmp_path.parent / "evil"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path.parent}/ran\n")
    program.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(program))
    assert names(packed(tmp_path)) == ["app.py"]
    assert not (tmp_path.parent / "ran").exists()
