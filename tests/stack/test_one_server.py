"""One server with Docker, one command: what `knarr up --runtime docker` promises."""

import json
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import eventually, remove, web_app
from tests.stack.one_server import OneServer, describe, docker

pytestmark = pytest.mark.stack("DOCKER_HOST")

BIG = 30_000_000
"""Bytes of an app's own."""
DOCKERFILE = "FROM python:3.11-slim\nCOPY app.py /app.py\nCMD python /app.py\n"


def dockerfile_app(version: str) -> dict[str, str]:
    """The web app of the scenarios, with a Dockerfile of its own."""
    return {"Dockerfile": DOCKERFILE, "app.py": web_app(version)["app.py"]}


@pytest.fixture
def server(ports: int) -> Iterator[OneServer]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-server-"))
    server = OneServer(folder, ports)
    yield server.start()
    server.close()
    remove(folder)


def test_apps_live_change_survive_a_kill_and_go_without_a_trace(server: OneServer) -> None:
    """A Dockerfile app and a Python app; one line changed; `kill -9`; another start; both removed."""
    repositories = {"boxed": server.repository("boxed", dockerfile_app("one")), "plain": server.repository("plain")}
    for name, repository in repositories.items():
        server.create_app(name, repository)
        assert server.deploy(repository)["state"] == "SUCCEEDED"
        assert server.ask(name) == "one"
    assert [describe(each)["State"]["Status"] for each in server.containers()] == ["running"] * 2

    repositories["boxed"].commit({"app.py": web_app("two")["app.py"]})
    assert server.deploy(repositories["boxed"])["state"] == "SUCCEEDED"
    assert server.ask("boxed") == "two"

    before = {each: describe(each)["State"]["StartedAt"] for each in server.containers()}
    url = server.app("boxed")["url"]
    server.kill()
    server.runtime = None  # it remembers
    server.start()
    assert server.app("boxed")["url"] == url
    assert (server.ask("boxed"), server.ask("plain")) == ("two", "one")
    assert {each: describe(each)["State"]["StartedAt"] for each in server.containers()} == before

    for name in repositories:
        assert server.ended(server.api.delete("webhook", f"/apps/{name}")["saga_id"])["state"] == "SUCCEEDED"
    assert (server.containers(), server.networks(), server.repositories_in_store()) == ([], [], {})


def test_the_registry_asks_for_a_password_and_listens_on_loopback_only(server: OneServer) -> None:
    """Images hold code: another user of the machine does not read them."""
    registry = describe(f"{server.installation}-images")
    (binding,) = registry["HostConfig"]["PortBindings"]["5000/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    assert registry["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    asked = docker("exec", registry["Id"], "sh", "-c", "cat /knarr/htpasswd")
    password = (server.home / "registry-password").read_text().strip()
    assert asked.startswith("knarr:$2b$")
    assert password not in asked
    assert password not in str(registry)
    assert (server.home / "registry-password").stat().st_mode & 0o077 == 0


def test_a_registry_that_was_removed_is_made_again_with_its_images(server: OneServer) -> None:
    """The container is nothing but a program: what it kept is in its volume."""
    repository = server.repository("kept", dockerfile_app("one"))
    server.create_app("kept", repository)
    assert server.deploy(repository)["state"] == "SUCCEEDED"
    stored = server.repositories_in_store()
    name = f"{server.installation}-images"
    server.stop()
    docker("rm", "--force", name)
    server.start()
    assert server.repositories_in_store() == stored
    eventually("the app answers", lambda: server.ask("kept") == "one")


def test_a_registry_that_was_stopped_is_started_again(server: OneServer) -> None:
    """While knarr runs: the engine does so after its own restart, but not after `docker stop`."""
    registry = f"{server.installation}-images"
    repository = server.repository("late", dockerfile_app("one"))
    server.create_app("late", repository)
    docker("stop", registry)
    assert server.deploy(repository)["state"] == "SUCCEEDED"
    assert describe(registry)["State"]["Running"]


def test_what_a_removed_app_leaves_is_shown_and_goes(server: OneServer) -> None:
    """In the registry and on the engine; and what was collected can be pushed again."""
    files = {**dockerfile_app("one"), "noise": secrets.token_hex(BIG // 2)}
    files["Dockerfile"] += "COPY noise /noise\n"
    repository = server.repository("fat", files)
    server.create_app("fat", repository)
    assert server.deploy(repository)["state"] == "SUCCEEDED"
    full, images = server.store_bytes(), server.engine_images()
    assert server.reclaimable("registry") < BIG / 4
    assert server.reclaimable("deployer") == 0
    assert images

    assert server.ended(server.api.delete("webhook", "/apps/fat")["saga_id"])["state"] == "SUCCEEDED"
    assert server.reclaimable("registry") > BIG / 3  # hex digits are packed to half their size
    assert server.reclaimable("deployer") > BIG / 2
    freed = json.loads(server.knarr("disk", "--reclaim", "--json"))
    assert {each["what"] for each in freed if each["freed_bytes"]} >= {"images in the registry", "images of releases"}
    assert server.store_bytes() < full - BIG / 3
    assert server.engine_images() == []
    assert server.reclaimable("registry") < BIG / 4

    server.create_app("fat", repository)
    assert server.deploy(repository)["state"] == "SUCCEEDED"
    assert server.ask("fat") == "one"


def test_a_deployment_and_a_collection_do_not_meet(server: OneServer) -> None:
    """Pushed again and again while garbage is collected again and again: no deployment fails, no image is broken."""
    repository = server.repository("busy", dockerfile_app("0"))
    server.create_app("busy", repository)
    with ThreadPoolExecutor(1) as beside:
        for number in range(1, 5):
            repository.commit({"app.py": web_app(str(number))["app.py"]})
            collecting = beside.submit(server.api.request, "POST", "registry", "/disk/reclaim", timeout=300)
            assert server.deploy(repository)["state"] == "SUCCEEDED"
            assert server.ask("busy") == str(number)
            assert [each for each in collecting.result()["items"] if each["note"]] == []
