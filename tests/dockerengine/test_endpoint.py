"""The engine is found where the `docker` command line finds it."""

import hashlib
import json
import socket
from pathlib import Path

import pytest

from dockerengine import find_endpoint
from dockerengine.endpoint import Endpoint
from seedwork.errors import Misconfigured


def a_context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    record = {"Name": name, "Endpoints": {"docker": {"Host": host}}}
    (folder / "meta.json").write_text(json.dumps(record))


def test_knarrs_own_variable_comes_first(tmp_path: Path) -> None:
    """`KNARR_DOCKER_HOST` wins over `DOCKER_HOST`, and that one over a context."""
    a_context(tmp_path, "box", "tcp://box:2375")
    environ = {"HOME": str(tmp_path), "DOCKER_CONTEXT": "box", "DOCKER_HOST": "tcp://one:1"}
    assert find_endpoint(environ) == Endpoint(url="tcp://one:1", source="DOCKER_HOST")
    found = find_endpoint({**environ, "KNARR_DOCKER_HOST": "unix:///two"})
    assert found == Endpoint(url="unix:///two", source="KNARR_DOCKER_HOST")


def test_the_context_of_the_command_line_is_used(tmp_path: Path) -> None:
    """What `docker context use` wrote, and `DOCKER_CONTEXT` over it."""
    a_context(tmp_path, "colima", "unix:///colima.sock")
    a_context(tmp_path, "box", "tcp://box:2375")
    (tmp_path / ".docker" / "config.json").write_text('{"currentContext": "colima"}')
    found = find_endpoint({"HOME": str(tmp_path)})
    assert found == Endpoint(url="unix:///colima.sock", source="the Docker context colima")
    other = find_endpoint({"HOME": str(tmp_path), "DOCKER_CONTEXT": "box"})
    assert other == Endpoint(url="tcp://box:2375", source="the Docker context box")


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    """It is an error, as for the command line; another engine is not used in its place."""
    with pytest.raises(Misconfigured, match=r"context 'gone' names no engine.*docker context ls"):
        find_endpoint({"HOME": str(tmp_path), "DOCKER_CONTEXT": "gone"})


def test_the_socket_of_a_rootless_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's runtime folder; a file of that name is no socket."""
    monkeypatch.setattr("dockerengine.endpoint._USUAL", (tmp_path / "no.sock",))
    (tmp_path / "docker.sock").touch()
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    before = find_endpoint(environ)
    assert before is None or str(tmp_path) not in before.url
    (tmp_path / "docker.sock").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "docker.sock"))
        found = find_endpoint(environ)
    assert found is not None
    assert found.socket == str(tmp_path / "docker.sock")
    assert found.is_local


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("unix:///var/run/docker.sock", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://192.0.2.1:2376", False),
        ("ssh://me@box", False),
    ],
)
def test_an_engine_elsewhere_is_known_as_such(url: str, local: bool) -> None:
    """Its ports on loopback are not this machine's."""
    assert Endpoint(url=url, source="DOCKER_HOST").is_local is local
