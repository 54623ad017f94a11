"""Add-ons as processes: real Redis, PostgreSQL and MariaDB where the machine has them, and refusals elsewhere."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import psutil
import pytest

from seedwork.messages import new_id
from services.deployer.adapters.process import addon_servers as servers
from services.deployer.adapters.process.addon_servers import Place, Programs
from services.deployer.adapters.process.addons import ProcessAddOns
from services.deployer.errors import AddOnDoesNotStart, CannotRun
from services.deployer.ports import AddOn
from tests.services.deployer.conftest import eventually

PATH = os.environ.get("PATH", os.defpath)
HERE = servers.find(PATH)


def _addon(kind: str, app_id: str, *, version: str | None = None) -> AddOn:
    return AddOn(
        app_id=app_id,
        app="shop",
        team="default",
        saga_id=new_id(),
        name=kind,
        kind=kind,
        version=version,
        user="app",
        password="a-password-of-the-tests",
    )


@pytest.fixture
async def addons(tmp_path: Path) -> AsyncIterator[ProcessAddOns]:
    made = ProcessAddOns(tmp_path, path=PATH, start_timeout_s=120)
    yield made
    await made.close()


def _processes(folder: Path) -> list[psutil.Process]:
    """Children of this process that work in the folder: Redis overwrites its environment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def _redis(port: int, *words: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for command in (("AUTH", "a-password-of-the-tests"), words):
        parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
        writer.write(f"*{len(command)}\r\n{parts}".encode())
        answer = await reader.readline()
        if answer.startswith(b"$") and answer != b"$-1\r\n":
            answer = await reader.readline()
    writer.close()
    return answer.strip()


@pytest.mark.parametrize("kind", sorted(HERE))
async def test_a_server_takes_connections_and_goes_with_its_data(
    kind: str, addons: ProcessAddOns, tmp_path: Path
) -> None:
    """Twice the same is one server; a removed one leaves neither a process nor a file."""
    addon = _addon(kind, new_id())
    notes: list[str] = []
    await addons.provide(addon, note=notes.append)
    await addons.provide(addon, note=notes.append)
    host, port = addons.address(addon.app_id, kind, 1)
    assert host == "127.0.0.1"
    assert port != 1
    command_lines = [" ".join(each.cmdline()) for each in _processes(tmp_path)]
    assert command_lines
    assert not any(addon.password in line for line in command_lines)

    assert await addons.withdraw(addon.app_id, kind) == [f"add-on {kind}", f"the data of {kind}"]
    assert _processes(tmp_path) == []
    assert not (tmp_path / "addons" / addon.app_id / kind).exists()
    assert await addons.withdraw(addon.app_id, kind) == []


@pytest.mark.skipif("redis" not in HERE, reason="this machine has no Redis")
async def test_data_outlives_the_server_and_knarr(addons: ProcessAddOns, tmp_path: Path) -> None:
    """After kill -9 it is started again on the same port; after a stop and a start of knarr, too."""
    addon = _addon("redis", new_id())
    await addons.provide(addon, note=lambda _: None)
    _, port = addons.address(addon.app_id, "redis", 1)
    assert await _redis(port, "SET", "colour", "blue") == b"+OK"
    for process in _processes(tmp_path):
        process.kill()

    async def answers() -> bool:
        try:
            return await _redis(port, "GET", "colour") == b"blue"
        except OSError:
            return False

    await eventually(answers)
    await addons.close()
    assert _processes(tmp_path) == []

    again = ProcessAddOns(tmp_path, path=PATH, start_timeout_s=120)
    try:
        await again.provide(addon, note=lambda _: None)
        assert again.address(addon.app_id, "redis", 1) == ("127.0.0.1", port)
        assert await _redis(port, "GET", "colour") == b"blue"
    finally:
        await again.close()


async def test_a_machine_without_the_program_refuses_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is no kind; the text says what to install."""
    monkeypatch.setattr(servers, "_DIRECTORIES", {"redis": (), "postgres": (), "mysql": ()})
    addons = ProcessAddOns(tmp_path, path=str(tmp_path), start_timeout_s=1)
    assert addons.kinds == frozenset()
    with pytest.raises(CannotRun, match="no server program for redis"):
        await addons.provide(_addon("redis", new_id()), note=lambda _: None)


async def test_another_version_is_refused_with_the_one_that_is_there(tmp_path: Path) -> None:
    """A major version that the server program does not have."""
    program = _script(tmp_path, "redis-server", 'echo "Redis server v=7.0.15 sha=0"')
    addons = ProcessAddOns(tmp_path, path=str(program.parent), start_timeout_s=1)
    with pytest.raises(CannotRun, match=r"this machine has redis 7\.0\.15"):
        await addons.provide(_addon("redis", new_id(), version="6"), note=lambda _: None)


async def test_a_server_that_does_not_start_is_said_with_its_last_lines(tmp_path: Path) -> None:
    """Without its password; no process stays, and the next attempt begins anew."""
    program = _script(tmp_path, "redis-server", 'grep requirepass "$1"; echo "bad config" >&2; exit 3')
    addons = ProcessAddOns(tmp_path, path=str(program.parent), start_timeout_s=1)
    addon = _addon("redis", new_id())
    for _ in range(2):
        with pytest.raises(AddOnDoesNotStart) as caught:
            await addons.provide(addon, note=lambda _: None)
        assert "bad config" in caught.value.log_tail
        assert not any(addon.password in line for line in caught.value.log_tail)
    assert _processes(tmp_path) == []


@pytest.mark.parametrize(
    ("printed", "kind", "version"),
    [
        ("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)", "postgres", "15.20"),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "redis", "7.0.15"),
        ("mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu", "mysql", "10.11.19"),
        ("/usr/sbin/mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server)", "mysql", "8.0.36"),
        ("what is this", "redis", None),
    ],
)
def test_versions_are_read_from_what_servers_print(printed: str, kind: str, version: str | None) -> None:
    """Each has a form of its own."""
    assert servers.version_in(printed, kind) == version


@pytest.mark.parametrize(
    ("wanted", "fits"), [(None, True), ("15", True), ("15.2", True), ("15.20", False), ("1", False)]
)
def test_a_version_fits_part_by_part(wanted: str | None, fits: bool) -> None:
    """`1` is not `15`."""
    assert servers.satisfies("15.2", wanted) is fits


@pytest.mark.parametrize("kind", servers.KINDS)
def test_no_argument_holds_the_password(kind: str, tmp_path: Path) -> None:
    """The process table is read by every user of the machine."""
    addon = _addon(kind, new_id())
    place = Place(data=tmp_path / "data", secrets=tmp_path / "private", port=5000)
    for server in ("mysqld", "mariadbd"):
        programs = Programs(kind=kind, server=tmp_path / server, setup=tmp_path / "setup")
        argv = [*servers.command(addon, place, programs)]
        for step in servers.set_up(addon, place, programs):
            argv += step.argv
        assert not any(addon.password in each for each in argv)
        written: Mapping[str, bytes] = servers.files(addon, place, programs)
        assert any(addon.password.encode() in content for content in written.values())


def _script(folder: Path, name: str, text: str) -> Path:
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program
