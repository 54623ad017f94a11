"""Cloud Native Buildpacks on a real engine, with the public lifecycle and a buildpack of our own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import error_of, remove, web_app
from tests.stack.lifecycle import BUILDER, have_builder
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
