"""Ports and addresses of `knarr up`."""

import os
import socket
from pathlib import Path

import pytest

from knarr.home import Home
from knarr.terminal import Terminal
from knarr.up import Options, bound_sockets, is_loopback, say_settings
from seedwork.chassis.server import PortTaken
from seedwork.errors import Misconfigured


def test_a_taken_port_names_service_holder_and_way_out(tmp_path: Path, ports: int) -> None:
    """The person knows which program to stop, or which option to use."""
    with (
        socket.create_server(("127.0.0.1", ports + 3)),
        pytest.raises(PortTaken) as taken,
        bound_sockets(Options(home=Home(tmp_path), host="127.0.0.1", port_base=ports)),
    ):
        pass
    assert f"Port {ports + 3}" in taken.value.message
    assert "builder" in taken.value.message
    assert "--port-base" in taken.value.message


def test_all_ports_or_none(tmp_path: Path, ports: int) -> None:
    """A failed start keeps no port."""
    options = Options(home=Home(tmp_path), host="127.0.0.1", port_base=ports)
    with socket.create_server(("127.0.0.1", ports + 6)), pytest.raises(PortTaken), bound_sockets(options):
        pass
    with bound_sockets(options) as sockets:
        assert [each.getsockname()[1] for each in sockets.values()] == list(range(ports + 1, ports + 7))


def test_a_host_that_is_not_ours_is_said(tmp_path: Path, ports: int) -> None:
    """An address of another machine."""
    options = Options(home=Home(tmp_path), host="192.0.2.1", port_base=8700)
    with pytest.raises(Misconfigured, match="--host"), bound_sockets(options):
        pass


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.0.2.1", False), ("example.com", False)],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    """Test endpoints are on by themselves only there."""
    assert is_loopback(host) is loopback


def test_the_files_that_settings_come_from_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a file of the working directory, which is not read, with the place where it would be."""
    home, cloned = Home(tmp_path / "home"), tmp_path / "cloned"
    home.make()
    cloned.mkdir()
    (home.path / ".env").write_text("KNARR_TEAM=mine\n")
    (cloned / "knarr.yaml").write_text("team: theirs\n")
    monkeypatch.chdir(cloned)
    for name in [each for each in os.environ if each.startswith("KNARR_")]:
        monkeypatch.delenv(name)
    say_settings(home, Terminal())
    said = " ".join(capsys.readouterr().err.split())
    assert f"Settings: {home.path}/.env." in said
    assert f"{cloned}/knarr.yaml is not read. Settings belong in {home.path}/knarr.yaml" in said
