"""Requirement files of pip: what they include, and the form in which an image can hold what they install. Pure.

An editable install would point back into the folder of the build. Such a line is rewritten: the project is installed
as a regular package. Options, hashes and markers stay as they are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from services.builder.errors import CannotBuild

ReadFile = Callable[[str], bytes | None]
"""A file of the app by its name; None: there is none."""

MANIFEST_BYTES = 1024 * 1024
"""Of a pyproject.toml or a package.json that is parsed here: values take twenty times its size in memory."""

_INCLUDE = re.compile(r"^(?:-r|-c|--requirement|--constraint)(?:\s+|=|(?<=^-[rc]))(\S+)")
_EDITABLE = re.compile(r"^(\s*)(?:-e|--editable)(?:\s+|=|(?<=-e))(?=\S)")
_EGG = re.compile(r"egg=[A-Za-z0-9._-]+(\[[^\]]*\])?")
_LOCAL = re.compile(
    r"^(\.|/|file:)|@\s*(file:|\.)|^[^\s:]+\.(whl|tar\.gz|zip)(\s|$)|^(--find-links|-f)[\s=]+(\.|/|file:)"
)
_ITSELF = re.compile(r"\.(?:/)?(?:\[([^\]]*)\])?")
"""The app's own folder as a requirement, with its extras."""
_FILES = 50
"""Files that requirements may include, one through the other."""


@dataclass(slots=True, kw_only=True)
class Requirements:
    """Requirement files by name, as they are installed, and what they say."""

    files: dict[str, str] = field(default_factory=dict)
    needs_source: bool = False
    """True: folders or files of the app are installed, so that every change of the app may change the packages."""
    itself: list[str] | None = None
    """Extras with which the app's own project is required; None: it is not required."""
    rewritten: list[str] = field(default_factory=list)
    """Names of files with an editable line that is installed as a regular package."""

    @property
    def empty(self) -> bool:
        """Whether nothing is installed."""
        return not any(lines_of(text) for text in self.files.values())

    def without_itself(self) -> dict[str, str]:
        """Return the files without the lines that require the app's own project."""
        return {
            name: "\n".join(line for line in text.split("\n") if not _ITSELF.fullmatch(line.strip()))
            for name, text in self.files.items()
        }

    @property
    def hashed(self) -> bool:
        """Whether packages are checked against hashes."""
        return any(" --hash=" in f" {line}" for text in self.files.values() for line in lines_of(text))


def read_requirements(name: str, read: ReadFile) -> Requirements:
    """Read a requirement file with everything that it includes.

    Raises:
        CannotBuild: A file is missing or is no text, or a line cannot be part of an image. The text names the file.
    """
    content = read(name)
    if content is None:
        raise CannotBuild(f"There is no {name}", todo="Commit it, or name another file.")
    found = Requirements()
    _collect(name, content, read, found)
    return found


def text_of(name: str, content: bytes) -> str:
    """Decode a file of the app.

    Raises:
        CannotBuild: It is not UTF-8, or is UTF-16 without a byte order mark.
    """
    encoding = "utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise CannotBuild(f"{name} is not UTF-8", why=str(error), todo="Save it as UTF-8.") from error


def lines_of(text: str) -> list[str]:
    """Requirements and options, comments and continuations resolved."""
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in re.split(r"\r?\n", joined))
    return [line for line in lines if line]


def _collect(name: str, content: bytes, read: ReadFile, found: Requirements) -> None:
    if len(found.files) >= _FILES:
        raise CannotBuild(f"Requirement files include more than {_FILES} files")
    text = "\n".join(_installable(line) for line in re.split(r"\r?\n", text_of(name, content)))
    found.files[name] = text
    if text.encode() != content and any(_EDITABLE.match(line) for line in lines_of(content.decode("utf-8", "replace"))):
        found.rewritten.append(name)
    for line in lines_of(text):
        if (match := _INCLUDE.match(line)) and "://" not in match[1]:
            _include(name, match[1], read, found)
        elif match := _ITSELF.fullmatch(line):
            extras = [each.strip() for each in (match[1] or "").split(",") if each.strip()]
            found.itself = [*(found.itself or []), *extras]
        elif _LOCAL.search(line):
            found.needs_source = True


def _installable(line: str) -> str:
    """A line without `-e`; a repository gets its name in front, as a regular requirement has it."""
    if (match := _EDITABLE.match(line)) is None:
        return line
    target = line[match.end() :]
    address, _, fragment = target.partition("#")
    if "://" not in address or address.startswith("file:") or not fragment:
        return match[1] + target
    fragment, space, rest = fragment.partition(" ")
    parts = fragment.split("&")
    name = next((part.removeprefix("egg=") for part in parts if _EGG.fullmatch(part)), "")
    others = "&".join(part for part in parts if not part.startswith("egg="))
    return f"{match[1]}{f'{name} @ ' if name else ''}{address}{'#' if others else ''}{others}{space}{rest}"


def _include(name: str, target: str, read: ReadFile, found: Requirements) -> None:
    included = _inside(str(PurePosixPath(name).parent / target))
    if included is None:
        raise CannotBuild(f"{name} includes {target[:100]!r}", why="that is outside of the app's folder")
    if included in found.files:
        return
    content = read(included)
    if content is None:
        raise CannotBuild(
            f"{name} includes {target[:100]!r}", why="there is no such file", todo="Commit it, or take the line out."
        )
    _collect(included, content, read, found)


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
