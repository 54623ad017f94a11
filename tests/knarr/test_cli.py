"""The command line: help with examples, errors as sentences, codes for the shell."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from knarr.cli import COMMANDS as CATALOGUE
from knarr.cli import app
from knarr.command import Session, command, group
from knarr.exit_codes import Exit
from knarr.watch import verdict
from seedwork.errors import Conflict, KnarrError, NotAllowed, NotFound, Unauthenticated

runner = CliRunner()


def paths(family: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, each in family.commands.items():
        if hasattr(each, "commands"):
            yield from paths(each, (*prefix, name))
        else:
            yield (*prefix, name)


WHOLE = typer.main.get_command(app)
COMMANDS = sorted(paths(WHOLE))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, and a port where nobody listens."""
    monkeypatch.setenv("KNARR_HOME", str(tmp_path))
    monkeypatch.setenv("KNARR_PORT_BASE", "1")
    monkeypatch.delenv("KNARR_TOKEN", raising=False)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_helps_with_an_example(path: tuple[str, ...]) -> None:
    """And takes `--home` and `--json`."""
    answer = runner.invoke(app, [*path, "--help"])
    assert answer.exit_code == 0
    assert "Examples:\n" in answer.output
    assert re.search(r"^    .*(knarr|make)", answer.output, re.MULTILINE)
    assert "--home" in answer.output
    assert "--json" in answer.output


def test_every_command_of_the_design_is_there() -> None:
    """DESIGN §6 lists them."""
    alone = {path[0] for path in COMMANDS if len(path) == 1}
    assert alone >= {
        "up",
        "deploy",
        "deployments",
        "logs",
        "rollback",
        "scale",
        "restart",
        "open",
        "doctor",
    }
    assert "dead-letters" in alone
    assert {path[0] for path in COMMANDS} >= {"apps", "config", "addons", "sagas", "webhook", "db", "bus", "releases"}
    verbs = {path[1] for path in COMMANDS if path[0] == "sagas"}
    assert verbs == {"list", "show", "log", "cancel", "retry", "pause", "resume", "skip", "compensate"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_sentence_in_the_list_of_commands_is_the_command_s_own(name: str) -> None:
    """The list is written beside the names, so that it is shown without importing the commands."""
    command_ = WHOLE.commands[name]  # type: ignore[attr-defined]  # a group has them
    assert (command_.help or "").partition("\n")[0].strip() == CATALOGUE[name].help


def imported_by(*words: str) -> set[str]:
    """The modules that are there when a command has ended."""
    program = "import sys; from knarr.cli import app\ntry: app(sys.argv[1:])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("\n")[0].rpartition("\n")[2].split()}


HEAVY = {"rich", "httpx2", "structlog", "sqlalchemy", "yaml", "orjson", "services"}


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["deploy", "--help"], ["config", "set", "--help"]])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    """Each of these costs 20 to 200 ms; `knarr --version` took 0.96 s with all of them."""
    assert imported_by(*words) & HEAVY == set()


def test_a_command_that_asks_the_platform_imports_no_service() -> None:
    """`httpx2` and `rich` are needed; structlog, SQLAlchemy and the services belong to `knarr up`."""
    assert imported_by("apps", "list") & {"structlog", "sqlalchemy", "yaml", "services"} == set()


def test_the_version_is_said() -> None:
    """The first thing that a report of a fault needs."""
    answer = runner.invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"knarr {version('knarr')}\n")


def test_a_command_that_used_pulsar_ends_before_the_interpreter_does() -> None:
    """Its client's threads would turn the code into 134, and a job that has done its work into one that failed."""
    program = """
import atexit, sys, types
sys.modules["_pulsar"] = types.ModuleType("_pulsar")
atexit.register(print, "the interpreter went down")
sys.argv = ["knarr", *sys.argv[1:]]
from knarr.cli import main
main()
"""
    for word, code in (("--version", 0), ("--no-such-option", 2)):
        done = subprocess.run([sys.executable, "-c", program, word], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "went down" not in done.stdout
        assert done.stdout or done.stderr


def test_the_exit_codes_are_documented() -> None:
    """Scripts rely on them, so the help lists each."""
    answer = runner.invoke(app, ["--help"])
    for code in Exit:
        assert re.search(rf"^    {code.value} ", answer.output, re.MULTILINE), code


def test_a_platform_that_does_not_run_is_a_sentence_with_advice() -> None:
    """No traceback, nothing on standard output."""
    answer = runner.invoke(app, ["apps", "list"])
    assert answer.exit_code == Exit.FAULT
    assert answer.stdout == ""
    assert "knarr up" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_with_json_an_error_is_json_too() -> None:
    """A program reads standard output, also when it failed."""
    answer = runner.invoke(app, ["apps", "list", "--json"])
    assert json.loads(answer.stdout)["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("There is no app shop"), 3),
        (NotAllowed("No"), 4),
        (Unauthenticated("Who?"), 4),
        (Conflict("Not now"), 1),
        (KnarrError("What?", code="usage"), 2),
    ],
)
def test_an_error_has_its_code(error: KnarrError, code: int) -> None:
    """By its type, whoever raised it."""
    family = group("test")

    @command(family, "fail", examples=["knarr fail"])
    def fail(session: Session) -> None:
        raise error

    @command(family, "other", examples=["knarr other"])
    def other(session: Session) -> None:
        """Makes `fail` a subcommand."""

    answer = runner.invoke(family, ["fail"])
    assert answer.exit_code == code
    assert error.what in answer.stderr


@pytest.mark.parametrize(
    ("saga", "code"),
    [
        ({"state": "SUCCEEDED"}, 0),
        ({"state": "COMPENSATED"}, 5),
        ({"state": "STUCK"}, 6),
        ({"state": "PAUSED", "needs_attention": True}, 6),
        ({"state": "RUNNING"}, 7),
    ],
)
def test_how_a_saga_ended_is_the_exit_code(saga: dict[str, object], code: int) -> None:
    """DESIGN §6."""
    assert verdict(saga) == code


def test_wrong_usage_is_two() -> None:
    """A wrong option, and a value that makes no sense."""
    assert runner.invoke(app, ["deploy", "--nonsense"]).exit_code == 2
    assert runner.invoke(app, ["scale", "shop", "web=many"]).exit_code == 2
    assert runner.invoke(app, ["config", "set", "shop", "NOVALUE"]).exit_code == 2


def test_doctor_says_what_is_missing_and_how_to_fix_it() -> None:
    """A platform that does not run is wrong, so that a script notices it."""
    answer = runner.invoke(app, ["doctor", "--json"])
    findings = {each["name"]: each for each in json.loads(answer.stdout)}
    assert findings["python"]["state"] == "ok"
    assert findings["git"]["state"] == "ok"
    assert (findings["platform"]["state"], findings["platform"]["fix"]) == ("wrong", "Run `knarr up`")
    assert answer.exit_code == Exit.FAULT


def test_several_services_are_upgraded_and_a_typing_error_upgrades_none(tmp_path: Path) -> None:
    """`--service` may be repeated; it took the last one without a word."""
    wrong = runner.invoke(app, ["db", "upgrade", "--service", "source", "--service", "sauce"])
    assert (wrong.exit_code, list(tmp_path.iterdir())) == (Exit.USAGE, [])
    assert "'sauce'" in wrong.output

    done = runner.invoke(app, ["db", "upgrade", "--json", "--service", "source", "--service", "webhook"])
    assert done.exit_code == 0
    assert set(json.loads(done.stdout)) == {"source", "webhook"}
    assert {each.name for each in tmp_path.iterdir()} == {"source", "webhook"}
