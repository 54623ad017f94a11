import asyncio
import contextlib
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
LIMIT_S = 60


@pytest.fixture
def port() -> int:
    """One that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def _process(tmp_path: Path, port: int, **settings: str) -> AsyncIterator[Process]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'libs'}",
        "KNARR_HOME": str(tmp_path / "home"),
        "KNARR_PORT_BASE": str(port - 3),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.seedwork.chassis.dummy", cwd=tmp_path, env=environment, stderr=PIPE
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ready(port: int) -> None:
    async with asyncio.timeout(LIMIT_S), httpx2.AsyncClient(trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_service_runs_in_a_process_of_its_own_and_stops_when_asked(tmp_path: Path, port: int) -> None:
    """SIGTERM is no error: it finishes and leaves with 0; its log is JSON, since this is a pipe."""
    async with _process(tmp_path, port) as process, asyncio.timeout(LIMIT_S):
        await _ready(port)
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    events = [line["event"] for line in lines]
    assert {"started", "stopping"} <= set(events)
    assert {line["service"] for line in lines if line["event"] in {"started", "stopping"}} == {"builder"}


async def test_a_stream_that_somebody_follows_does_not_hold_up_the_stop(tmp_path: Path, port: int) -> None:
    """It ends when the stop begins, though requests under way would get an hour."""
    async with _process(tmp_path, port, KNARR_STOP_GRACE_S="3600") as process, asyncio.timeout(LIMIT_S):
        await _ready(port)
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=LIMIT_S) as client,
            client.stream("GET", f"http://127.0.0.1:{port}/for-ever") as answer,
        ):
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b"first"
            process.send_signal(signal.SIGTERM)
            assert [piece async for piece in pieces] == []
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"exceeded" not in errors


async def test_a_refused_body_is_never_read(tmp_path: Path, port: int) -> None:
    """The 413 comes while the client still sends, and the connection is closed."""
    async with _process(tmp_path, port, KNARR_TEST_ENDPOINTS="true"), asyncio.timeout(LIMIT_S):
        await _ready(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /test/events/X HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000000\r\n\r\n{"
        )
        answer = await reader.read()  # until the other side closes
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_a_wrong_setting_is_one_clear_line(tmp_path: Path, port: int) -> None:
    """Not a stack trace."""
    async with _process(tmp_path, port, KNARR_LOG_LEVEL="loud") as process, asyncio.timeout(LIMIT_S):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith("builder: A setting is wrong: KNARR_LOG_LEVEL: Input should be 'debug'")
    assert len(errors.splitlines()) == 1


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path, port: int) -> None:
    """It leaves with 1 and says which port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        async with _process(tmp_path, port) as process, asyncio.timeout(LIMIT_S):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"builder: Port {port} is taken, and the service builder wants it" in errors.decode()
    assert "KNARR_PORT_BASE" in errors.decode()
