"""The disk is full: who asks gets told, nothing is lost, what ran goes on; and with room everything goes on.

The platform has a file system of its own, a few megabytes of memory that only its mount namespace sees.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seedwork.errors import RetryableError
from seedwork.testing.ports import block_of_ports
from tests.e2e.harness import Client, Laptop, Process, eventually, remove, web_app

pytestmark = [pytest.mark.xdist_group("e2e-full-disk"), pytest.mark.laptop("its home is mounted on a small disk")]

MIB = 1024 * 1024
DISK_MIB = 96


@dataclass
class OnSmallDisk(Laptop):
    """A platform whose home is a file system of `DISK_MIB`."""

    holder: int = 0
    """The process that has the mount namespace."""

    def __post_init__(self) -> None:
        """The home as it is seen from outside."""
        super().__post_init__()
        self._inside = self.home
        self.home = Path(f"/proc/{self.holder}/root{self._inside}")

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
        """In the namespace, where the home has its plain name."""
        plain = [each.replace(str(self.home), str(self._inside)) for each in arguments]
        enter = ["nsenter", "--user", "--mount", "--preserve-credentials", f"--target={self.holder}"]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*enter, sys.executable, "-m", "knarr", *plain],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take the room that is left, except that."""
        with (self.home / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while self.free_bytes > leave_bytes:
                filler.write(bytes(min(65536, max(4096, self.free_bytes - leave_bytes))))

    def make_room(self) -> None:
        """Give it back."""
        (self.home / "filler").unlink()

    @property
    def free_bytes(self) -> int:
        """What is left."""
        found = os.statvfs(self.home)
        return found.f_bavail * found.f_frsize


@pytest.fixture(scope="module")
def small() -> Iterator[OnSmallDisk]:
    """A running platform on a small disk."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-e2e-"))
    (folder / "home").mkdir()
    mount = f"mount -t tmpfs -o size={DISK_MIB}m knarr '{folder}/home' && echo mounted && exec sleep infinity"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    with block_of_ports() as ports, subprocess.Popen(unshare, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "mounted\n":
                pytest.skip("this machine lets nobody mount a file system of their own")
            platform = OnSmallDisk(folder, ports, holder=holder.pid)
            try:
                yield platform.start()
            finally:
                platform.stop()
        finally:
            holder.kill()
            holder.wait(30)
            remove(folder)


def test_a_push_that_cannot_be_stored_is_refused_and_what_runs_goes_on(small: OnSmallDisk) -> None:
    """The sender is told, with words, and nothing of it is kept; with room the same push goes through, once."""
    repository = small.repository("refused")
    small.create_app("refused", repository)
    assert small.deploy(repository)["state"] == "SUCCEEDED"
    repository.commit(web_app("two"))
    known = small.api.pages("webhook", "/deliveries", limit=200)
    with Client(small.app("refused")["url"], expected=("one", "two")) as client:
        small.fill()
        with pytest.raises(RetryableError, match=r"disk is full.*Free some room"):
            small.push(repository)
        assert small.api.pages("webhook", "/deliveries", limit=200) == known
        small.make_room()
        assert small.deploy(repository)["state"] == "SUCCEEDED"
        assert small.ask("refused") == "two"
    assert client.faults == []


@pytest.mark.parametrize(("step", "leave_mib"), [("source", 4), ("build", 20)])
def test_a_step_that_finds_no_room_leaves_none_of_it_taken_and_goes_on_when_there_is_some(
    small: OnSmallDisk, step: str, leave_mib: int
) -> None:
    """Its reason is in the log; the version before answers all the while; nobody has to press anything."""
    app = f"no-room-{step}"
    repository = small.repository(app)
    small.create_app(app, repository)
    assert small.deploy(repository)["state"] == "SUCCEEDED"
    (repository.path / "large").write_bytes(os.urandom(6 * MIB))
    repository.commit(web_app("two"))
    with Client(small.app(app)["url"], expected=("one", "two")) as client:
        small.fill(leave_bytes=leave_mib * MIB)
        (saga_id,) = small.push(repository)["deployments"]
        failure = eventually("a step has found no room", lambda: _failure(small, saga_id))
        assert failure["step"] == step
        assert "room" in str(failure["payload"])
        small.make_room()
        saga = small.ended(saga_id)
    assert saga["state"] == "SUCCEEDED", saga
    assert small.ask(app) == "two"
    assert client.faults == []


def _failure(small: OnSmallDisk, saga_id: str) -> dict[str, Any] | None:
    return next((entry for entry in small.log(saga_id) if "storage_full" in str(entry["payload"])), None)
