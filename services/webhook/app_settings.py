"""Settings of an app that decide how it is built and observed: checked, stored as JSON, read back.

In: the fields of a request by name, where null means the default. Out: the values of the columns `settings` and
`observe_s`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from seedwork.errors import InvalidInput
from services.source.contract import BuildSettings
from services.webhook import rules

_BUILDERS = ("layers", "buildx", "buildpacks")
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_MOST = 50
"""Patterns, and build arguments: each is compared with every path, or is a part of a command line."""
_LONGEST_OBSERVATION_S = 3600.0


def settings_of(app: Row[Any]) -> BuildSettings:
    """Return the settings of an app's row."""
    return BuildSettings() if app.settings is None else BuildSettings.model_validate_json(app.settings)


def changed(settings: BuildSettings, changes: Mapping[str, Any]) -> BuildSettings:
    """Return the settings with those changes that concern them; null sets the default.

    Raises:
        InvalidInput: A value is wrong; the text names the field.
    """
    values = {name: check(changes[name]) for name, check in _CHECKS.items() if changes.get(name) is not None}
    cleared = [name for name in _CHECKS if name in changes and changes[name] is None]
    kept = {name: value for name, value in settings.model_dump(exclude_defaults=True).items() if name not in cleared}
    return BuildSettings(**{**kept, **values})


def stored(settings: BuildSettings) -> str | None:
    """Return the value of the column."""
    return settings.model_dump_json(exclude_defaults=True) if settings != BuildSettings() else None


def observe_s(seconds: float | None) -> float | None:
    """Return the length of the step `observe` in seconds; None: the platform's default."""
    if seconds is not None and not 0 <= seconds <= _LONGEST_OBSERVATION_S:
        raise InvalidInput(
            f"observe_s: {seconds!r} is no length of an observation",
            todo=f"Give 0 (off) to {_LONGEST_OBSERVATION_S:g} seconds.",
        )
    return seconds


def _builder(name: str) -> str:
    if name not in _BUILDERS:
        raise InvalidInput(f"builder: {name[:60]!r} is no builder", todo=f"Use one of {', '.join(_BUILDERS)}.")
    return name


def _dockerfile(path: str) -> str:
    try:
        checked = rules.root(path)
    except InvalidInput as error:
        raise InvalidInput(
            f"dockerfile: {path[:100]!r} is no file inside the app's root",
            why=error.why,
            todo="Use a path such as docker/Dockerfile.",
        ) from error
    if checked == ".":
        raise InvalidInput("dockerfile: the path is empty", todo="Use a path such as docker/Dockerfile.")
    return checked


def _docker_target(name: str) -> str:
    if not _STAGE.fullmatch(name):
        raise InvalidInput(
            f"docker_target: {name[:60]!r} is no name of a stage",
            todo="Use a name that stands behind AS in the Dockerfile.",
        )
    return name


def _docker_args(names: Sequence[str]) -> tuple[str, ...]:
    for name in _few("docker_args", names):
        if not _VARIABLE.fullmatch(name) or name.upper().startswith("BUILDKIT_"):
            raise InvalidInput(
                f"docker_args: {name[:60]!r} is no name of a config var",
                why="a build argument has the value of the config var of its name; BUILDKIT_… belong to the platform",
                todo="Give names such as VERSION; set values with `knarr config set APP VERSION=1`.",
            )
    return tuple(dict.fromkeys(names))


def _watch(patterns: Sequence[str]) -> tuple[str, ...]:
    for pattern in _few("watch", patterns):
        climbs = ".." in pattern.split("/")
        if not pattern.strip("/!") or climbs or len(pattern) > 200 or not pattern.isprintable():
            raise InvalidInput(
                f"watch: {pattern[:100]!r} is no pattern",
                why="patterns are like those of .gitignore, relative to the repository, of at most 200 characters",
                todo="Use a pattern such as libs/** or package.json.",
            )
    return tuple(dict.fromkeys(patterns))


def _few(field: str, values: Sequence[str]) -> Sequence[str]:
    if len(values) > _MOST:
        raise InvalidInput(f"{field}: {len(values)} values are too many", todo=f"Give at most {_MOST}.")
    return values


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "builder": _builder,
    "dockerfile": _dockerfile,
    "docker_target": _docker_target,
    "docker_args": _docker_args,
    "watch": _watch,
}
