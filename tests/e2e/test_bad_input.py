"""What must not work does not: whoever sent it is told what, why and what to do, and nothing of it stays.

Signatures, bodies and payloads of a push are in `test_a_push_becomes_an_app.py`, apps that do not start in
`test_a_failure_is_undone.py`, the disk in `test_a_full_disk.py`.
"""

import gzip
import io
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from seedwork.errors import InvalidInput, NotAllowed
from tests.e2e.harness import WRONG_PORT, Client, Knarr, Laptop, error_of, step_of, web_app

pytestmark = pytest.mark.xdist_group("e2e-bad-input")

MIB = 1024 * 1024
BUILD_MEMORY = 256 * MIB
SOURCE_BYTES = 4 * MIB
LOG_BYTES = 256 * 1024

EATS_MEMORY = """
eaten = []
while True:
    eaten.append(bytearray(16 * 1024 * 1024))
"""
KILLS_ITS_WORKER = """
import json, os, time
while True:
    try:
        pid = json.load(open({platform!r}))["pid"]
    except (OSError, ValueError):
        time.sleep(0.05)
        continue
    open({mark!r}, "w").write("the build")
    os.kill(pid, 9)
    time.sleep(600)
"""
PRINTS_WITHOUT_END = """
import threading
def shout():
    while True:
        print("x" * 1000)
threading.Thread(target=shout, daemon=True).start()
"""
BILLION_LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))]
)


@pytest.fixture(scope="module")
def strict(knarr: Knarr) -> Knarr:
    """The shared platform with low limits."""
    knarr.stop()
    knarr.settings |= {
        "KNARR_BUILD_MEMORY_BYTES": str(BUILD_MEMORY),
        "KNARR_SOURCE_MAX_BYTES": str(SOURCE_BYTES),
        "KNARR_APP_LOG_MAX_BYTES": str(LOG_BYTES),
        "KNARR_WRONG_PORT_S": "1",
    }
    return knarr.start()


def building(code: str) -> dict[str, str]:
    """An app whose installation runs this."""
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    return {
        **web_app("one"),
        "requirements.txt": "./lib\n",
        "lib/pyproject.toml": backend,
        "lib/backend.py": code,
    }


def refused(knarr: Knarr, name: str, files: Mapping[str, str], *, at: str) -> dict[str, Any]:
    """Push it; it is undone, at its first attempt, and nothing is left. The step that failed."""
    repository = knarr.repository(name, files)
    knarr.create_app(name, repository)
    saga = knarr.deploy(repository)
    assert (saga["state"], saga["reason"]) == ("COMPENSATED", "failed"), saga
    step = step_of(saga, at)
    assert step["attempts"] == 1
    assert step["error"]["retryable"] is False
    knarr.has_let_go_of(saga["id"])
    return step


# --- builds ----------------------------------------------------------------------------------------------------------


def test_a_build_that_eats_all_memory_is_ended(strict: Knarr) -> None:
    """For good, with the setting that gives more."""
    error = refused(strict, "hungry", building(EATS_MEMORY), at="build")["error"]
    assert error["code"] == "out_of_memory"
    assert "KNARR_BUILD_MEMORY_BYTES" in error["message"]
    assert f"{BUILD_MEMORY // MIB} MiB" in error["message"]


@pytest.mark.laptop("a build kills the one process that all is")
def test_a_build_that_kills_its_worker_is_given_up_after_the_third_time(strict: Laptop) -> None:
    """The platform is started again each time, as a supervisor would; what ran before answers again each time."""
    repository = strict.repository("killer")
    strict.create_app("killer", repository)
    assert strict.deploy(repository)["state"] == "SUCCEEDED"
    code = KILLS_ITS_WORKER.format(platform=str(strict.home / "platform.json"), mark=str(strict.mark))
    repository.commit(building(code))
    (saga_id,) = strict.push(repository)["deployments"]
    for start_again in (False, True, True):
        if start_again:
            strict.start()
        assert strict.wait_for_crash() == "the build"
    strict.start()
    saga = strict.ended(saga_id)
    assert saga["state"] == "COMPENSATED", saga
    assert step_of(saga, "build")["error"]["code"] == "worker_lost"
    strict.has_let_go_of(saga_id)
    assert strict.ask("killer") == "one"


# --- archives and descriptions ---------------------------------------------------------------------------------------


def uploaded(knarr: Knarr, name: str, archive: bytes) -> dict[str, Any]:
    """Upload it as an app's source; the saga as it ended."""
    knarr.create_app(name)
    headers = {"Content-Type": "application/gzip"}
    path = f"/apps/{name}/deployments"
    started = knarr.api.request("POST", "webhook", path, content=archive, headers=headers)
    return knarr.ended(started["saga_id"])


def archive_of(*entries: tuple[str, bytes, str]) -> bytes:
    """A gzipped tar of (name, type, link target) without content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, kind, target in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    return packed.getvalue()


ARCHIVES = {
    "climbs": archive_of(("../../escaped", tarfile.REGTYPE, "")),
    "is-absolute": archive_of(("/var/escaped", tarfile.REGTYPE, "")),
    "links-out": archive_of(("out", tarfile.SYMTYPE, "../../.."), ("out/escaped", tarfile.REGTYPE, "")),
    "is-linked": archive_of(("file", tarfile.REGTYPE, ""), ("hard", tarfile.LNKTYPE, "file")),
    "is-a-device": archive_of(("null", tarfile.CHRTYPE, "")),
}


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_an_archive_that_reaches_outside_is_refused(strict: Knarr, name: str) -> None:
    """At the source, by the entry's name; nothing is written anywhere else."""
    saga = uploaded(strict, name, ARCHIVES[name])
    assert saga["state"] == "COMPENSATED"
    assert step_of(saga, "source")["attempts"] == 1
    assert re.search(r"escaped|out|hard|null", error_of(saga, "source"))
    assert not list(strict.folder.rglob("escaped"))
    strict.has_let_go_of(saga["id"])


def test_an_archive_without_an_end_is_read_no_further_than_the_limit(strict: Knarr) -> None:
    """A few kilobytes that would become 64 GiB; the error names the setting."""
    entry = tarfile.TarInfo("large")
    entry.size = 64 * 1024 * MIB
    bomb = gzip.compress(entry.tobuf() + bytes(8 * SOURCE_BYTES))
    before = strict.size_of("source")
    saga = uploaded(strict, "endless", bomb)
    assert saga["state"] == "COMPENSATED"
    assert step_of(saga, "source")["attempts"] == 1
    assert "KNARR_SOURCE_MAX_BYTES" in error_of(saga, "source")
    strict.has_let_go_of(saga["id"])
    assert strict.size_of("source") - before < SOURCE_BYTES


def test_a_description_with_a_huge_tree_of_aliases_is_refused(strict: Knarr) -> None:
    """Thirty lines that would become a billion nodes."""
    error = refused(strict, "laughs", {**web_app("one"), ".cupaas.yml": BILLION_LAUGHS}, at="source")["error"]
    assert ".cupaas.yml" in error["message"]
    assert "alias" in error["message"]


def test_a_runtime_that_nobody_knows_is_named(strict: Knarr) -> None:
    """With those that there are."""
    error = refused(strict, "cobol", {**web_app("one"), ".cupaas.yml": "runtime: cobol:85\n"}, at="source")["error"]
    assert "cobol" in error["message"]
    assert "python" in error["message"]


# --- apps ------------------------------------------------------------------------------------------------------------


@pytest.mark.laptop("which ports an app has is seen where it is a process of this machine")
def test_an_app_on_the_wrong_port_is_told_before_its_time_is_over(strict: Knarr) -> None:
    """Which port it listens on, and that PORT names another."""
    error = refused(strict, "elsewhere", {**web_app("one"), "app.py": WRONG_PORT}, at="deploy")["error"]
    assert re.search(r"listens on port \d+ instead of PORT", error["message"])


def test_an_app_that_prints_without_end_answers_and_fills_nothing(strict: Knarr) -> None:
    """What is too much is dropped, and the log says how much."""
    files = web_app("loud")
    files["app.py"] = PRINTS_WITHOUT_END + files["app.py"]
    repository = strict.repository("loud", files)
    strict.create_app("loud", repository)
    assert strict.deploy(repository)["state"] == "SUCCEEDED"
    with Client(strict.app("loud")["url"], expected=("loud",)) as client:
        text = strict.text("deployer", "/apps/loud/logs?lines=10000")
    assert client.faults == []
    assert len(text) < 2 * LOG_BYTES
    removed = strict.api.delete("webhook", "/apps/loud")
    assert strict.ended(removed["saga_id"])["state"] == "SUCCEEDED"


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref", ["--upload-pack=touch escaped", "-refs/heads/main", "refs/heads/--x y", "refs/heads/a..b"]
)
def test_a_branch_that_looks_like_an_option_is_refused(strict: Knarr, ref: str) -> None:
    """Before anything is stored."""
    body = {"name": "option", "repository": "a/b", "clone_url": strict.url_of("b"), "ref": ref}
    with pytest.raises(InvalidInput, match="ref"):
        strict.api.post("webhook", "/apps", body)
    assert not list(strict.folder.rglob("escaped"))


@pytest.mark.parametrize(
    "url",
    [
        "--upload-pack=touch escaped",
        "ext::sh -c 'touch escaped'",
        "file:///etc/",
        "https://example.com/a/b.git",
        "file://{repositories}/../../etc",
    ],
)
def test_a_repository_outside_the_allow_list_is_refused(strict: Knarr, url: str) -> None:
    """The text names the setting."""
    url = url.format(repositories=strict.url_of("b").removeprefix("file://").removesuffix("/b"))
    body = {"name": "outside", "repository": "a/b", "clone_url": url}
    with pytest.raises((InvalidInput, NotAllowed), match=r"clone_url|KNARR_SOURCE_ALLOW"):
        strict.api.post("webhook", "/apps", body)
    assert not list(strict.folder.rglob("escaped"))
