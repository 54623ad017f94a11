"""The home is its user's alone, from the first byte of each file and whatever the umask is."""

import os
import stat
from pathlib import Path

import pytest

from knarr.home import Home
from knarr.logs import log_to_file
from knarr.terminal import Terminal
from seedwork.errors import Misconfigured
from tests.security.house import House
from tests.security.victim import Victim


def _open_to_others(home: Path) -> list[str]:
    """Folders that others can enter, and files that they could read there; layers of images are no secret."""
    closed = [*home.iterdir(), *(path for path in home.rglob("*") if path.is_file() and "images" not in path.parts)]
    return [
        f"{path} {stat.filemode(path.lstat().st_mode)}"
        for path in closed
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.xdist_group("house")
async def test_what_services_write_is_closed_without_a_umask(platform: House, victim: Victim) -> None:
    """Databases, keys, logs and archives, after a deployment and with a umask of 0."""
    home = platform.service("webhook").settings.home
    assert _open_to_others(home) == []


def test_a_home_that_others_can_enter_is_closed(tmp_path: Path) -> None:
    """One from before, or made by hand."""
    home = Home(tmp_path / "home")
    home.path.mkdir(mode=0o777)
    home.path.chmod(0o755)
    home.make()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_home_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the folder can replace every file in it."""
    home = Home(tmp_path / "home")
    home.make()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Misconfigured, match="belongs to another user"):
        home.make()


def test_the_files_of_the_home_itself_are_closed(tmp_path: Path) -> None:
    """Log, tokens and notes; the log also after it was turned over."""
    home = Home(tmp_path / "home")
    before = os.umask(0)
    try:
        home.make()
        home.keep_secret(home.token_file)
        home.remember(runtime="process")
        with log_to_file(home.log, Terminal(), home=home.path):
            pass
    finally:
        os.umask(before)
    assert _open_to_others(tmp_path / "home") == []
