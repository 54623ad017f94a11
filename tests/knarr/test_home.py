"""The home: one process has it, secrets are its user's alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from knarr.home import Home, HomeHeld, HomeLock, holder
from seedwork.errors import InvalidInput, Misconfigured

HOLDER = """
import sys
from pathlib import Path
from knarr.home import Home, HomeLock
HomeLock(Home(Path(sys.argv[1]))).acquire(host="127.0.0.1", port_base=8700)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.make()
    return found


def test_a_second_process_is_refused_and_told_who_has_the_home(home: Home) -> None:
    """The message names the process, since when, the ports, and what to do."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(HomeHeld) as refused:
            HomeLock(home).acquire(host="127.0.0.1", port_base=9700)
        first.stdin.close()
    text = refused.value.message
    assert f"process {first.pid}" in text
    assert "8701 to 8706" in text
    assert f"kill {first.pid}" in text
    assert "--port-base" in text


def test_a_killed_holder_leaves_the_home_free(home: Home) -> None:
    """The lock is the kernel's: it goes with the process, however that ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert holder(home) is not None
        first.kill()
        first.wait()
    assert holder(home) is None
    lock = HomeLock(home)
    lock.acquire(host="127.0.0.1", port_base=8700)
    lock.release()


def test_a_secret_is_made_once_and_only_its_user_reads_it(home: Home) -> None:
    """The same token at each start; mode 0600."""
    first = home.keep_secret(home.token_file)
    assert home.keep_secret(home.token_file) == first
    assert len(first) >= 40
    assert home.token_file.stat().st_mode & 0o777 == 0o600


def test_the_address_is_what_the_platform_wrote_down(home: Home) -> None:
    """The command line finds a platform on any port base."""
    assert home.address() is None
    home.write(home.platform_file, json.dumps({"pid": 7, "host": "127.0.0.1", "port_base": 9700}))
    address = home.address()
    assert address is not None
    assert address.port_base == 9700


def test_a_damaged_platform_file_is_named(home: Home) -> None:
    """Not a traceback: which file, and what to do."""
    home.write(home.platform_file, "{")
    with pytest.raises(InvalidInput, match=r"platform\.json is damaged"):
        home.address()


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "home").write_text("")
    with pytest.raises(Misconfigured, match="--home"):
        Home(tmp_path / "home" / "inner").make()
