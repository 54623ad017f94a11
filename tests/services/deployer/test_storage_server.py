"""The program of a storage pod: one export or one import of a folder, for who has the token."""

import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from services.deployer.adapters.kubernetes.storage_server import Handler

TOKEN = {"X-Knarr-Token": "right"}


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of a server that serves one request for this folder."""
    one = {"root": str(root), "token": "right", "begun": threading.Event(), "ended": threading.Event()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Handler,), one))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def asked(root: Path, method: str = "GET", content: bytes | None = None) -> httpx2.Response:
    with served(root) as url:
        return httpx2.request(method, url, headers=TOKEN, content=content, trust_env=False)


def archive(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    (folder / "kept").write_text("old")
    return folder


def test_an_export_has_files_folders_and_links_without_owners(volume: Path) -> None:
    """Sockets and the file system's own folder are left out."""
    (volume / "folder").mkdir()
    (volume / "folder/link").symlink_to("../kept")
    os.mkfifo(volume / "pipe")
    with tarfile.open(fileobj=io.BytesIO(asked(volume).content)) as tar:
        assert tar.getnames() == ["folder", "folder/link", "kept"]
        assert {(each.uid, each.gid, each.uname) for each in tar} == {(0, 0, "")}


def test_an_import_replaces_everything(volume: Path) -> None:
    """What a cut-off import left is no content."""
    (volume / ".knarr-new").mkdir()
    assert asked(volume, "PUT", archive({"a/b": "new"})).status_code == 204
    assert sorted(each.name for each in volume.iterdir()) == ["a", "lost+found"]
    assert (volume / "a/b").read_text() == "new"


@pytest.mark.parametrize("cut", [1000, 10])
def test_an_import_that_fails_changes_nothing(volume: Path, cut: int) -> None:
    """An archive that is cut off, or none."""
    answer = asked(volume, "PUT", archive({"a": "x" * 4000})[:cut])
    assert answer.status_code == 507
    assert (volume / "kept").read_text() == "old"
    assert sorted(each.name for each in volume.iterdir()) == ["kept", "lost+found"]


def test_without_the_token_nothing_is_given_and_it_counts_once(volume: Path) -> None:
    """A pod of the same namespace can connect."""
    with served(volume) as url:
        assert httpx2.get(url, trust_env=False).status_code == 403
        assert httpx2.put(url, headers={"X-Knarr-Token": "wrong"}, content=b"", trust_env=False).status_code == 403
        assert httpx2.get(url, headers=TOKEN, trust_env=False).status_code == 200
        assert httpx2.get(url, headers=TOKEN, trust_env=False).status_code == 403
