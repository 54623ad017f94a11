"""What a Python app depends on, read from `requirements.txt` or `pyproject.toml`. Pure, except for reading files.

The result names the arguments for `uv pip install` and what the layer's key is made of: the content of every file that
takes part. An app that installs itself or a folder of its own depends on all of its source.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from services.builder.errors import CannotBuild

ReadFile = Callable[[str], bytes | None]
"""A file of the app by its name; None: there is none."""

_INCLUDE = re.compile(r"^(?:-r|-c|--requirement|--constraint)(?:\s+|=|(?<=^-[rc]))(\S+)")
_EDITABLE = re.compile(r"^(-e|--editable)\b")
_LOCAL = re.compile(
    r"^(\.|/|file:)|@\s*(file:|\.)|^[^\s:]+\.(whl|tar\.gz|zip)(\s|$)|^(--find-links|-f)[\s=]+(\.|/|file:)"
)
_FILES = 50
"""That requirements may include, one through the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What to install, and what it is made of."""

    file: str | None = None
    """`requirements.txt` or `pyproject.toml`; None: the app has no dependencies."""
    inputs: Mapping[str, str]
    """The content that decides, by file name: part of the layer's key."""
    needs_source: bool = False
    """True: folders of the app are installed, so that every change of the app may change the layer."""
    own_config: bool = False
    """True: the app configures uv itself (`uv.toml` or `[tool.uv]`)."""


def read_requirements(read: ReadFile) -> Requirements:
    """Find out what the app depends on.

    Raises:
        CannotBuild: A file cannot be read, or asks for what no image can hold; the text names file and line.
    """
    config = _config(read)
    own_config = bool(config)
    if (content := read("requirements.txt")) is not None:
        files: dict[str, str] = {}
        local = _collect("requirements.txt", content, read, files)
        return Requirements(
            file="requirements.txt" if any(_lines(text) for text in files.values()) else None,
            inputs={**files, **config},
            needs_source=local,
            own_config=own_config,
        )
    project = _toml(read, "pyproject.toml")
    if "project" in project:
        return _from_project(project, config)
    if "poetry" in project.get("tool", {}):
        raise CannotBuild(
            "pyproject.toml lists its dependencies in [tool.poetry]",
            why="this builder reads [project] dependencies (PEP 621) and requirements.txt",
            todo="Write them to [project], or commit the output of `poetry export` as requirements.txt.",
        )
    return Requirements(inputs={})


def _from_project(project: Mapping[str, Any], config: Mapping[str, str]) -> Requirements:
    table = project["project"]
    dependencies = table.get("dependencies", [])
    dynamic = "dependencies" in table.get("dynamic", [])
    sources = project.get("tool", {}).get("uv", {}).get("sources", {})
    return Requirements(
        file="pyproject.toml" if dependencies or dynamic else None,
        inputs={"project.dependencies": "\n".join(map(str, dependencies)), **config},
        needs_source=dynamic or any("path" in str(each) or "workspace" in str(each) for each in sources.values()),
        own_config=bool(config),
    )


def _config(read: ReadFile) -> dict[str, str]:
    """How the app configures uv, as key material."""
    found: dict[str, str] = {}
    if (own := read("uv.toml")) is not None:
        found["uv.toml"] = _text("uv.toml", own)
    if tool := _toml(read, "pyproject.toml").get("tool", {}).get("uv"):
        found["tool.uv"] = repr(tool)
    return found


def _toml(read: ReadFile, name: str) -> dict[str, Any]:
    content = read(name)
    if content is None:
        return {}
    try:
        return tomllib.loads(_text(name, content))
    except tomllib.TOMLDecodeError as error:
        raise CannotBuild(f"{name} cannot be read", why=str(error), todo="Correct it and push again.") from error


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotBuild(f"{name} is not UTF-8", why=str(error), todo="Save it as UTF-8.") from error


def _collect(name: str, content: bytes, read: ReadFile, files: dict[str, str]) -> bool:
    """This file and those that it includes, into `files`; whether one of them names something local."""
    if len(files) >= _FILES:
        raise CannotBuild(f"requirements.txt includes more than {_FILES} files")
    files[name] = _text(name, content)
    local = False
    for number, line in enumerate(_lines(files[name]), start=1):
        if _EDITABLE.match(line):
            raise CannotBuild(
                f"{name} asks for an editable install: {line[:100]!r} (requirement {number})",
                why="the image would point back into the build's folder, which is gone when the app runs",
                todo="Leave out -e; a folder of the app can be named as `./folder`.",
            )
        if (match := _INCLUDE.match(line)) and "://" not in match[1]:
            local |= _include(name, match[1], read, files)
        elif _LOCAL.search(line):
            local = True
    return local


def _include(name: str, target: str, read: ReadFile, files: dict[str, str]) -> bool:
    included = _inside(str(PurePosixPath(name).parent / target))
    if included is None:
        raise CannotBuild(f"{name} includes {target[:100]!r}", why="that is outside of the app's folder")
    if included in files:
        return False
    content = read(included)
    if content is None:
        raise CannotBuild(
            f"{name} includes {target[:100]!r}", why="there is no such file", todo="Commit it, or take the line out."
        )
    return _collect(included, content, read, files)


def _inside(name: str) -> str | None:
    parts: list[str] = []
    for part in PurePosixPath(name).parts:
        if part == "/" or (part == ".." and not parts):
            return None
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _lines(text: str) -> list[str]:
    """Requirements and options, comments and continuations resolved."""
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]
