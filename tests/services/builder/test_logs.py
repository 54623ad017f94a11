"""Build logs: appended, masked, bounded, readable by offset."""

import os
import time
from pathlib import Path

import pytest

from seedwork.errors import InvalidInput
from seedwork.messages import new_id
from services.builder.logs import BuildLogs
from services.builder.masking import Mask

SAGA = new_id()


def logs_at(folder: Path, *, max_bytes: int = 1_000_000, secrets: tuple[str, ...] = ()) -> BuildLogs:
    return BuildLogs(folder / "logs", max_bytes=max_bytes, secrets=secrets)


def text_of(logs: BuildLogs) -> str:
    return logs.read(SAGA, 0, 10_000_000).decode()


def test_attempts_are_appended_under_a_header(tmp_path: Path) -> None:
    """One file a saga; a later process goes on where an earlier one ended."""
    for attempt in (1, 2):
        log = logs_at(tmp_path).open(SAGA, attempt=attempt)
        log.write(b"output of %d\n" % attempt)
        log.close()

    lines = text_of(logs_at(tmp_path)).splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["=== attempt 1", "output of 1", "=== attempt 2", "output of 2"]


def test_pieces_become_lines(tmp_path: Path) -> None:
    """A tool's pieces end anywhere; a line is written when it is complete, the last one at the end."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1)

    log.write(b"one\ntw")
    assert text_of(logs).splitlines()[1:] == ["one"]
    log.write(b"o\nthree")
    log.close()

    assert text_of(logs).splitlines()[1:] == ["one", "two", "three"]


def test_colours_and_progress_bars_are_taken_out(tmp_path: Path) -> None:
    """The log is text."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1)
    log.write(b"\x1b[1;32mgreen\x1b[0m 10%\r 20%\r\n")
    log.close()

    assert text_of(logs).splitlines()[1] == "green 10% 20%"


@pytest.mark.parametrize("cut_at", range(0, 40, 3))
def test_secrets_are_masked_wherever_the_pieces_end(tmp_path: Path, cut_at: int) -> None:
    """Known values, and what stands before the `@` of a URL."""
    logs = logs_at(tmp_path, secrets=("hidden-word",))
    log = logs.open(SAGA, attempt=1)
    line = b"get https://me:other-word@index.example hidden-word done\n"
    log.write(line[:cut_at])
    log.write(line[cut_at:])
    log.close()

    assert text_of(logs).splitlines()[1] == "get https://****@index.example **** done"
    assert not any("word" in each for each in log.tail(10))


def test_a_secret_in_a_line_without_end_is_masked_too(tmp_path: Path) -> None:
    """Long lines are broken, and never in the middle of a secret."""
    logs = logs_at(tmp_path, secrets=("hidden-word",))
    log = logs.open(SAGA, attempt=1)
    for start in range(3):
        log.write(b"x" * (8192 - 5 + start))
        log.write(b"hidden-wo")
        log.write(b"rd")
    log.close()

    text = text_of(logs).replace("\n", "")
    assert "hidden-word" not in text
    assert text.count("****") == 3


def test_a_log_is_cut_at_its_limit_and_says_so(tmp_path: Path) -> None:
    """Whole lines up to the limit, then what happened and how much is missing; the tail is the real one."""
    logs = logs_at(tmp_path, max_bytes=2000)
    log = logs.open(SAGA, attempt=1)
    for number in range(1000):
        log.write(b"line %d\n" % number)
    log.close()

    text = text_of(logs)
    assert len(text) < 2300
    assert "KNARR_BUILD_LOG_MAX_BYTES" in text
    assert "more bytes were printed" in text.splitlines()[-1]
    assert log.tail(1) == ("line 999",)


def test_a_log_is_read_from_any_offset(tmp_path: Path) -> None:
    """Past its end there is nothing, and no error."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1)
    log.write(b"abcdef\n")
    log.close()
    size = logs.size(SAGA)

    assert logs.read(SAGA, size - 4, 2) == b"de"
    assert logs.read(SAGA, size + 10, 10) == b""
    assert logs.size(new_id()) == 0


@pytest.mark.parametrize("saga_id", ["..", "../../etc/passwd", "x", "", "a/b"])
def test_only_a_saga_id_names_a_log(tmp_path: Path, saga_id: str) -> None:
    """No path from outside reaches the disk."""
    with pytest.raises(InvalidInput):
        logs_at(tmp_path).path(saga_id)


def test_old_logs_are_removed(tmp_path: Path) -> None:
    """By the time of their last line."""
    logs = logs_at(tmp_path)
    for saga_id in (SAGA, other := new_id()):
        logs.open(saga_id, attempt=1).close()
    os.utime(logs.path(SAGA), (1, 1))

    assert logs.sweep(keep_s=3600) == 1
    assert logs.size(SAGA) == 0
    assert logs.size(other) > 0


def test_an_unfinished_line_is_shown_and_goes_on(tmp_path: Path) -> None:
    """A prompt is in the log before its line ends; what follows stands on the same line."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1)

    log.write(b"Proceed? ")
    log.show_unfinished()
    assert text_of(logs).splitlines()[1:] == ["Proceed? "]
    assert log.tail(1) == ("Proceed? ",)
    log.write(b"yes\nnext")
    log.show_unfinished()
    log.say("a line of the builder")
    log.close()

    assert text_of(logs).splitlines()[1:] == ["Proceed? ", "yes", "next", "a line of the builder"]


def test_a_carriage_return_ends_no_line(tmp_path: Path) -> None:
    """A progress bar is one line, however often it is shown."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1)
    for percent in (10, 20, 30):
        log.write(b"%d%%\r" % percent)
        log.show_unfinished()
    log.write(b"\n")
    log.close()

    assert text_of(logs).splitlines()[1:] == ["10%20%30%"]


@pytest.mark.parametrize("line", [b"hidden-word and more", b"https://me:hidden-word@index/ x", b"\x1b[1;32mgreen"])
def test_half_a_secret_is_not_shown(tmp_path: Path, line: bytes) -> None:
    """Wherever an unfinished line is shown, the log is what it would be if the line had come at once."""
    logs = logs_at(tmp_path, secrets=("hidden-word",))
    log = logs.open(SAGA, attempt=1)
    for byte in line:
        log.write(bytes([byte]))
        log.show_unfinished()
        assert "hidden-wo" not in text_of(logs)
        assert "\x1b" not in text_of(logs)
    log.write(b"\n")
    log.close()

    assert text_of(logs).splitlines()[1:] == [Mask(["hidden-word"]).clean(line).decode()]


def test_a_secret_of_several_lines_is_masked_line_by_line(tmp_path: Path) -> None:
    """A private key that a tool prints is not shown."""
    logs = logs_at(tmp_path)
    log = logs.open(SAGA, attempt=1, secrets=("-----BEGIN KEY-----\nabcdefgh12345678\n-----END KEY-----\n",))
    log.write(b"key: abcdefgh12345678\nend\n")
    log.close()

    assert text_of(logs).splitlines()[1:] == ["key: ****", "end"]


@pytest.mark.parametrize(
    "piece", [b"a", b"a.", b"a://", b"://x@", b"://a:", b"a@", b"\x1b[", b"\x1b[0", b"0 ", b"\r", b"hidden-wor", b"hi"]
)
def test_the_time_for_a_line_grows_with_its_length_only(piece: bytes) -> None:
    """Eight times the length may cost eight times the time, not sixty-four times."""
    mask = Mask(["hidden-word"])

    def cost(length: int) -> float:
        line = piece * (length // len(piece))
        times = []
        for _ in range(5):
            started = time.process_time()
            mask.clean(line)
            mask.safe_bytes(line)
            times.append(time.process_time() - started)
        return min(times)

    assert cost(512_000) < 30 * max(cost(64_000), 0.000_05)
