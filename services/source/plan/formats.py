"""The files that detection reads, by name: opened from the tree, checked, and with errors that name the file."""

from typing import Any

from services.source.manifests import JsonObject, lines, read_json, read_text, read_yaml
from services.source.plan.tree import MAX_FILE_BYTES, Tree
from services.source.toml import read_toml

MAX_YAML_BYTES = 16 * 1024
"""The YAML parser is slow, some 50 kB a second at its worst; a few hundred bytes are usual."""


def text_of(tree: Tree, name: str) -> str:
    """Return the file as UTF-8 text.

    Raises:
        AppInvalid: It is no such text, or too large.
    """
    return read_text(name, tree.read(name), MAX_FILE_BYTES)


def lines_of(tree: Tree, name: str) -> list[str]:
    """Return the lines of the file without blanks at their ends."""
    return [line.strip(" \t\r") for line in lines(text_of(tree, name))]


def json_of(tree: Tree, name: str, *, strict: bool = False) -> JsonObject:
    """Return the object of a JSON file; `strict` refuses equal keys."""
    return read_json(name, tree.read(name), MAX_FILE_BYTES, refuse_duplicates=strict)


def toml_of(tree: Tree, name: str) -> JsonObject:
    """Return the table of a TOML file."""
    return read_toml(name, tree.read(name), MAX_FILE_BYTES)


def yaml_of(tree: Tree, name: str) -> JsonObject:
    """Return the mapping of a YAML file; its scalars are texts."""
    return read_yaml(name, tree.read(name), MAX_YAML_BYTES)


def table(value: Any, *path: str) -> dict[str, Any]:
    """Follow keys into nested tables; an empty table where one is missing or is something else."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a list; none where it is something else."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def text(value: Any) -> str | None:
    """Return a text that is not empty, else None."""
    return value.strip() if isinstance(value, str) and value.strip() else None
