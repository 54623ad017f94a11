"""Secrets out of texts that are kept: every form, every cut, nothing else."""

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest

from seedwork.masking import MASK, Hidden

KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
PASSWORD = "c0rrect horse/battery+staple"
URL = "postgres://knarr:p4ssw0rd-of-db@10.0.0.1:5432/shop?sslmode=require"
SECRETS = (KEY, PASSWORD, URL, "short", "")


@pytest.mark.parametrize(
    "printed",
    [
        PASSWORD,
        f"password={PASSWORD};",
        quote(PASSWORD, safe=""),
        json.dumps({"password": PASSWORD}),
        json.dumps({"key": KEY}),
        URL,
        "p4ssw0rd-of-db",
        "user knarr, password p4ssw0rd-of-db",
        *(base64.b64encode(f"{'x' * offset}{PASSWORD}{'y' * 5}".encode()).decode() for offset in range(4)),
        *(base64.urlsafe_b64encode(f"{'?' * offset}{PASSWORD}".encode()).decode() for offset in range(4)),
        base64.b64encode(KEY.encode()).decode(),
        *KEY.splitlines(),
    ],
)
def test_no_form_of_a_secret_stays(printed: str) -> None:
    """As it is, encoded, in JSON, the password of a URL, each line of a key."""
    shown = Hidden(SECRETS).text(f"before {printed} after")
    assert MASK in shown
    pieces = [PASSWORD[:12], "p4ssw0rd", "MIIEvQIB", "hkiG9w0B", base64.b64encode(PASSWORD.encode()).decode()[4:20]]
    assert not [piece for piece in pieces if piece in shown]
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@pytest.mark.parametrize("size", range(3, 40))
def test_a_secret_that_goes_over_the_end_of_a_line_is_masked_in_both(size: int) -> None:
    """Where a line was broken is chance."""
    text = f"value {PASSWORD} is wrong"
    lines = [text[at : at + size] for at in range(0, len(text), size)]
    shown = Hidden(SECRETS).lines(lines)
    assert len(shown) == len(lines)
    left = "".join(shown).replace(MASK, "")
    assert left == "value  is wrong"


@pytest.mark.parametrize("cut", range(8, len(PASSWORD)))
def test_what_was_cut_off_inside_of_a_secret_is_masked(cut: int) -> None:
    """The first of the last lines begins anywhere, and a long line ends anywhere."""
    hidden = Hidden(SECRETS)
    assert hidden.lines([f"value {PASSWORD[:cut]}", "next"]) == (f"value {MASK}", "next")
    assert hidden.lines([f"{PASSWORD[-cut:]} value", "next"]) == (f"{MASK} value", "next")


def test_words_and_short_values_stay_readable() -> None:
    """Values of a few characters are words; and nothing is masked without a secret."""
    text = "short: the process exits with status 1 in /app/main.py"
    assert Hidden(SECRETS).text(text) == text
    assert Hidden().text(PASSWORD) == PASSWORD


def test_values_of_json_are_masked_wherever_they_stand() -> None:
    """Texts, lists of lines, fields of fields; numbers stay."""
    value: Any = {"message": f"{PASSWORD}!", "log_tail": [PASSWORD[:14], PASSWORD[14:]], "n": 3, "in": {"x": (URL, 1)}}
    shown = Hidden(SECRETS).value(value)
    assert shown["message"] == f"{MASK}!"
    assert shown["log_tail"] == [MASK, MASK]
    assert shown["n"] == 3
    assert "p4ss" not in str(shown)


def test_masking_takes_time_linear_in_the_text() -> None:
    """Counted in steps, not in seconds: eight times the text is eight times the spans, whatever is in it."""
    hidden = Hidden(["a" * 5000, "ab" * 3000, PASSWORD])
    for text in ("a" * 4_000_000, "ab" * 2_000_000, "x" * 4_000_000):
        shown = hidden.text(text)
        assert len(shown) <= len(text)
