"""Whether the files of a Python project are installed as they are. Pure.

Build backends without plugins and hooks copy a package's files into the wheel, and take everything else that is in it
from pyproject.toml and a few files that are no part of the package. So where nothing changed but the content of copied
files, the wheel differs in these files alone.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from seedwork import bounded_toml

_BACKENDS = {
    "hatchling.build": "hatchling",
    "uv_build": "uv-build",
    "poetry.core.masonry.api": "poetry-core",
    "flit_core.buildapi": "flit-core",
    "setuptools.build_meta": "setuptools",
    "pdm.backend": "pdm-backend",
}
"""Backends, and the distribution that each comes from."""
_HOOK_FILES = ("setup.py", "setup.cfg", "hatch_build.py", "pdm_build.py")
"""Code that backends run if it is there, and a format in which setuptools computes metadata."""
_HOOK_KEYS = frozenset({"hooks", "hook", "custom-hook", "ext-modules", "cmdclass", "dynamic", "build-backend"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_plain(read: Callable[[str], bytes | None]) -> bool:
    """Return whether the project's build backend copies files and computes nothing from them.

    Args:
        read: Reads a file of the source by its path; None: there is none.
    """
    content = read("pyproject.toml")
    if content is None or any(read(name) is not None for name in _HOOK_FILES):
        return False
    try:
        pyproject = bounded_toml.loads(content.decode("utf-8-sig"))
    except ValueError:
        return False
    system, tool = _table(pyproject, "build-system"), _table(pyproject, "tool")
    backend = str(system.get("build-backend", "setuptools.build_meta"))
    own = _BACKENDS.get(backend)
    if own is None or "backend-path" in system or _table(pyproject, "project").get("dynamic"):
        return False
    if not ("project" in pyproject or "poetry" in tool):
        return False
    requires = system.get("requires", [])
    if not isinstance(requires, list) or any(_normal(each) not in {own, "wheel"} for each in requires):
        return False
    settings = [_table(tool, name) for name in ("hatch", "setuptools", "pdm", "flit", "poetry", "uv")]
    return not any(_has_hook(each) for each in settings) and "build" not in _table(tool, "poetry")


def copied_files(installed: Mapping[str, str], source: Mapping[str, str]) -> dict[str, str]:
    """Find the files of the source that installed files are copies of.

    Args:
        installed: Digests of installed files by their path below `site-packages`.
        source: Digests of the source's files by their path.

    Returns:
        Paths in the source by the path of the copy; a file with several candidates is left out.
    """
    by_name: dict[str, list[str]] = {}
    for path in source:
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    found: dict[str, str] = {}
    for path, digest in installed.items():
        candidates = [each for each in by_name.get(path.rpartition("/")[2], ()) if f"/{each}".endswith(f"/{path}")]
        if len(candidates) == 1 and source[candidates[0]] == digest:
            found[path] = candidates[0]
    return found


def changed_copies(
    before: Mapping[str, str], now: Mapping[str, str], copies: Mapping[str, str], *, never: Collection[str] = ()
) -> dict[str, str] | None:
    """Return the copies that change, as paths in the source by the path of the copy; None: more than these changes.

    Args:
        before: Digests of the source's files from which the project was built.
        now: Those of the source that is to be built.
        copies: See `copied_files`.
        never: Files of which a change is always more.
    """
    if before.keys() != now.keys():
        return None
    changed = {path for path, digest in now.items() if before[path] != digest}
    found = {copy: path for copy, path in copies.items() if path in changed}
    if changed - set(found.values()) or changed & set(never):
        return None
    return found


def _has_hook(settings: Mapping[str, Any]) -> bool:
    waiting: list[Any] = [settings]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if _HOOK_KEYS & each.keys():
                return True
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return False


def _table(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _normal(requirement: object) -> str:
    found = _NAME.match(str(requirement).strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""
