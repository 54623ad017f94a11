"""A message model as an Avro schema, payloads as Avro, and whether one schema reads what another one wrote.

In: pydantic models of messages, and payloads as JSON values (`Envelope.data`). Out: schemas of the Avro 1.11
specification, and bytes without a header: the broker keeps the schema and gives its version to each message.

    str → string     int → long     float → double     bool → boolean     Literal["a", "b"] → string
    X | None → ["null", X]     tuple[X, ...] → array     Mapping[str, X] → map     Payload → record

A `Literal` is a string and no enum, so that an older reader survives a new word; the model checks the words. A default
in the model is the default in the schema, which makes the field one that may be added or left out later.
"""

import io
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import fastavro
import orjson
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from seedwork.messages import Message

NAMESPACE = "knarr"
_PRIMITIVES: Mapping[Any, str] = {str: "string", int: "long", float: "double", bool: "boolean"}
_PROMOTIONS = {("int", "long"), ("int", "double"), ("long", "double")}
"""What a reader may take for what a writer wrote (specification, "Schema Resolution")."""

Schema = Any
"""An Avro schema as JSON values."""


class Codec:
    """The payloads of one message type.

    Args:
        schema: As `schema_of` gives it, or as somebody else has registered it.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._parsed = fastavro.parse_schema(schema)

    def encode(self, data: Mapping[str, Any]) -> bytes:
        """A payload as Avro; fields that the schema does not know are left out.

        Raises:
            ValueError: It does not fit the schema.
        """
        buffer = io.BytesIO()
        try:
            fastavro.schemaless_writer(buffer, self._parsed, data)
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"the payload does not fit {self.schema['name']}: {error}") from error
        return buffer.getvalue()

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The payload as JSON values, as the writer meant it: the model adds and drops what changed since.

        Raises:
            ValueError: These bytes were not written with this schema.
        """
        buffer = io.BytesIO(payload)
        try:
            data: Any = fastavro.schemaless_reader(buffer, self._parsed, None)
        except (EOFError, IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"this is no {self.schema['name']}: {type(error).__name__}") from error
        if buffer.tell() != len(payload):
            raise ValueError(f"this is no {self.schema['name']}: {len(payload) - buffer.tell()} bytes are left over")
        return dict(data)


def schema_of(message: type[Message]) -> Schema:
    """The schema of a message type.

    Raises:
        TypeError: A field has a type that knarr's messages do not use.
    """
    return _record(message, known=set())


def _record(model: type[BaseModel], known: set[str]) -> Schema:
    """A record is spelled out where it comes first and named after that, as Avro wants it."""
    name = model.__name__
    if name in known:
        return f"{NAMESPACE}.{name}"
    known.add(name)
    return {
        "type": "record",
        "name": name,
        "namespace": NAMESPACE,
        "fields": [_field(model, field, info, known) for field, info in model.model_fields.items()],
    }


def _field(model: type[BaseModel], name: str, info: FieldInfo, known: set[str]) -> dict[str, Any]:
    try:
        field: dict[str, Any] = {"name": name, "type": _type(info.annotation, known)}
    except TypeError as error:
        raise TypeError(f"{model.__name__}.{name}: {error}") from None
    if not info.is_required():
        default = orjson.loads(
            orjson.dumps(info.get_default(call_default_factory=True, validated_data={}), default=_plain)
        )
        field["default"] = default
        if isinstance(field["type"], list) and default is not None:
            field["type"] = field["type"][::-1]  # a union's default is of its first type
    return field


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return dict(value)


def _type(annotation: Any, known: set[str]) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PRIMITIVES:
        return _PRIMITIVES[annotation]
    if origin is Literal and all(isinstance(each, str) for each in arguments):
        return "string"
    if origin in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is types.NoneType:
        return ["null", _type(arguments[0], known)]
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0], known)}
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] is str:
        return {"type": "map", "values": _type(arguments[1], known)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _record(annotation, known)
    raise TypeError(f"{annotation!r} has no Avro type here; use what the table in avro.py lists")


def unreadable(writer: Schema, reader: Schema) -> list[str]:
    """Why a reader with the one schema cannot read what the other one wrote; empty: it can.

    The rules are those of "Schema Resolution" in the Avro specification, as far as our schemas go.
    """
    return _unreadable(writer, reader, "", _named(writer), _named(reader))


def _unreadable(
    writer: Schema, reader: Schema, where: str, written: Mapping[str, Schema], read: Mapping[str, Schema]
) -> list[str]:
    writer, reader = _resolved(writer, written), _resolved(reader, read)
    if isinstance(writer, list):
        return [why for branch in writer for why in _unreadable(branch, reader, where, written, read)]
    if isinstance(reader, list):
        attempts = [_unreadable(writer, branch, where, written, read) for branch in reader]
        return [] if [] in attempts else [f"{where}: {_kind(writer)} is none of {[_kind(each) for each in reader]}"]
    kinds = _kind(writer), _kind(reader)
    if kinds == ("record", "record"):
        return _unreadable_record(writer, reader, where, written, read)
    if kinds == ("array", "array"):
        return _unreadable(writer["items"], reader["items"], f"{where}[]", written, read)
    if kinds == ("map", "map"):
        return _unreadable(writer["values"], reader["values"], f"{where}{{}}", written, read)
    return [] if kinds[0] == kinds[1] or kinds in _PROMOTIONS else [f"{where}: {kinds[0]} is read as {kinds[1]}"]


def _unreadable_record(
    writer: Schema, reader: Schema, where: str, written: Mapping[str, Schema], read: Mapping[str, Schema]
) -> list[str]:
    if writer["name"] != reader["name"]:
        return [f"{where}: record {writer['name']} is read as {reader['name']}"]
    there = {field["name"]: field for field in writer["fields"]}
    problems: list[str] = []
    for field in reader["fields"]:
        place = f"{where}.{field['name']}"
        if field["name"] in there:
            problems += _unreadable(there[field["name"]]["type"], field["type"], place, written, read)
        elif "default" not in field:
            problems.append(f"{place}: was not written, and has no default")
    return problems


def _kind(schema: Schema) -> str:
    return schema if isinstance(schema, str) else "union" if isinstance(schema, list) else schema["type"]


def _resolved(schema: Schema, named: Mapping[str, Schema]) -> Schema:
    return named.get(schema, schema) if isinstance(schema, str) else schema


def _named(schema: Schema) -> dict[str, Schema]:
    """The records inside a schema, by their full names."""
    if isinstance(schema, list):
        return {name: each for branch in schema for name, each in _named(branch).items()}
    if not isinstance(schema, dict):
        return {}
    inside: Sequence[Schema] = [field["type"] for field in schema.get("fields", ())]
    inside = [*inside, *(schema[key] for key in ("items", "values") if key in schema)]
    found = {name: each for part in inside for name, each in _named(part).items()}
    if schema["type"] == "record":
        found[f"{schema['namespace']}.{schema['name']}"] = schema
    return found
