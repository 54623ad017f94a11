"""Cloud Native Buildpacks on a real engine, with the public lifecycle and a buildpack of our own."""

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import error_of, remove, web_app
from tests.stack.lifecycle import BUILDER, have_builder, push_run_image
from tests.stack.one_server import OneServer, docker

pytestmark = pytest.mark.stack("DOCKER_HOST", "REGISTRY")


@pytest.fixture(scope="module")
def builder() -> None:
    have_builder(os.environ["REGISTRY"])


@pytest.fixture
def server(ports: int, builder: None) -> Iterator[OneServer]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-server-"))
    server = OneServer(folder, ports, settings={"KNARR_BUILDPACKS_BUILDER": BUILDER})
    yield server.start()
    server.close()
    remove(folder)


@pytest.fixture
def run_image() -> Iterator[str]:
    """A run image of this test's own, which it may push again."""
    name = f"{os.environ['REGISTRY']}/knarr-test/cnb-run-{uuid.uuid4().hex[:12]}:1"
    push_run_image(name, motd="older")
    yield name
    docker("rmi", "--force", name)


@pytest.fixture
def rebasing(ports: int, builder: None, run_image: str) -> Iterator[OneServer]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-server-"))
    settings = {"KNARR_BUILDPACKS_BUILDER": BUILDER, "KNARR_BUILDPACKS_RUN_IMAGE": run_image, "KNARR_OBSERVE_S": "0"}
    server = OneServer(folder, ports, settings=settings)
    yield server.start()
    server.close()
    remove(folder)


def left_of_builds() -> tuple[str, str]:
    """Containers and volumes of builds that have ended."""
    label = "label=io.knarr.build"
    return docker("ps", "--all", "--quiet", "--filter", label), docker("volume", "ls", "--quiet", "--filter", label)


def test_an_app_is_built_by_buildpacks_and_changed(server: OneServer) -> None:
    """Its processes run in the environment that the buildpack made; the second build finds the cache of the first."""
    repository = server.repository("packed", {"app.py": web_app("one")["app.py"]})
    server.create_app("packed", repository, builder="buildpacks")
    first = server.deploy(repository)
    assert first["state"] == "SUCCEEDED", error_of(first, "build")
    assert (server.ask("packed"), server.ask("packed", "/env")) == ("one", "from the buildpack")
    log = server.text("builder", f"/builds/{first['id']}/log")
    assert "nothing was cached" in log

    repository.commit({"app.py": web_app("two")["app.py"]})
    second = server.deploy(repository)
    assert server.ask("packed") == "two"
    assert "the cache was restored" in server.text("builder", f"/builds/{second['id']}/log")
    assert left_of_builds() == ("", "")


def test_what_no_buildpack_builds_is_refused_and_leaves_nothing(server: OneServer) -> None:
    """By the name of the builder; a buildpack that fails is the app's fault, with its last lines."""
    repository = server.repository("refused", {"app.py": web_app("one")["app.py"], "undetected": "yes"})
    server.create_app("refused", repository, builder="buildpacks")
    refused = server.deploy(repository)
    assert refused["state"] == "COMPENSATED"
    assert f"No buildpack of {BUILDER} builds this app" in error_of(refused, "build")

    repository.git("rm", "--quiet", "undetected")
    repository.commit({"fails": "yes"})
    failed = server.deploy(repository)
    assert failed["state"] == "COMPENSATED"
    assert "A buildpack failed" in error_of(failed, "build")
    assert "this buildpack fails as it was told" in server.text("builder", f"/builds/{failed['id']}/log")
    assert left_of_builds() == ("", "")
    assert server.repositories_in_store() == {}


READS_MOTD = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = open("/etc/motd", "rb").read().strip() + b" " + os.environ["GREETING"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_a_release_moves_to_a_newer_run_image_without_its_source(rebasing: OneServer, run_image: str) -> None:
    """The layers of the app stay; the commit does too. Undone and rolled back like any other release."""
    server = rebasing
    repository = server.repository("moved", {"app.py": READS_MOTD})
    server.create_app("moved", repository, builder="buildpacks")
    built = server.deploy(repository)
    assert built["state"] == "SUCCEEDED", error_of(built, "build")
    assert server.ask("moved") == "older from the buildpack"
    before = server.api.get("deployer", "/apps/moved")

    assert "nothing to rebase" in server.knarr_says("apps", "rebase", "moved")
    assert server.api.get("deployer", "/apps/moved")["release"] == 1

    push_run_image(run_image, motd="newer")
    remove(repository.path)
    assert "release 2" in server.knarr("apps", "rebase", "--all")
    assert server.ask("moved") == "newer from the buildpack"
    after = server.api.get("deployer", "/apps/moved")
    assert after["digest"] != before["digest"]
    assert after["commit"] == before["commit"]
    assert left_of_builds() == ("", "")

    server.knarr("rollback", "moved")
    assert server.ask("moved") == "older from the buildpack"


def test_the_bill_of_materials_is_the_one_that_the_buildpack_wrote(server: OneServer) -> None:
    """Byte by byte; an app of another builder has none from buildpacks, and is not rebased."""
    repository = server.repository("listed", {"app.py": web_app("one")["app.py"]})
    server.create_app("listed", repository, builder="buildpacks")
    server.deploy(repository)
    documents = json.loads(server.knarr("releases", "sbom", "listed", "--json"))
    ours = [each for each in documents if each["name"] == "knarr_test"]
    assert [(each["format"], each["media_type"]) for each in ours] == [("cyclonedx", "application/vnd.cyclonedx+json")]
    written = server.knarr("releases", "sbom", "listed", "1", "--format", "cyclonedx", "--name", "knarr_test")
    assert json.loads(written) == {"bomFormat": "CycloneDX", "components": [{"name": "app"}]}
