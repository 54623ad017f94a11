"""What apps print: kept in bounds, found again, followed over the change of files."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.deployer.adapters.process.output import BURST_BYTES, LINE_BYTES, AppLog, Output
from tests.services.deployer.conftest import PATIENCE_S, eventually

MIB = 1024 * 1024


def texts(lines: list[bytes]) -> list[str]:
    """Without time and label."""
    return [line.decode(errors="replace").partition(" | ")[2].rstrip("\n") for line in lines]


def test_the_last_lines_are_found_across_both_files(tmp_path: Path) -> None:
    """However they are spread; the oldest go when the bound is reached."""
    log = AppLog(tmp_path / "a.log", max_bytes=128 * 1024)
    for number in range(4000):
        log.write("web.1", [f"line {number}".encode()])
    log.close()

    assert log.older.exists()
    assert log.path.stat().st_size + log.older.stat().st_size <= 128 * 1024
    found = texts(log.last(1500))
    assert found == [f"line {number}" for number in range(2500, 4000)]
    assert log.last(0) == []
    assert log.remove() == ["log a.log", "log a.log.1"]
    assert log.last(10) == []


async def test_a_follower_misses_nothing_when_the_file_changes(tmp_path: Path) -> None:
    """From the last lines on, each line once and in order."""
    log = AppLog(tmp_path / "a.log", max_bytes=256 * 1024)
    log.write("web.1", [b"line 0"])
    seen = b""
    written = 1
    follower: AsyncIterator[bytes] = log.read(lines=10, follow=True)
    async with asyncio.timeout(PATIENCE_S):
        async for piece in follower:
            seen += piece
            if b"| line 6000\n" in seen:
                break
            for _ in range(500 if written <= 5501 else 0):
                log.write("web.1", [f"line {written}".encode()])
                written += 1
    log.close()
    assert log.older.exists()
    assert texts(seen.splitlines(keepends=True)) == [f"line {number}" for number in range(6001)]


async def test_output_is_cut_into_lines_and_its_end_is_kept(tmp_path: Path) -> None:
    """A line without end is cut, one without a newline at the end is kept, bytes that are no text do no harm."""
    log = AppLog(tmp_path / "a.log", max_bytes=MIB)
    output = Output(log, "web.1")
    writer = os.dup(output.write_fd)
    output.started()
    os.write(writer, b"one\r\n\xff\xfe\n" + b"x" * (LINE_BYTES + 10) + b"\nlast words")
    os.close(writer)
    await output.ended(PATIENCE_S)

    tail = output.tail()
    assert tail[:2] == ("one", "\ufffd\ufffd")
    assert tail[-1] == "last words"
    assert [len(line) for line in texts(log.last(10))][2:4] == [LINE_BYTES, 10]
    log.close()


async def test_text_without_a_line_end_is_shown_while_its_process_hangs(tmp_path: Path) -> None:
    """In the log and in the tail of an error. The line end that follows later makes no empty line."""
    log = AppLog(tmp_path / "a.log", max_bytes=MIB)
    output = Output(log, "web.1")
    writer = os.dup(output.write_fd)
    output.started()
    os.write(writer, b"connecting to the database ...")

    async def shown() -> tuple[str, ...]:
        return output.tail()

    await eventually(shown)
    assert texts(log.last(10)) == ["connecting to the database ..."]
    os.write(writer, b"\n\nconnected\r\n")
    os.close(writer)
    await output.ended(PATIENCE_S)
    assert output.tail() == ("connecting to the database ...", "", "connected")
    assert log.last(1)[0].endswith(b"| connected\r\n")
    log.close()


async def test_text_that_grows_without_a_line_end_is_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots of progress come faster than the wait, so the wait counts from the first of them."""
    monkeypatch.setattr("services.deployer.adapters.process.output.UNFINISHED_S", 0.05)
    log = AppLog(tmp_path / "a.log", max_bytes=MIB)
    output = Output(log, "web.1")
    writer = os.dup(output.write_fd)
    output.started()
    async with asyncio.timeout(PATIENCE_S):
        while not output.tail():
            os.write(writer, b".")
            await asyncio.sleep(0.01)
    os.close(writer)
    await output.ended(PATIENCE_S)
    log.close()


async def test_a_carriage_return_is_no_line_end(tmp_path: Path) -> None:
    """The oldest line began in its middle, without time and instance."""
    log = AppLog(tmp_path / "a.log", max_bytes=MIB)
    log.write("web.1", [b"\r".join(b"frame %d" % number for number in range(200)), b"next"])
    assert [line.count(b" web.1 | ") for line in log.last(2)] == [1, 1]
    assert len(log.last(100)) == 2
    log.close()


async def test_what_is_too_fast_is_dropped_and_counted(tmp_path: Path) -> None:
    """The writer is never held up; the next line says how much is missing."""
    log = AppLog(tmp_path / "a.log", max_bytes=MIB)
    assert log.has_room(BURST_BYTES - 1)
    assert not log.has_room(5 * MIB)
    log.write("web.1", [b"calm again"])
    found = texts(log.last(2))
    assert found == [f"[knarr dropped {5 * MIB} bytes: too fast to keep]", "calm again"]
    log.close()
