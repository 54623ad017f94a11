"""Every hint is a command that works as it is written: each one in the code is given to the real parser.

Looked at are the texts of the whole platform: whatever stands in backticks and begins with `knarr`, the examples of the
commands, and the advice of errors (`todo=`) and of `knarr doctor` (`fix=`), which name no HTTP route and no JSON.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from knarr.cli import COMMANDS, app

ROOT = Path(__file__).parents[2]
FOLDERS = ("knarr", "services", "libs")
WHOLE = typer.main.get_command(app)

_QUOTED = re.compile(r"`(knarr(?: [^`]*)?)`")
_BARE = re.compile(r"\bknarr ([a-z][a-z-]*)\b")
_HTTP = re.compile(r"\b(?:GET|POST|PUT|PATCH|DELETE) /")
_JSON = re.compile(r"`[^`]*`|(\{\s*\")")
"""In backticks it is what stands in a file of the app."""


@dataclass(frozen=True)
class Text:
    """A text in the code, with `1` in the place of what is filled in when it runs."""

    where: str
    text: str
    keyword: str = ""
    """Of the argument that it stands in: `todo`, `fix`, `examples`."""


def texts_of(path: Path) -> Iterator[Text]:
    tree = ast.parse(path.read_text())
    docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    inside = {id(part) for each in ast.walk(tree) if isinstance(each, ast.JoinedStr) for part in each.values}
    keywords = {
        id(part): each.arg
        for each in ast.walk(tree)
        if isinstance(each, ast.keyword) and each.arg in {"todo", "fix", "examples"}
        for part in ast.walk(each.value)
    }
    for node in ast.walk(tree):
        text = text_of(node)
        if text is not None and id(node) not in docstrings | inside:
            yield Text(f"{path.relative_to(ROOT)}:{node.lineno}", text, keywords.get(id(node)) or "")  # type: ignore[attr-defined]  # an expression has a line


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "1" for part in node.values)
    return None


def all_texts() -> list[Text]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [text for path in paths for text in texts_of(path)]


TEXTS = all_texts()
QUOTED = sorted({(found, text.where) for text in TEXTS for found in _QUOTED.findall(text.text)})
EXAMPLES = sorted({(text.text, text.where) for text in TEXTS if text.keyword == "examples" and "knarr" in text.text})


def refused(line: str) -> str:
    """Why the command line does not take this; empty: it does."""
    words = shlex.split(line, comments=True)
    words = words[words.index("knarr") + 1 :]
    if "|" in words:
        words = words[: words.index("|")]
    return "" if words in ([], ["--version"], ["--help"]) else refused_by(WHOLE, "knarr", words)


def refused_by(command: Any, path: str, words: list[str]) -> str:
    if not hasattr(command, "commands"):
        return refused_arguments(command, path, words)
    if not words:
        return f"`{path}` alone shows its help"
    if words[0] == "1" and not getattr(
        command, "default", None
    ):  # the name is filled in when it runs: one of the commands takes the rest
        tried = [refused_by(each, f"{path} {name}", words[1:]) for name, each in command.commands.items()]
        return "" if "" in tried else tried[0]
    default = getattr(command, "default", None)
    if default and words[0] not in command.commands:
        return refused_by(command.commands[default], f"{path} {default}", words)
    if words[0] not in command.commands:
        return f"`{path}` has no command {words[0]!r}"
    return refused_by(command.commands[words[0]], f"{path} {words[0]}", words[1:])


def refused_arguments(command: Any, path: str, words: list[str]) -> str:
    try:
        command.make_context(path, list(words))
    except typer.Exit:
        return ""
    except Exception as error:  # noqa: BLE001  the library's errors are private; whatever it raises is a refusal
        return repr(error)
    return ""


@pytest.mark.parametrize(("line", "where"), QUOTED)
def test_a_command_in_a_text_works_as_it_is_written(line: str, where: str) -> None:
    """`knarr apps` printed its help, and `knarr releases` lacked the app."""
    assert refused(line) == "", f"{where}: `{line}`"


@pytest.mark.parametrize(("line", "where"), EXAMPLES)
def test_an_example_works_as_it_is_written(line: str, where: str) -> None:
    """They are what people copy."""
    assert refused(line.replace("$(knarr open shop)", "").removeprefix("curl ") or "knarr open shop") == "", where


def test_advice_names_no_http_route_and_no_json() -> None:
    """The reader has a command line."""
    wrong = [
        text
        for text in TEXTS
        if text.keyword in {"todo", "fix"} and (_HTTP.search(text.text) or any(_JSON.findall(text.text)))
    ]
    assert [f"{each.where}: {each.text}" for each in wrong] == []


def test_a_command_in_advice_stands_in_backticks() -> None:
    """So that it is seen where it ends, and is tried here."""
    wrong = [
        text
        for text in TEXTS
        if text.keyword in {"todo", "fix"}
        and any(name in COMMANDS for name in _BARE.findall(_QUOTED.sub("", text.text)))
    ]
    assert [f"{each.where}: {each.text}" for each in wrong] == []


def test_there_are_hints_and_wrong_ones_are_noticed() -> None:
    """The test itself: what it must refuse."""
    assert len(QUOTED) > 40
    for wrong in ("knarr apps", "knarr releases", "knarr scale web=1", "knarr nothing", "knarr logs shop --no-such"):
        assert refused(wrong), wrong
    for right in ("knarr apps list", "knarr releases shop", "knarr scale shop web=1", "knarr up", "knarr"):
        assert refused(right) == "", right
