"""Commands against a platform that the test plays: what they ask, what they print, byte by byte, and how they end."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from knarr.cli import app
from knarr.client import Platform
from knarr.command import Session
from knarr.commands.logs import for_terminal, moment, parsed, whole_lines
from knarr.home import Address
from knarr.terminal import visible
from seedwork.errors import InvalidInput

Answer = Callable[[httpx2.Request], httpx2.Response]

runner = CliRunner()


class Played:
    """A platform: answers by method and path, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.asked.append(request)
        found = self.answers.get(f"{request.method} {request.url.path}", httpx2.Response(404, json={"what": "nothing"}))
        return found if isinstance(found, httpx2.Response) else httpx2.Response(200, json=found)

    def bodies(self, method: str) -> list[Any]:
        return [json.loads(each.content) for each in self.asked if each.method == method]

    def run(self, *words: str, **options: Any) -> Result:
        return runner.invoke(app, list(words), **options)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Played]:
    monkeypatch.setenv("KNARR_HOME", str(tmp_path / "home"))
    found = Played()
    platform = Platform(Address(host="127.0.0.1", port_base=1), "t", transport=httpx2.MockTransport(found))
    monkeypatch.setattr(Session, "platform", property(lambda _: platform))
    yield found
    platform.close()


# ── config ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["plain", "a\r\nb\r\n", "tab\tand\n\n", "  spaces  ", "ünï [bold]x[/]", ""])
def test_a_value_is_printed_byte_for_byte_with_one_newline(played: Played, value: str) -> None:
    """Carriage returns were lost, and markup was read."""
    played.answers["GET /apps/shop/config"] = {"KEY": value}
    assert played.run("config", "get", "shop", "KEY").stdout_bytes == value.encode() + b"\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["HANDLE=@@me"], "@me"),
        (["--literal", "HANDLE=@me"], "@me"),
        (["HANDLE=a=b"], "a=b"),
        (["HANDLE="], ""),
        (["HANDLE=@{file}"], "first\nlast"),
    ],
)
def test_a_value_may_begin_with_an_at_and_a_file_loses_one_newline(
    played: Played, tmp_path: Path, words: list[str], expected: str
) -> None:
    """`echo secret > file` adds a newline that is no part of the secret."""
    (tmp_path / "value").write_text("first\nlast\n")
    played.answers["PATCH /apps/shop/config"] = {"saga_id": None, "config_version": 2, "changed": True}
    given = [word.format(file=tmp_path / "value") for word in words]
    assert played.run("config", "set", "shop", *given).exit_code == 0
    assert played.bodies("PATCH") == [{"HANDLE": expected}]


def test_a_file_that_is_not_there_names_the_way_to_mean_the_value_itself(played: Played) -> None:
    """Handles of people begin with @."""
    answer = played.run("config", "set", "shop", "HANDLE=@nobody")
    assert answer.exit_code == 2
    assert "HANDLE=@@nobody" in answer.stderr
    assert played.asked == []


def test_a_scope_is_set_before_the_value(played: Played) -> None:
    """No instance sees a build's secret in between; a change of the scope alone is a change."""
    played.answers["PATCH /apps/shop/config/scopes"] = {"saga_id": None, "config_version": 2, "changed": True}
    played.answers["PATCH /apps/shop/config"] = {"saga_id": None, "config_version": 2, "changed": False}

    answer = played.run("config", "set", "shop", "--scope", "build", "TOKEN=v")

    assert played.bodies("PATCH") == [{"TOKEN": "build"}, {"TOKEN": "v"}]
    assert "Config version 2 is stored" in answer.stdout


def test_values_that_are_there_already_change_nothing_and_are_said_to(played: Played) -> None:
    """It read as if a deployment would take them."""
    played.answers["PATCH /apps/shop/config"] = {"saga_id": None, "config_version": 2, "changed": False}
    assert "Nothing changed" in played.run("config", "set", "shop", "K=v").stdout


def test_unsetting_what_is_not_there_ends_with_three_and_changes_nothing(played: Played) -> None:
    """Also where another name is known."""
    played.answers["GET /apps/shop/config"] = {"KNOWN": "********"}
    answer = played.run("config", "unset", "shop", "KNOWN", "NOPE")
    assert (answer.exit_code, played.bodies("PATCH")) == (3, [])
    assert "NOPE" in answer.stderr


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LOG = (
    b"2026-12-01T10:00:00.000Z web.1 | tab\there \x1b[31mred\x1b[0m\n"
    b"2026-12-01T10:00:01.000Z web.2 | one\rtwo \xe9 \x1b]0;title\x07\n"
)


def test_a_pipe_gets_the_bytes(played: Played) -> None:
    """Tabs became spaces."""
    played.answers["GET /apps/shop/logs"] = httpx2.Response(200, content=LOG)
    assert played.run("logs", "shop").stdout_bytes == LOG


def test_lines_are_objects_with_json(played: Played) -> None:
    """One a line, so that a log that is followed can be read too."""
    played.answers["GET /apps/shop/logs"] = httpx2.Response(200, content=LOG + b"no prefix\n")
    lines = [json.loads(line) for line in played.run("logs", "shop", "--json").stdout.splitlines()]
    assert lines[0] == {"at": "2026-12-01T10:00:00.000Z", "process": "web.1", "text": "tab\there \x1b[31mred\x1b[0m"}
    assert lines[1]["text"] == "one\rtwo \\xe9 \x1b]0;title\x07"
    assert lines[2] == {"at": None, "process": None, "text": "no prefix"}


def test_a_selection_is_asked_of_the_platform(played: Played) -> None:
    """All lines of the time, unless a number is given."""
    played.answers["GET /apps/shop/logs"] = httpx2.Response(200, content=b"")
    answer = played.run("logs", "shop", "--process", "web.1", "--since", "2026-12-01T12:00:00+02:00")
    assert dict(played.asked[0].url.params) == {
        "lines": "10000",
        "process": "web.1",
        "since": "2026-12-01T10:00:00.000Z",
    }
    assert "printed nothing of web.1 since then" in answer.stderr


def test_times_are_ago_or_at_a_moment() -> None:
    """And what is neither is refused with an example."""
    from datetime import UTC, datetime

    now = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)
    assert moment("10m", now=now) == "2026-12-01T09:50:00.000Z"
    assert moment("1d", now=now) == "2026-11-30T10:00:00.000Z"
    with pytest.raises(InvalidInput, match="10m"):
        moment("yesterday")


def test_lines_are_put_together_from_any_pieces() -> None:
    """Also the last one without an end."""
    text = b"one\n\ntwo\rthree\nfour"
    for size in (1, 2, 3, 100):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(whole_lines(pieces)) == [b"one", b"", b"two\rthree", b"four"]


def test_an_app_cannot_write_to_the_terminal_of_the_reader() -> None:
    """Its colours stay, and end with its line; everything else is shown."""
    line = b"a\rb\x1b]0;title\x07\x1b[31mred\x1b[2J\xc2\x9b31m\ttab"
    assert for_terminal(line, colours=True) == "a^Mb^[]0;title^G\x1b[31mred^[[2J\\x9b31m\ttab\x1b[0m"
    assert for_terminal(b"\x1b[31mred\x1b[0m\r", colours=False) == "red"
    assert visible("\x1b[31m\x7f\n") == "^[[31m^?\n"
    assert parsed(b"2026-12-01T10:00:00Z web.1 | a | b")["text"] == "a | b"


# ── one-off commands ─────────────────────────────────────────────────────────────────────────────────────────────────


def stream(*lines: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(200, content=b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def output(data: bytes) -> dict[str, str]:
    return {"output": base64.b64encode(data).decode()}


def test_a_command_gets_its_words_as_they_are_and_its_exit_code_is_passed_on(played: Played) -> None:
    """Options after the app belong to the command; its bytes are not touched."""
    played.answers["POST /apps/shop/runs"] = stream(output(b"\xff\r"), output(b"\x1b[31m"), {"exit_code": 42})
    answer = played.run("run", "shop", "ls", "--json", "-h", "--", "two words")
    assert (answer.exit_code, answer.stdout_bytes) == (42, b"\xff\r\x1b[31m")
    assert played.bodies("POST") == [{"command": ["ls", "--json", "-h", "--", "two words"]}]
    played.answers["POST /apps/shop/runs"] = stream({"exit_code": 0})
    assert played.run("run", "shop", "--", "ls").exit_code == 0
    assert played.bodies("POST")[-1] == {"command": ["ls"]}


def test_a_command_that_did_not_end_by_itself_is_no_success(played: Played) -> None:
    """The platform stopped in the middle."""
    played.answers["POST /apps/shop/runs"] = stream(output(b"half"))
    answer = played.run("run", "shop", "ls")
    assert answer.exit_code == 1
    assert "ended before it was done" in answer.stderr


# ── what runs ────────────────────────────────────────────────────────────────────────────────────────────────────────

CRASHING = {
    "state": "crash_loop",
    "reason": "web.1 crashed 4 times",
    "url": "http://127.0.0.1:8800/",
    "release": 2,
    "formation": {"web": 1},
    "saga_id": "s2",
    "instances": [
        {
            "process": "web.1",
            "state": "up",
            "restarts": 4,
            "next_start": None,
            "since": "2026-12-01T10:00:00Z",
            "release": 2,
            "note": "",
            "id": "i",
        }
    ],
}


def listing(played: Played, running: dict[str, Any], **known: Any) -> None:
    one = {"id": "a1", "name": "shop", "repository": "acme/shop", **known}
    played.answers["GET /apps"] = {"items": [one], "next_cursor": None}
    played.answers["GET /apps/shop"] = {**one, **running}


def test_lists_show_crashes_failing_polls_and_the_next_command(played: Played) -> None:
    """Between two crashes it read "healthy"."""
    listing(played, CRASHING, polling={"failures": 2, "error": "the host does not answer"})
    text = played.run("apps", "list").stdout
    for part in ("crash loop", "4 restarts", "polling failed 2 times", "`knarr logs shop`"):
        assert part in text
    shown = played.run("apps", "show", "shop").stdout
    for part in ("crash loop", "web.1 crashed 4 times", "4 restarts", "failed 2 times: the host does not answer"):
        assert part in shown
    saga = {"id": "s2", "app": "shop", "saga": "deploy", "state": "SUCCEEDED", "created_at": None}
    played.answers["GET /sagas"] = {"items": [saga, {**saga, "id": "s1"}], "next_cursor": None}
    assert played.run("deployments").stdout.count("crash loop; 4 restarts") == 1
    ps = played.run("ps")
    assert "web.1" in ps.stdout
    assert "`knarr logs shop`" in ps.stderr


def test_an_app_without_a_process_has_no_address(played: Played) -> None:
    """Its list and `open` name the command that starts one."""
    listing(
        played,
        {"state": "stopped", "reason": "no instance is wanted", "url": None, "release": 1, "formation": {"web": 0}},
    )
    assert "`knarr scale shop web=1`" in played.run("apps", "list").stdout
    opened = played.run("open", "shop")
    assert opened.exit_code == 3
    assert "`knarr scale shop web=1`" in opened.stderr


@pytest.mark.parametrize(
    ("running", "reason", "expected", "url"),
    [
        ({"state": "live", "url": "http://a/"}, None, "shop is live:", "http://a/\n"),
        ({"state": "live", "url": None}, None, "shop is live.", ""),
        (
            {"state": "stopped", "url": None, "release": 1, "formation": {"worker": 0}},
            None,
            "`knarr scale shop worker=1`",
            "",
        ),
        ({"state": "no_process", "url": None, "formation": {"web": 0}}, None, "no web process runs", ""),
        ({"state": "live", "url": "http://a/", "release": 7}, "unchanged", "release 7 runs already:", "http://a/\n"),
        ({}, "unchanged", "its release runs already", ""),
        ({**CRASHING, "url": "http://a/"}, None, "web.1 crashed 4 times: `knarr logs shop`", "http://a/\n"),
    ],
)
def test_a_deployment_ends_with_what_runs(
    played: Played, running: dict[str, Any], reason: str | None, expected: str, url: str
) -> None:
    """An address only where something answers at it."""
    played.answers["PATCH /apps/shop/formation"] = {"saga_id": "s1"}
    done: dict[str, Any] = {
        "id": "s1",
        "app": "shop",
        "saga": "release",
        "state": "SUCCEEDED",
        "reason": reason,
        "steps": [],
    }
    played.answers["GET /sagas/s1"] = done
    played.answers["GET /apps/shop"] = running
    answer = played.run("scale", "shop", "web=1")
    assert answer.exit_code == 0, answer.output
    assert (expected in answer.stderr, answer.stdout) == (True, url)


@pytest.mark.parametrize("verb", ["stop", "start"])
def test_stopping_and_starting_without_a_change_say_so(played: Played, verb: str) -> None:
    """No saga is started."""
    played.answers[f"POST /apps/shop/{verb}"] = {"saga_id": None, "config_version": 1, "changed": False}
    played.answers["GET /apps/shop"] = {"state": "live"}
    answer = played.run(verb, "shop")
    assert (answer.exit_code, "Nothing changed" in answer.stdout) == (0, True)


# ── deploy, remove, completion ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("folder", "code"), [("missing", 3), ("empty", 1)])
def test_a_folder_that_cannot_be_deployed_makes_no_app(played: Played, tmp_path: Path, folder: str, code: int) -> None:
    """The app was made first, and stayed."""
    (tmp_path / "empty").mkdir()
    answer = played.run("deploy", str(tmp_path / folder))
    assert answer.exit_code == code
    assert {each.method for each in played.asked} <= {"GET"}


def test_removal_without_a_terminal_names_the_option(played: Played) -> None:
    """It said "Aborted!" behind the question."""
    answer = played.run("apps", "remove", "shop", input="n")
    assert answer.exit_code == 2
    assert "`knarr apps remove shop --yes`" in answer.stderr
    assert answer.stderr.endswith("\n")
    assert played.asked == []


def test_names_of_apps_are_completed_and_a_silent_platform_gives_none(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell shows everything that is printed meanwhile."""
    items = [{"name": name} for name in ("shop", "shop-api", "blog")]
    played.answers["GET /apps"] = {"items": items}
    env = {"_KNARR_COMPLETE": "complete_bash", "COMP_WORDS": "knarr logs sh", "COMP_CWORD": "2"}
    assert runner.invoke(app, [], prog_name="knarr", env=env).output.split() == ["shop", "shop-api"]
    played.answers = {}
    assert runner.invoke(app, [], prog_name="knarr", env=env).output.strip() == ""
