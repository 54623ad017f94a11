"""`Procfile`: one command line by process type, as Heroku reads it."""

import re
from collections.abc import Mapping

from services.source.errors import AppInvalid
from services.source.plan.findings import Findings
from services.source.plan.formats import lines_of
from services.source.plan.tree import Tree

PROCFILE = "Procfile"
RELEASE = "release"
WEB = "web"

Command = tuple[str, ...]

PROCESS_TYPE = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
"""Names that Heroku takes."""


MAX_PROCESS_TYPES = 100


def shell(line: str) -> Command:
    """The argument list of a command line."""
    return ("/bin/sh", "-c", line)


def read_procfile(tree: Tree, findings: Findings) -> Mapping[str, Command]:
    """Return the commands by process type, `release` among them; nothing where there is no Procfile."""
    if not tree.has(PROCFILE):
        if near := _misspelt(tree):
            findings.note(f"{near} is not read: the file's name is {PROCFILE}")
        return {}
    found: dict[str, Command] = {}
    with findings.collecting():
        for number, line in enumerate(lines_of(tree, PROCFILE), start=1):
            if line and not line.startswith("#"):
                with findings.collecting():
                    _read_line(number, line, found)
        if len(found) > MAX_PROCESS_TYPES:
            findings.refuse(
                f"{PROCFILE} has {len(found)} process types", todo=f"At most {MAX_PROCESS_TYPES} are taken."
            )
        if not found and not findings.refusals:
            findings.refuse(f"{PROCFILE} has no process type", todo="Add a line such as `web: python app.py`.")
    for name in found:
        if name.lower() in {WEB, RELEASE} and name.lower() not in found:
            findings.note(
                f"{PROCFILE}: the process type `{name}` is not `{name.lower()}`. Is `{name.lower()}` meant?"
                " Only `web` gets traffic, and only `release` runs before it moves."
            )
    return found


def _read_line(number: int, line: str, found: dict[str, Command]) -> None:
    name, colon, command = line.partition(":")
    name, command = name.strip(), command.strip(" \t")
    if not colon or not PROCESS_TYPE.fullmatch(name) or not command:
        raise AppInvalid(
            f"{PROCFILE}: line {number} is not `type: command`",
            why=f"it is {line[:80]!r}",
            todo="A type is letters, digits, `-` and `_`, for example `web: python app.py`.",
        )
    if name in found:
        raise AppInvalid(f"{PROCFILE}: line {number} has the type {name!r} a second time", todo="Remove one.")
    found[name] = shell(command)


def _misspelt(tree: Tree) -> str | None:
    wrong = {"procfile", "procfile.txt", "profile", "procfile.yml", "procfile.yaml"}
    return next((name for name in tree.names if "/" not in name and name.lower() in wrong), None)
