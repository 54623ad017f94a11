"""Lock files of Yarn 1 in which entries lack `resolved`, the address of the package. Pure.

Yarn 1 takes the version of such an entry for a wish: with `--frozen-lockfile` it installs the newest version that fits
the range. With an address it installs the locked version. Format: https://classic.yarnpkg.com/lang/en/docs/yarn-lock/.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_KEY = re.compile(r"^\"?(?P<pattern>(?P<name>@?[^@\",\s]+)@(?P<range>[^\",]*))\"?(?:,|:$)")
_VERSION = re.compile(r"^  version:? \"?(?P<version>[0-9A-Za-z.+-]{1,100})\"?$")
_ALIAS = re.compile(r"^npm:(?P<name>@?[^@\s]+)@")
_ELSEWHERE = re.compile(r"^(?:[a-z+]+:|\.{0,2}/|[^/\s]+/[^/\s]+$)", re.IGNORECASE)
"""Ranges that name no package of a registry: a path, a repository, an address."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry: its lines, without the one of its key."""

    name: str
    pattern: str
    version_at: int
    """Index of the line with its version."""
    version: str


def unresolved(lock: str) -> tuple[str, ...]:
    """Return the patterns (`ms@^2.0.0`) of the registry's packages that have no address."""
    return tuple(entry.pattern for entry in _entries(lock.splitlines()))


def with_addresses(lock: str, registry: str) -> str:
    """Return the lock file with the address of each package in `registry`."""
    lines = lock.splitlines()
    base = registry.rstrip("/")
    for entry in reversed(list(_entries(lines))):
        file = f"{entry.name.rpartition('/')[2]}-{entry.version}.tgz"
        lines.insert(entry.version_at + 1, f'  resolved "{base}/{entry.name}/-/{file}"')
    return "\n".join(lines) + "\n"


def _entries(lines: list[str]) -> Iterator[_Entry]:
    """Entries of the registry's packages without an address."""
    for start, line in enumerate(lines):
        key = _KEY.match(line) if line and not line[0].isspace() and line[0] != "#" else None
        if key is None:
            continue
        alias = _ALIAS.match(key["range"])
        if alias is None and _ELSEWHERE.match(key["range"]):
            continue
        version_at, version, resolved = -1, "", False
        for at in range(start + 1, len(lines)):
            if not lines[at].startswith("  "):
                break
            if found := _VERSION.match(lines[at]):
                version_at, version = at, found["version"]
            resolved = resolved or lines[at].startswith("  resolved ")
        if version and not resolved:
            yield _Entry(alias["name"] if alias else key["name"], key["pattern"], version_at, version)
