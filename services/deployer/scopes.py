"""Config vars with their scopes: for builds, for running instances, or for both. Pure.

Scopes are sealed with the values, as one more entry whose name no config var can have. So each config version has the
scopes that it was made with, and a rollback brings both back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import orjson

from seedwork.errors import InvalidInput

Scope = Literal["build", "run", "both"]
SCOPES: tuple[str, ...] = get_args(Scope)
_ENTRY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One complete set of config vars."""

    values: Mapping[str, str] = field(default_factory=dict)
    scopes: Mapping[str, str] = field(default_factory=dict)
    """By name, where it is not `both`."""

    def seen_by(self, reader: Literal["build", "run"]) -> dict[str, str]:
        """Return the config vars that builds, or running instances, get."""
        return {name: value for name, value in self.values.items() if self.scopes.get(name, reader) == reader}

    def with_values(self, values: Mapping[str, str]) -> "Config":
        """Return the same scopes for other values."""
        return Config(values=values, scopes=self.scopes)

    def with_scopes(self, wanted: Mapping[str, str]) -> "Config":
        """Return the config vars with these scopes changed.

        Raises:
            InvalidInput: A scope is not known.
        """
        for name, scope in wanted.items():
            if scope not in SCOPES:
                raise InvalidInput(
                    f"{scope[:100]!r} is not a scope of the config var {name[:200]}",
                    why="a config var is for builds, for running instances, or for both",
                    todo='Send "build", "run" or "both".',
                )
        scopes = {name: scope for name, scope in {**self.scopes, **wanted}.items() if scope != "both"}
        return Config(values=self.values, scopes=scopes)


def opened(kept: Mapping[str, str]) -> Config:
    """Return the config vars of a sealed set after it was unsealed."""
    scopes: dict[str, str] = orjson.loads(kept[_ENTRY]) if _ENTRY in kept else {}
    return Config(values={name: value for name, value in kept.items() if name != _ENTRY}, scopes=scopes)


def closed(config: Config) -> dict[str, str]:
    """Return what is sealed; a set without scopes is as it was before there were any."""
    kept = dict(config.values)
    if config.scopes:
        kept[_ENTRY] = orjson.dumps(dict(config.scopes), option=orjson.OPT_SORT_KEYS).decode()
    return kept
