"""Build tools under limits: nothing that they start outlives them, and what they take is bounded."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from seedwork.errors import StorageFull
from seedwork.messages import new_id
from services.builder.adapters.layers.limits import Limits, limit_error
from services.builder.adapters.layers.sandbox import Sandbox, ToolFailed
from services.builder.errors import FileTooLarge, OutOfMemory, TooManyProcesses, TooMuchCpu
from tests.services.builder.support import MIB, Output, make_limits

SAGA = new_id()
PATIENCE_S = 30.0


def sandbox_at(folder: Path, **limits: int) -> Sandbox:
    return Sandbox(folder / "home", make_limits(**limits), environ={"PATH": os.environ["PATH"], "UNRELATED": "value"})


async def run(sandbox: Sandbox, folder: Path, script: str, output: Output | None = None) -> Output:
    """Run a Python script as a build tool."""
    output = output or Output()
    env = sandbox.environment(SAGA, folder / "scratch")
    await sandbox.run([sys.executable, "-c", script], cwd=folder, env=env, output=output)
    return output


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  what another process does sets no event here
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_what_a_tool_prints_arrives_while_it_runs(tmp_path: Path) -> None:
    """Both streams, in order, before the end."""
    output = Output()
    go = tmp_path / "go"
    script = (
        "import os, sys, time\nprint('one', flush=True)\nprint('two', file=sys.stderr, flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('three')"
    )

    running = asyncio.create_task(run(sandbox_at(tmp_path), tmp_path, script, output))
    await until(lambda: output.text == b"one\ntwo\n")
    go.touch()
    await running

    assert output.text == b"one\ntwo\nthree\n"


async def test_an_error_tells_how_the_tool_ended(tmp_path: Path) -> None:
    """Its exit code or its signal, and its last words."""
    with pytest.raises(ToolFailed) as failure:
        await run(sandbox_at(tmp_path), tmp_path, "import sys; print('last words'); sys.exit(3)")
    assert failure.value.ending == "exit code 3"
    assert b"last words" in failure.value.lines

    with pytest.raises(ToolFailed) as failure:
        await run(sandbox_at(tmp_path), tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert failure.value.ending == "it was ended by SIGTERM"


async def test_a_tool_that_is_not_there_says_so(tmp_path: Path) -> None:
    """127, as in a shell."""
    sandbox, output = sandbox_at(tmp_path), Output()
    env = sandbox.environment(SAGA, tmp_path / "scratch")

    with pytest.raises(ToolFailed, match="127"):
        await sandbox.run(["no-such-tool"], cwd=tmp_path, env=env, output=output)

    assert "no-such-tool cannot be started" in output


async def test_the_environment_is_clean(tmp_path: Path) -> None:
    """Nothing of the platform's own environment, except what is needed to get packages."""
    environ = {
        "PATH": os.environ["PATH"],
        "KNARR_SERVICE_TOKEN": "a-service-token",
        "AWS_SECRET_ACCESS_KEY": "a-cloud-key",
        "PIP_INDEX_URL": "https://user:hidden-word@index.example/simple",
        "NPM_TOKEN": "an-npm-token",
        "EXTRA": "extra",
    }
    sandbox = Sandbox(tmp_path / "home", make_limits(), environ=environ, pass_env=("EXTRA",))

    output = await run(sandbox, tmp_path, "import os\nprint(sorted(os.environ))\nprint(os.environ['HOME'])")

    assert "KNARR_SERVICE_TOKEN" not in output
    assert "AWS_SECRET_ACCESS_KEY" not in output
    assert "PIP_INDEX_URL" in output
    assert "EXTRA" in output
    assert f"{tmp_path}/scratch/home" in output
    assert sandbox.secrets() == {"user:hidden-word", "hidden-word", "an-npm-token"}


async def test_what_a_tool_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    """A daemon that a build script starts, in a session of its own, does not stay."""
    pids = tmp_path / "pids"
    script = (
        "import subprocess, sys\n"
        "sleep = 'import time; time.sleep(600)'\n"
        "one = subprocess.Popen([sys.executable, '-c', sleep])\n"
        "two = subprocess.Popen([sys.executable, '-c', sleep], start_new_session=True)\n"
        f"open({str(pids)!r}, 'w').write(f'{{one.pid}} {{two.pid}}')\n"
    )

    await run(sandbox_at(tmp_path), tmp_path, script)

    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert not any(alive(pid) for pid in started)


async def test_a_cancelled_tool_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """When `run` returns from a cancellation they have all been killed; the kernel takes a moment to end them."""
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '.new', {str(pids)!r})\n"
        "time.sleep(600)\n"
    )
    running = asyncio.create_task(run(sandbox_at(tmp_path), tmp_path, script))
    await until(pids.exists)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


async def test_leftovers_of_a_killed_service_are_found_and_ended(tmp_path: Path) -> None:
    """By their environment: those of this builder's home, of one saga or of all; and nobody else's."""
    ours, others = sandbox_at(tmp_path / "ours"), sandbox_at(tmp_path / "others")
    left = [await _left_behind(ours, SAGA, tmp_path), await _left_behind(ours, new_id(), tmp_path)]
    foreign = await _left_behind(others, SAGA, tmp_path)
    try:
        assert await ours.stop(SAGA) == 1
        await asyncio.wait_for(left[0].wait(), PATIENCE_S)
        assert left[1].returncode is None

        assert await ours.stop() == 1
        await asyncio.wait_for(left[1].wait(), PATIENCE_S)
        assert await ours.stop() == 0
        assert foreign.returncode is None
        assert alive(foreign.pid)
    finally:
        foreign.kill()
        await foreign.wait()


async def _left_behind(sandbox: Sandbox, saga_id: str, folder: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "/bin/sleep", "600", env=sandbox.environment(saga_id, folder / "scratch"), start_new_session=True
    )


async def test_one_process_that_takes_too_much_memory_is_a_final_error(tmp_path: Path) -> None:
    """It is refused what it cannot reserve, and ended for what it uses; the error names the setting."""
    reserve, use = "x = bytearray(2000 * 1024 ** 2)", "x = b'x' * (600 * 1024 ** 2); import time; time.sleep(600)"
    for script in (reserve, use):
        with pytest.raises(OutOfMemory, match=r"256 MiB.*KNARR_BUILD_MEMORY_BYTES"):
            await run(sandbox_at(tmp_path, memory_bytes=256 * MIB), tmp_path, script)


async def test_a_process_may_reserve_memory_that_it_does_not_use(tmp_path: Path) -> None:
    """Node 24 and allocators of native libraries do; a build with 0.8 GiB resident was ended at a limit of 2."""
    await run(sandbox_at(tmp_path, memory_bytes=256 * MIB), tmp_path, "import mmap; mmap.mmap(-1, 700 * 1024 ** 2, 2)")


async def test_many_processes_that_take_too_much_memory_together_are_ended(tmp_path: Path) -> None:
    """Each one is below the limit; the sum is what counts."""
    script = (
        "import os, time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(os.urandom(1)) * (80 * 1024 ** 2)\n"
        "        time.sleep(600)\n"
        "time.sleep(600)\n"
    )

    with pytest.raises(OutOfMemory):
        await asyncio.wait_for(run(sandbox_at(tmp_path, memory_bytes=256 * MIB), tmp_path, script), PATIENCE_S)


async def test_too_many_processes_are_a_final_error(tmp_path: Path) -> None:
    """A fork bomb ends, and the error names the setting."""
    script = "import os, time\nfor _ in range(30):\n    if os.fork() == 0: break\ntime.sleep(600)\n"

    with pytest.raises(TooManyProcesses, match="KNARR_BUILD_PROCESSES"):
        await asyncio.wait_for(run(sandbox_at(tmp_path, processes=8), tmp_path, script), PATIENCE_S)


async def test_a_file_that_grows_without_end_is_stopped(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the disk belongs to all builds."""
    script = "f = open('big', 'wb')\nwhile True: f.write(bytes(1024 ** 2))"

    with pytest.raises(FileTooLarge, match="KNARR_BUILD_FILE_BYTES"):
        await run(sandbox_at(tmp_path, file_bytes=MIB), tmp_path, script)

    assert (tmp_path / "big").stat().st_size <= MIB


async def test_a_process_that_computes_without_end_is_stopped(tmp_path: Path) -> None:
    """SIGXCPU comes before SIGKILL, so the error names the limit."""
    limits = Limits(memory_bytes=2048 * MIB, processes=200, file_bytes=MIB, cpu_s=1)
    sandbox = Sandbox(tmp_path / "home", limits, environ={"PATH": os.environ["PATH"]})

    with pytest.raises(TooMuchCpu, match="KNARR_BUILD_TIMEOUT_S"):
        await asyncio.wait_for(run(sandbox, tmp_path, "while True: pass"), PATIENCE_S)


@pytest.mark.parametrize(
    ("exit_code", "line", "setting"),
    [
        (153, b"", "KNARR_BUILD_FILE_BYTES"),
        (-25, b"", "KNARR_BUILD_FILE_BYTES"),
        (1, b"dd: error writing 'big': File too large", "KNARR_BUILD_FILE_BYTES"),
        (1, b"File size limit exceeded (core dumped)", "KNARR_BUILD_FILE_BYTES"),
        (1, b"npm error signal SIGXFSZ", "KNARR_BUILD_FILE_BYTES"),
        (1, b" ELIFECYCLE  Command failed with EFBIG.", "KNARR_BUILD_FILE_BYTES"),
        (137, b"", "KNARR_BUILD_MEMORY_BYTES"),
        (-9, b"", "KNARR_BUILD_MEMORY_BYTES"),
        (1, b"npm error signal SIGKILL", "KNARR_BUILD_MEMORY_BYTES"),
        (134, b"FATAL ERROR: ... Allocation failed - JavaScript heap out of memory", "KNARR_BUILD_MEMORY_BYTES"),
        (2, b"fatal error: runtime: out of memory", "KNARR_BUILD_MEMORY_BYTES"),
        (134, b"terminate called after throwing an instance of 'std::bad_alloc'", "KNARR_BUILD_MEMORY_BYTES"),
        (152, b"", "KNARR_BUILD_TIMEOUT_S"),
        (2, b"sh: 1: fork: Resource temporarily unavailable", "KNARR_BUILD_PROCESSES"),
        (1, b"Error: spawn /bin/sh EAGAIN", "KNARR_BUILD_PROCESSES"),
        (1, b"RuntimeError: can't start new thread", "KNARR_BUILD_PROCESSES"),
    ],
)
def test_a_limit_is_named_however_the_tool_reports_it(exit_code: int, line: bytes, setting: str) -> None:
    """By the signal, by the status that a shell or npm makes of it, or by the text of the error number."""
    error = limit_error(exit_code, [b"before", line, b"after"], make_limits())

    assert error is not None
    assert setting in error.message


def test_an_ordinary_failure_names_no_limit() -> None:
    """A test that fails is not a limit."""
    assert limit_error(1, [b"npm error code 1", b"AssertionError"], make_limits()) is None


async def test_a_tool_that_finds_the_disk_full_is_our_fault(tmp_path: Path) -> None:
    """Retryable: the same build succeeds when there is room."""
    with pytest.raises(StorageFull):
        await run(sandbox_at(tmp_path), tmp_path, "raise OSError(28, 'No space left on device')")


async def test_output_that_cannot_be_written_ends_the_build_and_blocks_nobody(tmp_path: Path) -> None:
    """The tool's pipe is read to its end."""

    class Full(Output):
        def write(self, text: bytes) -> None:
            raise StorageFull("The disk has no room left")

    with pytest.raises(StorageFull):
        await run(sandbox_at(tmp_path), tmp_path, "print('x' * 1_000_000)", Full())
