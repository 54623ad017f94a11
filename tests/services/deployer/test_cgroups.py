"""Control groups of instances: what an instance left is ended with it, limits are set, and the lack of them is said.

Tests of real groups run where this user may make them (as root, or in a delegated cgroup v2).
"""

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ocistore.layout import OciLayout
from seedwork.messages import new_id
from services.deployer.adapters.process import cgroups, leftovers
from services.deployer.adapters.process.cgroups import Bounds, Cgroup, Cgroups, open_cgroups, own_cgroup
from services.deployer.adapters.process.launcher import OOM_SCORE
from services.deployer.adapters.process.runtime import BY_CGROUP, BY_SUBREAPER
from tests.services.deployer.conftest import PYTHON, WEB, Shelf, eventually
from tests.services.deployer.test_process_runtime import LIMITS, Bench, get

MIB = 2**20
OWN_SCORE = int(Path("/proc/self/oom_score_adj").read_text())
STRAY = """
import os, subprocess, time
subprocess.Popen(["env", "-i", "setsid", "sh", "-c", "echo $$ > stray.new; mv stray.new stray; exec sleep 600"])
while not os.path.exists("stray"): time.sleep(0.01)
"""
"""Leaves a process without its environment, its session and its parent."""


def _why_not() -> str:
    opened = open_cgroups(f"test-{new_id()}", Bounds())
    if isinstance(opened, str):
        return opened
    opened.close()
    return ""


WHY_NOT = _why_not()
real = pytest.mark.skipif(bool(WHY_NOT), reason=f"no control groups for this user: {WHY_NOT}")


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    opened = open_cgroups(f"test-{new_id()}", Bounds())
    assert isinstance(opened, Cgroups)
    yield opened
    opened.close()


@pytest.fixture
async def bench(tmp_path: Path, images: OciLayout, shelf: Shelf, ports: int) -> AsyncIterator[Bench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = Bench(home, images, shelf, replace(LIMITS, grace_s=0.2), port_base=ports)
    await bench.runtime.recover([])
    yield bench
    await bench.runtime.close()
    assert bench.ours() == []


def sleeping_in(group: Cgroup) -> "subprocess.Popen[bytes]":
    """A process in that group, with a child in another session."""
    group.make()
    script = 'echo 0 > "$1/cgroup.procs"; setsid sleep 600 & echo started; exec sleep 600'
    process = subprocess.Popen(["sh", "-c", script, "sh", str(group.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.stdout.close()
    return process


# ── real groups ──────────────────────────────────────────────────────────────────────────────────────────────────────


@real
def test_the_end_of_a_group_ends_everything_in_it(groups: Cgroups) -> None:
    """Whatever session it is in; the group is gone then, and ending it again changes nothing."""
    group = groups.of("saga.web.1")
    process = sleeping_in(group)
    (group.path / "made-by-the-app").mkdir()
    assert group.end() >= 1
    assert process.wait() == -signal.SIGKILL
    assert not group.path.exists()
    assert group.end() == 0


@real
def test_a_kernel_without_cgroup_kill_ends_everything_as_well(groups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14 processes are killed one by one until none is left."""
    monkeypatch.setattr(cgroups, "KILL_FILE", "cgroup.kill-of-no-kernel")
    process = sleeping_in(groups.of("saga.web.1"))
    assert groups.clear() >= 1
    assert process.wait() == -signal.SIGKILL


@real
async def test_what_outlives_its_launcher_ends_with_the_instance(bench: Bench) -> None:
    """It has left everything by which it could be found otherwise: parent, session, environment."""
    release = bench.shelf.release(await bench.shelf.image({"app.py": STRAY + WEB.format(version="one")}))
    url = await bench.up(release)
    app = bench.home / "releases" / release.saga_id / "app"
    stray = psutil.Process(int((app / "stray").read_text()))
    launcher = psutil.Process(int((await get(url + "pid")).text)).parent()
    assert launcher is not None
    launcher.kill()
    await eventually(bench.instance, until=lambda instance: instance.restarts == 1 and instance.state == "up")
    assert not leftovers.is_alive(stray)


@real
async def test_a_start_ends_what_a_killed_platform_left_in_its_groups(bench: Bench) -> None:
    """As after `kill -9` of knarr, where the kernel ends the main process only."""
    before = bench.runtime._cgroups
    assert before is not None
    process = sleeping_in(before.of("saga.web.1"))
    again = bench.made(bench.limits)
    await again.recover([])
    assert process.wait() == -signal.SIGKILL
    await again.close()


@real
async def test_the_platform_says_that_instances_have_groups(bench: Bench) -> None:
    """And which limits hold: here none is set."""
    assert await bench.runtime.isolation() == f"{BY_CGROUP}; no limits are set"


@real
async def test_limits_that_this_machine_cannot_set_are_said(bench: Bench) -> None:
    """Nothing is promised that does not hold."""
    own = own_cgroup()
    assert own is not None
    available = (own / "cgroup.controllers").read_text().split()
    runtime = bench.made(replace(bench.limits, bounds=Bounds(memory_bytes=64 * MIB, processes=100)))
    await runtime.recover([])
    said = await runtime.isolation()
    if {"memory", "pids"} <= set(available):
        assert said.startswith(BY_CGROUP)
    else:
        assert said == f"{BY_CGROUP}; no limits: the cgroup controllers memory and pids are not available to knarr"
    await runtime.close()


# ── without groups ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_machine_without_groups_says_what_it_has_instead(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, and that limits do not hold; apps run all the same."""
    monkeypatch.setattr(cgroups, "own_cgroup", lambda: None)
    runtime = bench.made(replace(bench.limits, bounds=Bounds(memory_bytes=64 * MIB)))
    await runtime.recover([])
    said = await runtime.isolation()
    assert (
        said
        == f"{BY_SUBREAPER} ends what it leaves; no cgroups: no cgroup v2 is mounted; not limited to 64 MiB of memory"
    )
    await runtime.close()


def test_a_group_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container usually sees its group read-only."""
    monkeypatch.setattr(cgroups, "own_cgroup", lambda: tmp_path / "away")
    assert open_cgroups("home", Bounds()) == f"{tmp_path}/away cannot be written: No such file or directory"


def test_limits_are_those_whose_controllers_are_there(tmp_path: Path) -> None:
    """The others are named, not forgotten."""
    (tmp_path / "memory.swap.max").touch()
    both = Bounds(memory_bytes=64 * MIB, processes=100)
    groups = Cgroups(tmp_path, both, frozenset({"memory", "pids"}))
    group = groups.of("saga.web/../1")
    group.make()
    assert group.path.parent == tmp_path
    found = {each.name: each.read_text() for each in group.path.iterdir()}
    assert found == {"memory.max": str(64 * MIB), "memory.swap.max": "0", "pids.max": "100"}
    assert groups.unmet == ()

    assert Cgroups(tmp_path, both, frozenset({"pids"})).unmet == ("memory",)
    assert Cgroups(tmp_path, Bounds(), frozenset()).unmet == ()


def test_an_end_for_want_of_memory_is_recognised(tmp_path: Path) -> None:
    """The kernel counts them."""
    group = Cgroup(tmp_path, {})
    assert not group.ran_out_of_memory()
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.ran_out_of_memory()
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert group.ran_out_of_memory()


# ── when memory is short ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_kernel_ends_an_app_before_the_platform(bench: Bench) -> None:
    """By `oom_score_adj`; it is that of the app alone, so that its launcher can end what is left."""
    code = "import os; [print(open(f'/proc/{pid}/oom_score_adj').read()) for pid in (os.getpid(), os.getppid())]"
    release = bench.shelf.release(await bench.shelf.image(release=(PYTHON, "-c", code)))
    await bench.runtime.prepare(release)
    await bench.runtime.run_release_command(release)
    said = b"".join([each async for each in bench.runtime.logs(release.app_id, lines=10, follow=False)]).decode()
    numbers = [int(line.rpartition("|")[2]) for line in said.splitlines() if line.rpartition("|")[2].strip().isdigit()]
    assert numbers == [min(1000, OWN_SCORE + OOM_SCORE), OWN_SCORE]
