"""`make run`: the first command that a person types."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Laptop

pytestmark = [pytest.mark.xdist_group("e2e-demo"), pytest.mark.laptop("`make run` is a command of the laptop")]


def demo(knarr: Laptop, until: str) -> str:
    """Run `knarr demo` until it says that, then Ctrl-C; everything that it said."""
    output = knarr.folder / "demo.txt"
    with (
        output.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "knarr", "demo", "--home", str(knarr.home), "--port-base", str(knarr.port_base)],
            env=knarr.environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as running,
    ):
        limit = time.monotonic() + 120
        while until not in output.read_text() and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        running.wait(60)
    said = output.read_text()
    assert until in said, said
    assert running.returncode == 0, said
    return said


def test_the_story_is_told_once_and_found_again(own_knarr: Laptop) -> None:
    """A push that works, one that is undone, the first version all the while; the second run only serves."""
    said = demo(own_knarr, until="Ctrl-C stops;")
    places = [
        said.index(part)
        for part in (
            "A push that works",
            "✓ source",
            "✓ deploy",
            "Hello from knarr",
            "A push that cannot work",
            "✗ deploy",
            "↶ deploy",
            "↶ source",
            "0 errors",
            "is served at",
        )
    ]
    assert places == sorted(places)
    assert int(re.search(r"was asked (\d+) times", said).group(1)) > 0  # type: ignore[union-attr]

    again = demo(own_knarr, until="Ctrl-C stops;")
    assert "as the last run left it" in again
    assert "Hello from knarr" in again
    assert "A push that" not in again
    assert Path(own_knarr.home / "demo" / "hello-python" / ".git").is_dir()
