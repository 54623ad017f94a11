"""Volumes on local processes: files that stay, whatever becomes of the releases."""

import io
import tarfile
from pathlib import Path

import httpx2
import orjson
import pytest

from ocistore.store import LABEL_STORAGE
from seedwork.errors import InvalidInput
from seedwork.messages import new_id
from services.deployer.adapters.process.volumes import ProcessVolumes, folder_of, mount
from services.deployer.contract import RetireApp, RollBackRelease
from services.deployer.ports import Volume
from services.deployer.volumes import checked
from services.webhook.contract import AppCreated
from tests.services.deployer.conftest import PYTHON, eventually
from tests.services.deployer.test_service import Stack, settings, stack

__all__ = ["settings", "stack"]

COUNTS = """
import http.server, os, pathlib
FILE = pathlib.Path(os.environ["STORAGE_DATA"]) / "count"
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count = int(FILE.read_text()) + 1 if FILE.exists() else 1
        if self.path == "/count":
            FILE.write_text(str(count))
        body = str(count).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"""
STORED = {LABEL_STORAGE: orjson.dumps([{"path": "/data", "size_bytes": None}]).decode()}


async def _counting(stack: Stack) -> None:
    image = await stack.shelf.image({"app.py": COUNTS}, web=(PYTHON, "app.py"), labels=STORED)
    answer = await stack.deploy(image)
    assert answer.type == "ReleaseDeployed", answer.data


async def test_files_of_a_volume_stay_through_releases_and_an_undo(stack: Stack) -> None:
    """A second release, a restart and the undo of a release find what the first one wrote."""
    await _counting(stack)
    assert (await stack.get("count")).text == "1"
    started = await stack.client.post("/apps/shop/restart")
    await stack.carry_out(started.json()["saga_id"])
    assert (await stack.get("count")).text == "2"

    saga = new_id()
    image = await stack.shelf.image({"app.py": COUNTS, "more": "x"}, web=(PYTHON, "app.py"), labels=STORED)
    await stack.deploy(image, saga)
    assert (await stack.get("count")).text == "3"
    await stack.ask(RollBackRelease(), saga)
    assert (await stack.get("count")).text == "4"


async def test_an_added_volume_reaches_the_instances_by_a_release(stack: Stack) -> None:
    """The request answers with the saga that replaces the instances; the variable holds the path."""
    await stack.deploy(await stack.shelf.image(version="one"))
    answer = await stack.client.post("/apps/shop/storage", json={"path": "/app/uploads", "size_bytes": 5 * 1024**2})
    assert answer.status_code == 201, answer.text
    assert "STORAGE_UPLOADS" not in (await stack.get("env")).text
    await stack.carry_out(answer.json()["saga_id"])
    (line,) = [each for each in (await stack.get("env")).text.splitlines() if each.startswith("STORAGE_UPLOADS=")]
    folder = Path(line.partition("=")[2])
    (release,) = (stack.home / "releases").iterdir()
    assert (release / "app" / "uploads").readlink() == folder

    (folder / "kept").write_text("12345")
    (shown,) = (await stack.client.get("/apps/shop/storage")).json()["items"]
    assert (shown["name"], shown["path"], shown["state"], shown["orphan"]) == ("uploads", "/app/uploads", "live", False)
    assert shown["used_bytes"] >= 5


async def test_a_volume_goes_only_by_name_and_when_no_instance_uses_it(stack: Stack) -> None:
    """Without the right name nothing happens; with it the content goes after the instances were replaced."""
    await stack.deploy(await stack.shelf.image(version="one"))
    added = (await stack.client.post("/apps/shop/storage", json={})).json()
    await stack.carry_out(added["saga_id"])
    folder = stack.home / "storage" / stack.shelf.app_id / "data"
    assert (await stack.client.delete(f"/storage/{stack.shelf.app_id}/data?confirm=other")).status_code == 400
    assert (await stack.client.delete(f"/storage/{stack.shelf.app_id}/none?confirm=none")).status_code == 404

    removed = await stack.client.delete(f"/storage/{stack.shelf.app_id}/data?confirm=data")
    assert removed.status_code == 202, removed.text
    assert folder.is_dir()
    await stack.carry_out(removed.json()["saga_id"])

    async def gone() -> bool:
        return not (await stack.client.get("/storage")).json()["items"]

    await eventually(gone)
    assert not folder.exists()


async def test_a_removed_apps_volume_stays_until_it_is_named(stack: Stack) -> None:
    """Removing the app leaves its data: it is listed as an orphan, and deleted by its own name."""
    await _counting(stack)
    await stack.get("count")
    await stack.ask(RetireApp(app="shop"), new_id())
    (shown,) = (await stack.client.get("/storage")).json()["items"]
    assert (shown["app"], shown["orphan"]) == ("shop", True)
    assert (stack.home / "storage" / stack.shelf.app_id / "data" / "count").read_text() == "1"
    removed = await stack.client.delete(f"/storage/{stack.shelf.app_id}/data?confirm=data")
    assert removed.status_code == 202
    assert not (stack.home / "storage" / stack.shelf.app_id).exists()


async def test_a_volume_is_exported_and_imported(stack: Stack) -> None:
    """The archive of the one content replaces another one; not while instances run."""
    await stack.send(AppCreated(app="shop"), new_id())
    await eventually(lambda: stack.client.get("/apps/shop"), until=lambda answer: answer.status_code == 200)
    await stack.client.post("/apps/shop/storage", json={})
    path = "/apps/shop/storage/data/content"
    assert (await stack.client.put(path, content=_tar({"a/b": b"first", "c": b""}))).status_code == 204
    exported = await stack.client.get(path)
    assert _names(exported.content) == {"a", "a/b", "c"}
    assert (await stack.client.put(path, content=_tar({"d": b"second"}))).status_code == 204
    assert _names((await stack.client.get(path)).content) == {"d"}
    assert (await stack.client.put(path, content=exported.content)).status_code == 204
    assert _names((await stack.client.get(path)).content) == {"a", "a/b", "c"}

    await _counting(stack)
    refused = await stack.client.put(path, content=_tar({"e": b""}))
    assert refused.status_code == 409
    assert "knarr stop shop" in refused.json()["todo"]


async def test_an_archive_that_leaves_the_folder_changes_nothing(stack: Stack) -> None:
    """A damaged one, and one with `..`: what was there stays."""
    await stack.send(AppCreated(app="shop"), new_id())
    await eventually(lambda: stack.client.get("/apps/shop"), until=lambda answer: answer.status_code == 200)
    await stack.client.post("/apps/shop/storage", json={"size_bytes": 1024**2})
    path = "/apps/shop/storage/data/content"
    await stack.client.put(path, content=_tar({"kept": b"x"}))
    for wrong in (b"no tar at all" * 100, _tar({"../out": b"x"}), _tar({"kept": b"x"})[:700]):
        answer: httpx2.Response = await stack.client.put(path, content=wrong)
        assert 400 <= answer.status_code < 500, answer.text
    too_large = await stack.client.put(path, content=_tar({"big": bytes(4 * 1024**2)}))
    assert too_large.status_code == 413
    assert _names((await stack.client.get(path)).content) == {"kept"}


@pytest.mark.parametrize(
    "path", ["data", "/", "/app", "/etc/x", "/data/../etc", "/layers/python", "/a b", "/" + "x" * 300, "/data\n"]
)
def test_paths_of_the_system_and_of_the_whole_app_are_refused(path: str) -> None:
    """A volume replaces what is at its path."""
    with pytest.raises(InvalidInput):
        checked(path, None, None)


def test_a_volume_over_a_folder_of_the_repository_begins_with_its_files(tmp_path: Path) -> None:
    """As with Docker; a second release finds what is in the volume, not what it brings itself."""
    volume = Volume(app_id="a", name="uploads", path="/app/uploads", size_bytes=1)
    for release, text in (("one", "first"), ("two", "second")):
        (tmp_path / release / "uploads").mkdir(parents=True)
        (tmp_path / release / "uploads" / "seed").write_text(text)
        mount(tmp_path, volume, tmp_path / release)
    assert (tmp_path / "two" / "uploads" / "seed").read_text() == "first"
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "uploads").symlink_to("/etc")
    with pytest.raises(InvalidInput):
        mount(tmp_path, volume, tmp_path / "three")


async def test_used_bytes_of_a_volume_that_was_never_mounted_are_not_known(tmp_path: Path) -> None:
    """Null is not zero."""
    volume = Volume(app_id="a", name="data", path="/data", size_bytes=1)
    volumes = ProcessVolumes(tmp_path)
    assert await volumes.used_bytes(volume) is None
    folder_of(tmp_path, volume).mkdir(parents=True)
    assert await volumes.used_bytes(volume) == 0
    assert await volumes.delete(volume) == ["volume data"]
    assert await volumes.delete(volume) == []


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _names(archive: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        return set(read.getnames())
