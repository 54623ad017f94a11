"""YAML, JSON and text from a stranger's repository: bytes in, plain values out, or an error that names file and key.

Bounded in size and depth. YAML aliases are refused (a few hundred bytes can stand for gigabytes), tags make nothing,
and every YAML scalar stays the text that was written, so that `3.10` is not `3.1`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn, cast

import yaml

from services.source.errors import AppInvalid

_MAX_DEPTH = 20
"""Of nested lists and mappings; the formats need four."""


def read_text(file: str, data: bytes, max_bytes: int) -> str:
    """UTF-8 without zero bytes; a byte order mark is passed over.

    Raises:
        AppInvalid: It is too large, or not such a text.
    """
    if len(data) > max_bytes:
        raise AppInvalid(f"{file} is larger than {max_bytes} bytes", todo="Make it smaller.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AppInvalid(f"{file} is no UTF-8 text", why=f"byte {error.start} cannot be read") from error
    return clean(file, "", text)


def clean(file: str, where: str, text: str) -> str:
    """The same text, if it could be an argument or a variable: no zero bytes, no half characters.

    Raises:
        AppInvalid: It could not.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        place = f"{file}: `{where}`" if where else file
        raise AppInvalid(f"{place} has a zero byte or half a character in it", todo="Remove it.")
    return text


class JsonObject:
    """An object of a JSON or YAML file, with a name for the errors about it."""

    def __init__(self, file: str, where: str, value: Any) -> None:
        """Take the value.

        Raises:
            AppInvalid: It is no object.
        """
        self._file = file
        self._where = where
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise AppInvalid(
                f"{self.place()} is no object", todo="Write `key: value` pairs (in JSON between `{` and `}`)."
            )
        self._value: Mapping[str, Any] = value

    def place(self, key: str = "") -> str:
        """Name the object, or one of its keys, for an error."""
        path = ".".join(part for part in (self._where, key) if part)
        return f"{self._file}: `{path}`" if path else self._file

    def only(self, *allowed: str) -> None:
        """Refuse other keys.

        Raises:
            AppInvalid: There is one.
        """
        for key in self._value:
            if key not in allowed:
                raise AppInvalid(
                    f"{self.place(key[:80])} is not known", todo=f"Allowed are {', '.join(sorted(allowed))}."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The keys in their order."""
        return tuple(self._value)

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; null counts as not there."""
        value = self._value.get(key)
        return default if value is None else value

    def text(self, key: str) -> str:
        """A text that is not empty.

        Raises:
            AppInvalid: It is something else.
        """
        value = self._value.get(key)
        if not isinstance(value, str) or not value.strip():
            raise AppInvalid(f"{self.place(key)} is missing, or is no text", todo="Write a text between quotes.")
        return value.strip()

    def object(self, key: str) -> Mapping[str, Any]:
        """An object's items; none, if it is not there.

        Raises:
            AppInvalid: It is something else.
        """
        value = self._value.get(key)
        if value is None:
            return {}
        JsonObject(self._file, ".".join(filter(None, (self._where, key))), value)  # or its error
        return cast("Mapping[str, Any]", value)


def read_json(file: str, data: bytes, max_bytes: int, *, refuse_duplicates: bool = False) -> JsonObject:
    """A JSON file whose outermost value is an object.

    Args:
        file: Its name, for errors.
        data: Its content.
        max_bytes: The largest size.
        refuse_duplicates: For formats that we read ourselves; Node takes the last of two equal keys.

    Raises:
        AppInvalid: It is something else, too large or too deep.
    """
    text = read_text(file, data, max_bytes)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if refuse_duplicates and len(found) < len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise AppInvalid(f"{file} has the key {twice!r} twice in one object", todo="Remove one.")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=no_constant)
    except RecursionError as error:
        raise AppInvalid(f"{file} is nested too deeply", todo=f"At most {_MAX_DEPTH} levels.") from error
    except ValueError as error:
        raise AppInvalid(f"{file} is no JSON", why=str(error)[:300], todo="Correct it.") from error
    _check(file, value, 0)
    return JsonObject(file, "", value)


def lines(text: str) -> list[str]:
    """Lines of a text; they end at LF or CR LF, and at no other character."""
    return [line.removesuffix("\r") for line in text.split("\n")]


class _TextLoader(yaml.BaseLoader):
    """Texts, lists and mappings only; no aliases, no equal keys, not too deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (`*name`) are not taken; write the value again")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {_MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key is no text", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(file: str, data: bytes, max_bytes: int) -> JsonObject:
    """A YAML file of one document, a mapping whose scalars are all texts; an empty file is an empty mapping.

    Raises:
        AppInvalid: It is something else, too large or too deep, or has aliases or equal keys.
    """
    text = read_text(file, data, max_bytes)
    try:
        value = yaml.load(text, Loader=_TextLoader)  # noqa: S506 - makes nothing but texts, lists and mappings
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise AppInvalid(f"{file} is no YAML that knarr takes", why=problem[:300], todo="Correct it.") from error
    value = {} if value in (None, "") else value
    _check(file, value, 0)
    return JsonObject(file, "", value)


def _check(file: str, value: Any, depth: int) -> None:
    """Depth, and texts that could become arguments or variables."""
    if depth > _MAX_DEPTH:
        raise AppInvalid(f"{file} is nested too deeply", todo=f"At most {_MAX_DEPTH} levels.")
    if isinstance(value, str):
        clean(file, "", value)
    elif isinstance(value, dict):
        for key, item in value.items():
            clean(file, "", str(key))
            _check(file, item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(file, item, depth + 1)
