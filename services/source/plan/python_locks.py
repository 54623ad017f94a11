"""Pinned versions in the lock files of Python's tools, and whether two sources agree.

Lock files are scanned line by line, not parsed: their size is bounded, and so is the time.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.source.plan.ranges import satisfies_pep440
from services.source.plan.requirements import Requirement, normal
from services.source.plan.tree import MAX_LOCK_BYTES, Tree

LOCKS: Mapping[str, str] = {
    "uv.lock": "uv",
    "poetry.lock": "poetry",
    "pdm.lock": "pdm",
    "pylock.toml": "pylock",
    "Pipfile.lock": "pipenv",
}
"""Lock files of Python, with the tool that installs from each; the first one counts where they agree."""


_MAX_JSON_BYTES = 3 * 1024 * 1024
"""Of a lock file that is parsed: a hostile one takes twenty times as much memory."""


@dataclass(frozen=True, slots=True)
class Locked:
    """What a lock file pins."""

    file: str
    versions: Mapping[str, frozenset[str]]
    """By package; several where the lock has forks by platform."""
    is_complete: bool
    """False: the file is too large to be read whole, and nothing is concluded from what is not in it."""


def read_lock(tree: Tree, file: str) -> Locked:
    """Return the versions that the lock file pins."""
    limit = _MAX_JSON_BYTES if file == "Pipfile.lock" else MAX_LOCK_BYTES
    data = tree.read(file, limit)
    is_complete = len(data) <= limit
    text = data.decode("utf-8-sig", errors="replace")
    pairs = _pipfile_pairs(text) if file == "Pipfile.lock" else _toml_pairs(text)
    found: dict[str, set[str]] = {}
    for name, version in pairs:
        found.setdefault(normal(name), set()).add(version)
    return Locked(file, {name: frozenset(each) for name, each in found.items()}, is_complete)


def _toml_pairs(text: str) -> Iterable[tuple[str, str]]:
    """Name and version of every `[[package]]`: the first lines of its table, in each of the formats."""
    name = ""
    for line in text.split("\n"):
        if line.startswith("["):
            name = ""
        elif line.startswith('name = "'):
            name = line[8:].partition('"')[0]
        elif line.startswith('version = "') and name:
            yield name, line[11:].partition('"')[0]
            name = ""


def _pipfile_pairs(text: str) -> Iterable[tuple[str, str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return
    packages = content.get("default") if isinstance(content, dict) else None
    for name, entry in packages.items() if isinstance(packages, dict) else ():
        version = entry.get("version") if isinstance(entry, dict) else None
        if isinstance(version, str):
            yield name, version.removeprefix("==")


def disagreement(locked: Locked, other: str, wanted: Iterable[Requirement]) -> str | None:
    """The first package about which a lock and a list of requirements do not agree, in words; None: they agree."""
    for each in wanted:
        versions = locked.versions.get(each.name)
        if versions is None:
            if locked.is_complete and not each.is_conditional and not each.is_address:
                return f"{other} asks for {each.name}{each.specifier}, and {locked.file} does not have it"
            continue
        if each.specifier and not any(satisfies_pep440(version, each.specifier) is not False for version in versions):
            return f"{other} asks for {each.name}{each.specifier}, {locked.file} has {' and '.join(sorted(versions))}"
    return None


def lock_disagreement(one: Locked, other: Locked) -> str | None:
    """The first package that two locks pin differently, or that only one has, in words; None: they agree."""
    for name in sorted(one.versions.keys() | other.versions.keys()):
        left, right = one.versions.get(name), other.versions.get(name)
        if left is None or right is None:
            holder, missing = (one, other) if left else (other, one)
            if missing.is_complete and holder.is_complete:
                return f"{holder.file} has {name}, and {missing.file} does not"
        elif left.isdisjoint(right):
            return f"{one.file} has {name} {' and '.join(sorted(left))}, {other.file} {' and '.join(sorted(right))}"
    return None
