"""Requirements files of pip: the files that take part, the names and versions that they ask for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from posixpath import dirname

from services.source.errors import AppInvalid
from services.source.manifests import lines
from services.source.plan.formats import text_of
from services.source.plan.tree import Tree

_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)(?:\s+|=|(?<=-[rc]))(\S+)")
_EDITABLE = re.compile(r"(?:-e|--editable)(?:\s+|=)(\S+)")
_NAMED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)\s*(\[[^\]]{0,500}\])?\s*(.*)", re.ASCII)
_LOCAL_FILE = re.compile(r"[^\s:]{1,300}\.(?:whl|tar\.gz|zip)(?:\s|$)")
_PINNED = re.compile(r"={2,3}\s*([^\s,;*]{1,100})")
_MAX_FILES = 50
"""That requirements include, one through the other."""
_MAX_ENTRIES = 5000


@dataclass(frozen=True, slots=True)
class Requirement:
    """One package that is asked for."""

    name: str
    """In the normal form: lower case, `-` between its parts."""
    specifier: str = ""
    """`>=2,<3`, empty for any version; of an address it is empty too."""
    extras: tuple[str, ...] = ()
    is_conditional: bool = False
    """True: a marker says where it is installed."""
    is_address: bool = False

    @property
    def pinned(self) -> str | None:
        """The exact version, or None."""
        match = _PINNED.fullmatch(self.specifier.strip())
        return match[1] if match else None


@dataclass(slots=True)
class Requirements:
    """A requirements file with those that it includes."""

    file: str
    files: list[str] = field(default_factory=list)
    entries: list[Requirement] = field(default_factory=list)
    is_hashed: bool = False
    has_local: bool = False
    """True: a folder or an archive of the app is installed."""
    has_project: bool = False
    """True: the app itself is installed (`.`)."""

    @property
    def is_locked(self) -> bool:
        """Whether every entry has one version, so that the same file gives the same packages."""
        return bool(self.entries) and all(each.pinned or each.is_address for each in self.entries)


def normal(name: str) -> str:
    """The name of a package in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(line: str) -> Requirement | None:
    """Read one requirement of PEP 508; None where it is something else."""
    body, _, marker = line.partition(";")
    match = _NAMED.fullmatch(body.strip())
    if match is None:
        return None
    rest = match[3].strip()
    extras = tuple(normal(each.strip()) for each in (match[2] or "[]")[1:-1].split(",") if each.strip())
    if rest.startswith("@"):
        return Requirement(normal(match[1]), "", extras, bool(marker.strip()), is_address=True)
    rest = rest.removeprefix("(").removesuffix(")").strip()
    if rest and rest[0] not in "=<>!~":
        return None
    return Requirement(normal(match[1]), rest.replace(" ", ""), extras, bool(marker.strip()))


def read_requirements(tree: Tree, file: str) -> Requirements:
    """Read the file and those that it includes.

    Raises:
        AppInvalid: A file is not there, leads out of the app, or there are too many.
    """
    found = Requirements(file)
    pending = [(file, file)]
    while pending:
        name, named_by = pending.pop(0)
        if name in found.files:
            continue
        if not tree.has(name):
            raise AppInvalid(
                f"{named_by} includes {name[:100]!r}, and there is no such file",
                todo="Commit it, or take the line out.",
            )
        found.files.append(name)
        if len(found.files) > _MAX_FILES:
            raise AppInvalid(f"{file} includes more than {_MAX_FILES} files")
        for line in _logical(text_of(tree, name)):
            if (match := _INCLUDE.match(line)) is not None:
                if "://" not in match[1]:
                    pending.append((_beside(name, match[1]), name))
            else:
                _take(line, found)
    return found


def _take(line: str, found: Requirements) -> None:
    found.is_hashed |= "--hash" in line
    editable = _EDITABLE.match(line)
    target = editable[1] if editable else line.split(maxsplit=1)[0]
    plain = re.sub(r"\[[^\]]*\]$", "", target)
    if plain in {".", "./"}:
        found.has_project = found.has_local = True
    elif plain.startswith((".", "/", "file:")) or _LOCAL_FILE.match(line) or " @ file:" in line or "@ ." in line:
        found.has_local = True
    elif not line.startswith("-") and (entry := requirement(line.partition(" --")[0])):
        found.entries.append(entry)
    if len(found.entries) > _MAX_ENTRIES:
        raise AppInvalid(f"{found.file} asks for more than {_MAX_ENTRIES} packages")


def _beside(file: str, target: str) -> str:
    """The included file's name.

    Raises:
        AppInvalid: It is outside of the app's folder.
    """
    parts: list[str] = []
    for part in f"{dirname(file)}/{target}".split("/"):
        if part == ".." and not parts:
            raise AppInvalid(f"{file} includes {target[:100]!r}", why="that is outside of the app's folder")
        if part == "..":
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    if target.startswith("/"):
        raise AppInvalid(f"{file} includes {target[:100]!r}", why="that is outside of the app's folder")
    return "/".join(parts)


def _logical(text: str) -> Iterable[str]:
    """Lines with continuations joined, without comments."""
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in lines(joined):
        stripped = re.sub(r"(?:^|(?<=\s))#.*", "", line).strip()
        if stripped:
            yield stripped
